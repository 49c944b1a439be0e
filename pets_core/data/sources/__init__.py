"""Sources of labelled photos."""
