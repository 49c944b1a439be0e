"""The built-in sample: drawn pets."""
