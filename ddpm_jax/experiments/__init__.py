"""Everything that a config names: models, training, data, and trained models read from disk."""
