"""What a run leaves to look at in the Prefect UI."""
