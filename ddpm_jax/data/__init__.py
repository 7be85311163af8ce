"""Images on disk -> seeded, sharded uint8 batches [B, H, W, C], and transforms on the device.

Sources (TFDS, image folders, digits, emoji), captions, the cache and the pipeline belong here;
networks, losses and Flax do not.
"""
