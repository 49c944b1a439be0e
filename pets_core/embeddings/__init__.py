"""Embeddings of photos: storage, nearest-neighbour search and near-duplicates."""
