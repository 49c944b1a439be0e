"""Retention: which runs, checkpoints and data sets a store keeps."""
