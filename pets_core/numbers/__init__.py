"""Numbers of a photo, and places on it: what is made of a model's predictions."""
