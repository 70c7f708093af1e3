"""Restore images with a trained network: ``restormixer_arch.restore`` and its parts. Imports torch, not BasicSR."""
