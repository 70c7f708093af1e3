"""The record of a preparation: what was made from which files, a line of JSON each, so that it can be resumed.

The first line holds the settings; each further one a unit that is on disk. It ends up as ``<part>.jsonl`` beside the
LMDBs and shows later what they were made from.
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

VERSION = 2  # 1 recorded files by folder and name, of which two folders of one name have the same


class Journal:
    """A file of records by unit name.

    Args:
        path: the file; if it is there, it is read, up to a line that was cut short or damaged.
        settings: the first line's content.
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
        """Whether it has these settings and only records of these units, whose files are still the same.

        Args:
            units: those that are to be prepared.
            whole: all of them must be in it.
        """
        by_name = {unit.name: unit for unit in units}
        if not self.has_settings() or not self.records.keys() <= by_name.keys():
            return False
        if whole and self.records.keys() != by_name.keys():
            return False
        # when a preparation is resumed, skipped units are tried again whatever their files are
        return all(
            ("skipped" in record and not whole) or _same_files(record["files"], by_name[name])
            for name, record in self.records.items()
        )

    def has_settings(self) -> bool:
        """Whether it was written with these settings, by this version or an earlier one."""
        return bool(self.found_settings) and {**self.found_settings, "version": VERSION} == self.settings

    def clear(self) -> None:
        """Forget what was read."""
        self.records, self.finished = {}, False

    def start(self) -> None:
        """Write what is known and be ready for more; skipped units are tried again."""
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
        """Record that all is on disk, and close."""
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
    """Return what the first line holds."""
    return {"version": VERSION, "format": form, **asdict(recipe), "scales": list(recipe.scales)}


def recipe_of(settings: dict[str, Any]) -> Recipe:
    """The reverse of :func:`settings_of`."""
    return Recipe(settings["crop"], settings["step"], tuple(settings["scales"]), settings["multiple"])


def signature(unit: Unit) -> dict[str, list[int] | None]:
    """Return file -> size and time of change, by which one sees whether it is still the same, wherever the set lies.

    Files are named by what they are: ``gt/0001.png``, ``lq/0001.png``, ``lq/low_haze/0001.png``. One that cannot be
    read has None.
    """
    found = {f"gt/{unit.gt.name}": _state(unit.gt)}
    for kind, name, path in unit.degraded:
        found[f"{kind}/{name}{path.suffix}"] = _state(path)
    return found


def _same_files(known: dict[str, list[int] | None], unit: Unit) -> bool:
    """Whether a unit's files are those of a record, also of one of version 1 that has all of them."""
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
        except ValueError:  # no JSON, or not UTF-8
            return
        if not isinstance(record, dict):
            return
        yield record


def _is_settings(record: dict[str, Any]) -> bool:
    return record.keys() >= settings_of(Recipe(), "").keys() and isinstance(record["scales"], list)


def _is_whole(record: dict[str, Any]) -> bool:
    """Whether a unit's record has all that :meth:`Journal.add` writes."""
    kinds = {"unit": str, "files": dict}
    kinds |= {"skipped": str} if "skipped" in record else {"images": dict, "bytes": dict, "sizes": list}
    return all(isinstance(record.get(key), kind) for key, kind in kinds.items())
