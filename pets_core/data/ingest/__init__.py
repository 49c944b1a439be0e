"""Ingest photos of a source into a stored data set: plan, shards, commit."""
