"""Record in JSON lines what a preparation created from which files, so that it can be resumed.

The first line contains the settings, each further line a unit that is on disk. The finished file is kept as
``<part>.jsonl`` next to the LMDBs and documents what they were created from.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from restormixer_arch.data.preparation.find_pairs import Unit
from restormixer_arch.data.preparation.store import meta_line
from restormixer_arch.data.preparation.sub_images import Prepared, Recipe
from restormixer_arch.output import write_text_atomically

VERSION = 2  # version 1 recorded files by folder and name, which is ambiguous for folders of the same name


class Journal:
    """A file with one record per unit.

    Args:
        path: file of the journal; if it exists, it is read up to the first truncated or damaged line.
        settings: content of the first line.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self.records: dict[str, dict[str, Any]] = {}
        self.found_settings, self.finished = None, False
        for record in _records(path) if path.is_file() else ():
            if self.found_settings is None:
                if not _is_settings(record):
                    break
                self.found_settings = record
            elif "finished" in record:
                self.finished = True
            elif _is_whole(record):
                self.records[record["unit"]] = record
            else:
                break
        self._file = None

    def fits(self, units: Iterable[Unit], whole: bool = False) -> bool:
        """Return whether the journal has these settings and only records of these units, whose files are unchanged.

        Args:
            units: units to prepare.
            whole: whether all of them must be recorded.
        """
        by_name = {unit.name: unit for unit in units}
        if not self.has_settings() or not self.records.keys() <= by_name.keys():
            return False
        if whole and self.records.keys() != by_name.keys():
            return False
        # when a preparation is resumed, skipped units are tried again, even if their files have changed
        return all(
            ("skipped" in record and not whole) or _same_files(record["files"], by_name[name])
            for name, record in self.records.items()
        )

    def has_settings(self) -> bool:
        """Return whether the journal was written with these settings, by this version or an earlier one."""
        return bool(self.found_settings) and {**self.found_settings, "version": VERSION} == self.settings

    def clear(self) -> None:
        """Discard the records that were read."""
        self.records, self.finished = {}, False

    def start(self) -> None:
        """Write the known records and open the file for more; skipped units are dropped, so they are tried again."""
        self.records = {name: record for name, record in self.records.items() if "skipped" not in record}
        lines = [json.dumps(record) for record in (self.settings, *self.records.values())]
        write_text_atomically(self.path, "".join(f"{line}\n" for line in lines))
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, outcomes: Iterable[Prepared]) -> None:
        """Record units whose images are on disk, or that were skipped."""
        for outcome in outcomes:
            record: dict[str, Any] = {"unit": outcome.unit.name, "files": signature(outcome.unit)}
            if outcome.problem:
                record["skipped"] = outcome.problem
            else:
                record["images"] = {k: [meta_line(entry) for entry in made] for k, made in outcome.entries.items()}
                record["bytes"] = {k: sum(len(e.content) for e in made) for k, made in outcome.entries.items()}
                sizes = [entry.size for entry in outcome.entries["gt"]]
                record["sizes"] = [list(min(sizes)), list(max(sizes))]
            self.records[outcome.unit.name] = record
            self._write(record)

    def finish(self) -> None:
        """Record that all units are on disk, and close the file."""
        self._write({"finished": True})
        self.close()

    def close(self) -> None:
        if self._file:
            self._file.close()

    def lines(self, kind: str) -> list[str]:
        """Return the lines of ``meta_info.txt`` for a kind of images."""
        return [line for record in self.made() for line in record["images"].get(kind, ())]

    def made(self) -> list[dict[str, Any]]:
        return [record for record in self.records.values() if "images" in record]

    def skipped(self) -> list[str]:
        return [record["skipped"] for record in self.records.values() if "skipped" in record]

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def settings_of(recipe: Recipe, form: str) -> dict[str, Any]:
    """Return the content of the journal's first line."""
    return {"version": VERSION, "format": form, **asdict(recipe), "scales": list(recipe.scales)}


def recipe_of(settings: dict[str, Any]) -> Recipe:
    """Return the recipe in settings from :func:`settings_of`."""
    return Recipe(settings["crop"], settings["step"], tuple(settings["scales"]), settings["multiple"])


def signature(unit: Unit) -> dict[str, list[int] | None]:
    """Return file -> size in bytes and modification time in ns, to detect changed files even if the set was moved.

    Files are named by their role: ``gt/0001.png``, ``lq/0001.png``, ``lq/low_haze/0001.png``. The value is None for a
    file that cannot be read.
    """
    found = {f"gt/{unit.gt.name}": _state(unit.gt)}
    for kind, name, path in unit.degraded:
        found[f"{kind}/{name}{path.suffix}"] = _state(path)
    return found


def _same_files(known: dict[str, list[int] | None], unit: Unit) -> bool:
    """Return whether a unit's files are those of a record, also of a version 1 record that contains all of them."""
    if known == signature(unit):
        return True
    by_folder = {f"{path.parent.name}/{path.name}": _state(path) for path in unit.files}
    return len(by_folder) == len(unit.files) and known == by_folder


def _state(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _records(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line.decode())
        except ValueError:  # not JSON, or not UTF-8
            return
        if not isinstance(record, dict):
            return
        yield record


def _is_settings(record: dict[str, Any]) -> bool:
    return record.keys() >= settings_of(Recipe(), "").keys() and isinstance(record["scales"], list)


def _is_whole(record: dict[str, Any]) -> bool:
    """Return whether a unit's record has all fields that :meth:`Journal.add` writes."""
    kinds = {"unit": str, "files": dict}
    kinds |= {"skipped": str} if "skipped" in record else {"images": dict, "bytes": dict, "sizes": list}
    return all(isinstance(record.get(key), kind) for key, kind in kinds.items())
