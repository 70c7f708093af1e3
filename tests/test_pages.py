"""The documents: every link leads somewhere, every command is one that the command line takes, README is short."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from restormixer_arch import cli
from restormixer_arch.config.check import read_option_file

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
    """The names that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page):
    blocks = re.findall(r"```bash\n(.*?)```", read(page), re.S)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [" ".join(line.partition("  #")[0].split()) for line in COMMAND.findall(joined)]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for path, anchor in LINK.findall(read(page)):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {path}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {path}#{anchor}"


class Parsed(Exception):
    """The arguments are in order; the command itself is not run."""


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_are_taken(page, monkeypatch):
    """Each ``basicsr`` line of a page parses, and the option files that it names are there and in order."""
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


def test_readme_is_short():
    assert len(read("README.md").splitlines()) <= 200
    assert all(page in read("README.md") for page in PAGES if page not in ("README.md", *NOT_LINKED))


NOT_LINKED = ("data/samples/ATTRIBUTION.md",)  # linked where the samples are described
