"""Ratings of items by users: sources, splits, storage, models and evaluation."""
