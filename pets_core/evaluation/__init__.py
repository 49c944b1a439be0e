"""Evaluation of a trained model: predictions, comparison with the champion, and the report."""
