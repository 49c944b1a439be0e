"""Data, models, training, evaluation and the registry; does not depend on Prefect."""
