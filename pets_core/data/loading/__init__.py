"""Load stored photos as batches on a device."""
