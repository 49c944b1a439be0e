"""Artifacts of a run in the Prefect UI."""
