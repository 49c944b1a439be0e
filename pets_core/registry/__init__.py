"""Model registry: aliases of evaluated models."""
