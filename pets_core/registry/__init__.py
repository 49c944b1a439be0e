"""Model registry: aliases of evaluated models, and the promotion gate."""
