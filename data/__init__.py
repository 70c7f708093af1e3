"""Degradations, datasets and the sample photographs."""
