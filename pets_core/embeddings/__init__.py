"""Photos as vectors of features: stored, searched, and compared."""
