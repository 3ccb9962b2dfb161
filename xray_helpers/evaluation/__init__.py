"""From a model to a judgement: what it looks at, how good it is, its model card."""
