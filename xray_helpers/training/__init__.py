"""From batches to a model: networks, the training loop, checkpoints."""
