"""Which evaluated model an alias points at, and the gate before it."""
