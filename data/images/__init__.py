"""Image and video files. Importing this package loads no decoder."""

from __future__ import annotations

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Containers, and the codec that OpenCV's wheels have for each on every system, without a licensed or platform encoder.
VIDEO_CODECS = {".avi": "MJPG", ".m4v": "mp4v", ".mkv": "mp4v", ".mov": "mp4v", ".mp4": "mp4v", ".webm": "VP80"}
