"""Numbers about a trained model: distances between sets of images, later likelihoods and coding
curves."""
