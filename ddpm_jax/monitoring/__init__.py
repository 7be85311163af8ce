"""What a person sees of a run: records, TensorBoard, Weights & Biases, profiles, progress."""
