"""Regression: one or several numbers per photo."""
