"""The command line, `pets`."""
