"""How a trained model did: counts, plots and the report."""
