"""Implement ``basicsr compare``: train networks with one budget, restore with each, measure, and write tables."""
