"""HTTP server of a model: `pets serve`."""
