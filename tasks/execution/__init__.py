"""Execution of tasks: delegation, retries, concurrency limits, progress and metrics."""
