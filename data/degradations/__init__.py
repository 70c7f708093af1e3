"""Degradations of clean images: one file each, their mixtures, and what they cover."""
