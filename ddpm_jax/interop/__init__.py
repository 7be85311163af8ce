"""Other projects' parameters <-> ours, as NumPy arrays. No PyTorch and no TensorFlow is imported
here."""
