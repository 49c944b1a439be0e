"""Single-label classification: one class of a vocabulary per photo."""
