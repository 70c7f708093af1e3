"""The commands of ``restormixer_arch/inference/RESTORE.md`` run as they are written."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_network import save_tiny

from restormixer_arch import cli
from restormixer_arch.benchmark.task_choice import TASKS
from restormixer_arch.inference import weights

PAGE = (Path(__file__).parents[1] / "restormixer_arch/inference/RESTORE.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:.* )?(?:basicsr|restormixer_arch\.cli) (restore .*?)(?: +#.*)?$", PAGE, re.M)


def test_the_page_has_its_commands():
    assert len(COMMANDS) == 7 and sum("--shard" in command for command in COMMANDS) == 3
    assert f"| it is \\ chosen | images | {' | '.join(TASKS)} | unsure |" in PAGE


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(folder, monkeypatch, command):
    (folder / "holiday").mkdir()
    for number in range(4):
        image = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(image).save(folder / f"holiday/{number}.png")
    (folder / "installed").mkdir()
    for task in ("derain", "mixed"):
        save_tiny(folder / f"installed/restormixer_s_{task}.safetensors")
    monkeypatch.setattr(weights, "SHIPPED", folder / "installed")
    assert cli.main(shlex.split(command)) == 0
    assert "--shard" in command or len(list(Path("out").iterdir())) == 4
    assert Path("sheet.png").is_file() == ("--sheet" in command)
