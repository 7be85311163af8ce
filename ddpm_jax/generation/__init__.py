"""Images from a trained model: made on all devices in dispatches, and stored as shards."""
