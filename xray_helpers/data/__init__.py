"""From Kaggle to batches: download, catalog, splits, the image cache, datasets and transforms."""
