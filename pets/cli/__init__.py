"""Command-line interface, `pets`."""
