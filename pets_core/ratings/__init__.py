"""Ratings of items by users: where they come from, how they are split and stored."""
