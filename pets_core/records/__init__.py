"""Records passed between stages: ids, counts, hashes and URLs, never tensors."""
