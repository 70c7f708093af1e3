"""What ``basicsr compare`` does: train competitors under one budget, restore with each, measure, and make tables."""
