"""What crosses the border between two stages: ids, counts, hashes and URLs, never tensors."""
