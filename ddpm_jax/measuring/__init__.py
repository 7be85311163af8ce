"""Numbers and pictures of a trained model over a split of the data, with their files."""
