"""Built-in sample dataset of drawn pets."""
