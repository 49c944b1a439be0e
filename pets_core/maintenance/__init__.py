"""What a store keeps, and for how long."""
