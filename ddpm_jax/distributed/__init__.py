"""Several devices and several processes: who is there, how state and batches lie over them."""
