"""The compiled CPU library: its C source, loading and calling it, and its GELU and window attention in torch."""
