"""Photos with any number of tags: what a model said of them, and how good it is."""
