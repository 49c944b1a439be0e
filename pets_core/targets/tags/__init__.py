"""Tags: any number of a vocabulary a photo."""
