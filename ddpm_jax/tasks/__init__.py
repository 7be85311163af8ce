"""Uses of a trained model: sampling, guidance, editing, interpolation, latents, averages."""
