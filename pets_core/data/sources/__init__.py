"""Sources: their files, and the labels they give their photos."""
