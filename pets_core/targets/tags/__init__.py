"""Multi-label classification: any number of tags of a vocabulary per photo."""
