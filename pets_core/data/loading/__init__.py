"""Stored photos to batches on a device."""
