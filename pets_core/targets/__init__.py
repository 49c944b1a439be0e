"""Kinds of targets: how each kind is trained, and how its predictions are stored and evaluated."""
