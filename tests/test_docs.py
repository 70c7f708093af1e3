"""Documentation: every link has a target, every command and example works, and README is short."""

import argparse
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from video_cases import write_video

from restormixer_arch import RestorMixer, cli
from restormixer_arch.config.check import read_option_file
from restormixer_arch.inference.installed import installed_weights

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "data", "options", "restormixer_arch")
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for folder in FOLDERS
    for page in (ROOT / folder).glob("*.md" if not folder else "**/*.md")
)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
COMMAND = re.compile(r"^(?:.*&& )?(?:\.venv/bin/)?(basicsr [a-z]+ .+)$", re.M)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(text):
    """Return the anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page):
    blocks = re.findall(r"```bash\n(.*?)```", read(page), re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [" ".join(line.partition("  #")[0].split()) for line in COMMAND.findall(joined)]


@pytest.mark.parametrize("page", PAGES)
def test_link_targets_exist(page):
    for path, anchor in LINK.findall(read(page)):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {path}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {path}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_venv_commands_upgrade_pip(page):
    """pip before 23.1, as in Debian 12 and Ubuntu 22.04, fails to build BasicSR 1.4.2."""
    made = re.findall(r"-m venv (\S+)", read(page))
    assert set(made) <= {"--upgrade-deps"}


@pytest.mark.parametrize("page", PAGES)
def test_lines_are_short_and_inline_code_has_no_line_breaks(page):
    """Tables, images and code blocks are ignored. Inline code with a line break would be shown with a space in it."""
    text = re.sub(r"^ *```.*?^ *```$", "", read(page), flags=re.S | re.M)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("|", "!["))]
    assert [line for line in lines if len(line) > 125] == []
    assert [line for line in lines if line.count("`") % 2] == []


class Parsed(Exception):
    """Raised once the arguments are parsed, so that the command itself is not run."""


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_parse(page, monkeypatch):
    """Each ``basicsr`` line of a page parses, and the option file that it names exists and is valid."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, arguments=None, namespace=None):
        raise Parsed(parse(self, arguments, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.chdir(ROOT)
    for command in commands(page):
        with pytest.raises(Parsed) as parsed:
            cli.main(shlex.split(command)[1:])
        option_file = getattr(parsed.value.args[0], "opt", None)
        if option_file and "/" in option_file:
            overrides = getattr(parsed.value.args[0], "force_yml", None)
            read_option_file(option_file, overrides)


# Page -> subcommands whose examples are run on small images. test_new_options.py runs data/OWN_PAIRS.md, and
# test_losses.py, test_optimizers.py and test_gan.py train with each section of options/LOSSES_AND_METRICS.md.
EXECUTED = {
    "README.md": ("restore", "degrade"),  # its export is the first one in EXPORT.md
    "restormixer_arch/inference/RESTORE.md": ("restore",),
    "restormixer_arch/export/EXPORT.md": ("export", "restore"),
    "restormixer_arch/HUB.md": ("restore",),
}
ELSEWHERE = ("your-name/", "comfyui_node", "push_to_hub")  # need a hub or programs that are not installed


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with the files that the examples use."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in (
        "photo.jpg",
        "holiday/a.png",
        "holiday/b.jpg",
        "scans/1.tif",
        "photos/c.png",
        "data/samples/pictures/hazy/d.png",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        small = generator.integers(0, 256, (5, 7, 3), np.uint8)
        cv2.imwrite(name, cv2.resize(small, (80, 56), interpolation=cv2.INTER_CUBIC))
    torch.save({"params": load_file(installed_weights("derain"))}, "net_g_latest.pth")
    return tmp_path


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if "EXPORT" in page else page for page in EXECUTED]
)
def test_examples_run(page, place, capsys):
    """The Python examples of a page are run first, then its commands, each in their order."""
    if any("film.mp4" in command for command in commands(page)):
        write_video(Path("film.mp4"), count=2)
    if any("onnx" in command for command in commands(page)):
        pytest.importorskip("onnxruntime")
    if "base network" in read(page):
        torch.save({"params": RestorMixer().state_dict()}, "net_g_latest.pth")
    names = {"image": np.zeros((40, 48, 3), np.uint8), "picture": torch.zeros(1, 3, 32, 40)}
    for block in re.findall(r"```python\n(.*?)```", read(page), re.S):
        if "spandrel" in block or "openvino" in block:
            continue  # run by test_spandrel_adapter.py and test_onnx_network.py
        lines = [line for line in block.splitlines() if not any(word in line for word in ELSEWHERE)]
        exec("\n".join(lines), names)  # noqa: S102
    for command in commands(page):
        arguments = shlex.split(command)[1:]
        if arguments[0] in EXECUTED[page] and not any(word in command for word in ELSEWHERE):
            assert cli.main([*arguments, *(["--overwrite"] if arguments[0] == "restore" else [])]) == 0, (
                command,
                capsys.readouterr().err,
            )


def test_readme_is_short_and_names_every_page():
    assert len(read("README.md").splitlines()) <= 200
    assert all(page in read("README.md") for page in PAGES if page not in ("README.md", *NOT_LINKED))


NOT_LINKED = ("data/samples/ATTRIBUTION.md",)  # linked where the samples are described
