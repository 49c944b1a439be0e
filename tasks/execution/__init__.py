"""How tasks run: where, how often, one at a time, and with what to see of it."""
