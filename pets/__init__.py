"""Fine-tune image models with Prefect flows."""
