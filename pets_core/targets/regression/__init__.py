"""Regression: one or several numbers a photo."""
