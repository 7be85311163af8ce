"""A config -> the parts it names: models, training, data, and trained models read from their
directories."""
