"""``report.html``: a comparison to look at, in one file that needs no network."""
