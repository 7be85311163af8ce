"""Parameters of other projects <-> ours, as NumPy arrays, without PyTorch or TensorFlow."""
