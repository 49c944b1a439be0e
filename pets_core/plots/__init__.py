"""Plots as PNG bytes, small enough for an HTML page or a Prefect artifact."""
