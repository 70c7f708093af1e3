"""``python -m restormixer_arch.compare.report FOLDER`` makes a report again from the ``results.json`` of a folder."""

from __future__ import annotations

import sys

from restormixer_arch.compare.report.page import main

if __name__ == "__main__":
    sys.exit(main())
