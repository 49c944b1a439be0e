"""Photos of a source to a stored data set: plan, shards, commit."""
