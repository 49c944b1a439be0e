"""Kinds of targets, each with how its predictions are stored and evaluated."""
