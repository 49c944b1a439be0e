"""Prefect tasks: each adds retries, progress or artifacts to one call of `pets_core`."""
