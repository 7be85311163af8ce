"""Images from a trained model: made on all devices in dispatches of half a second, and stored as
shards."""
