"""The notebook options/quickstart.ipynb runs from its first cell to its last."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from restormixer_arch import cli

NOTEBOOK = Path(__file__).parent.parent / "options/quickstart.ipynb"


@pytest.mark.timeout(600)
def test_quickstart_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.new("RGB", (40, 30), (90, 120, 60)).save("photos/mine.png")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    installing = [source for source in sources if source.startswith("%pip")]
    assert len(installing) == 1 and all(not cell["outputs"] for cell in cells)
    names: dict = {"cli": cli}
    for source in sources:
        if source not in installing:
            source = re.sub(r"^!basicsr (.*)$", r"assert cli.main('\1'.split()) == 0", source, flags=re.MULTILINE)
            exec(compile(source, str(NOTEBOOK), "exec"), names)  # noqa: S102
    assert names["after"] > names["before"] + 5 and f"{names['after']:.2f} dB after" in capsys.readouterr().out
    assert names["restored"].size == names["rainy"].size
    with Image.open("restored/mine.png") as restored:
        assert restored.size == (40, 30)
    assert names["shape"] == (1, 3, 50, 70)
