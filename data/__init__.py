"""Degradations, data sets and the sample photographs."""
