"""Degradations of clean images, one file each, with their compositions, mixtures and coverage of real pairs."""
