"""Predictions of a model for new photos: a few, or many."""
