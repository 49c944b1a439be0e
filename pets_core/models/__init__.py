"""Backbones with layer groups, heads, and the model folder."""
