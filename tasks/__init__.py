"""Prefect policy around one core call each; nothing here computes."""
