"""What is done with a trained model: sampling, guidance, editing, interpolation, likelihood,
metrics, pictures."""
