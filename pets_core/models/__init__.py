"""Backbones with layer groups, heads, and the folder a trained model lives in."""
