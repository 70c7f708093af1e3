"""The compiled library for CPUs: its source in C, how it is loaded and called, and GELU and window attention on it."""
