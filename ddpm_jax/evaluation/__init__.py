"""Measures of a trained model: distances between sets of images, likelihoods, coding curves."""
