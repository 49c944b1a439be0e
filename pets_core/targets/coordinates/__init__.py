"""Coordinates: keypoints, or a bounding box, on a photo."""
