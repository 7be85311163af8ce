"""Pictures on disk -> seeded, sharded uint8 batches [B, H, W, C], and the on-device flip and
scaling.

Belongs here: sources (TFDS, image folder, digits), the cache, the pipeline. Does not: networks,
losses, Flax.
"""
