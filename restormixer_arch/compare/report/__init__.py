"""Create ``report.html``, which shows a comparison in one file that works offline."""
