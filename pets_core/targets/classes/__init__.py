"""Classes: one of a vocabulary a photo."""
