"""Coordinates on a photo: keypoints, or a bounding box."""
