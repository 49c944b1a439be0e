"""Fine-tune image models, as Prefect flows."""
