"""Find the files that ``basicsr restore`` reads and the paths of their results, without decoding anything."""

from __future__ import annotations

import glob
import importlib.util
import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from itertools import dropwhile
from pathlib import Path

from restormixer_arch.data.images import (
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    MORE_IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    VIDEO_FORMATS,
)
from restormixer_arch.data.images.skipped import count_unreadable, describe_skipped, is_file
from restormixer_arch.errors import SPECIAL_FILE, UserError, not_found
from restormixer_arch.inference.shards import Shard
from restormixer_arch.output import note, user_path

SUFFIXES = (*IMAGE_SUFFIXES, *MORE_IMAGE_SUFFIXES, *VIDEO_FORMATS)
LINKED = "linked folders (as inputs of their own they are read)"
MATCHED = "matching folders (as inputs of their own they are read)"
ALL = Shard()


@dataclass(frozen=True)
class Job:
    """One file to restore.

    Attributes:
        source: image or video to restore.
        target: path of the result.
        pair: path of the image or video of before and after, or None.
    """

    source: Path
    target: Path
    pair: Path | None = None

    @property
    def is_video(self) -> bool:
        return self.source.suffix.lower() in VIDEO_FORMATS

    @property
    def outputs(self) -> list[Path]:
        return [self.target] if self.pair is None else [self.target, self.pair]


class Jobs(Sequence[Job]):
    """The files to restore, stored in about 150 bytes each, so there may be millions."""

    def __init__(self, out: Path, *, compare: bool = False) -> None:
        self.out, self.compare = out, compare
        self._folders: list[str] = []  # of the inputs; inputs of one argument may share a string
        self._names: list[str] = []

    def append(self, folder: str, name: str) -> None:
        """Add ``folder/name``, whose result goes to ``out/name``."""
        self._folders.append(folder)
        self._names.append(name)

    def select(self, wanted: Callable[[Job], bool]) -> Jobs:
        """Return the jobs for which ``wanted`` returns True."""
        jobs = Jobs(self.out, compare=self.compare)
        for folder, name, job in zip(self._folders, self._names, self, strict=True):
            if wanted(job):
                jobs.append(folder, name)
        return jobs

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, place: int) -> Job:
        target = self.out / self._names[place]
        pair = target.with_name(f"{target.stem}_compare{target.suffix}") if self.compare else None
        return Job(Path(self._folders[place], self._names[place]), target, pair)


def find_jobs(inputs: Sequence[str], out: Path, *, compare: bool = False, shard: Shard = ALL) -> Jobs:
    """Find the files to restore and the paths of their results. Skipped files and folders are counted in a note.

    Args:
        inputs: files, folders (with subfolders, except hidden ones), and patterns such as ``"holiday/**/*.jpg"``.
        out: output folder; it is not read if it is inside an input folder, or inside the folder in which a pattern
            begins.
        compare: whether to also write ``<name>_compare.<suffix>``.
        shard: shard of the files to return; all files are checked.

    Raises:
        UserError: if an input does not exist, cannot be read, is not an image or video, or contains none; if two
            outputs would have the same name; if an output would replace an input; or if ``out`` has the name of an
            image or video.
    """
    if out.suffix.lower() in SUFFIXES and not out.exists():
        raise UserError(f"-o: expected a folder, got {str(out)!r}; results have the names of their inputs")
    _real_folder.cache_clear()  # the working directory and links may have changed since the last call
    jobs, sources = Jobs(out, compare=compare), set()
    links = set()  # targets of inputs that are links
    for text in inputs:
        for folder, name in _named_files(text, out):
            path = os.path.join(folder, name)
            key = hash(path_key(os.path.join(_real_folder(os.path.dirname(path)), os.path.basename(path))))
            if key not in sources:  # an input may be given twice; a link keeps its own name
                sources.add(key)
                jobs.append(folder, name)
                if os.path.islink(path):
                    links.add(hash(path_key(os.path.realpath(path))))
    writers: dict[int, int] = {}
    for place, job in enumerate(jobs):
        for output in job.outputs:
            key = hash(path_key(_real_path(output)))
            if key in sources or key in links:
                raise UserError(f"-o: {output} is an input itself and would be replaced; choose another folder")
            if key in writers:
                raise UserError(
                    f"{job.source}: would be written to {output}, and so would {jobs[writers[key]].source}; "
                    "restore them into different folders"
                )
            writers[key] = place
    return jobs if shard == ALL else jobs.select(lambda job: shard.holds(job.target.relative_to(out)))


def path_key(path: str | Path) -> str:
    """Return a key that is the same for all resolved names of one file.

    Windows and macOS ignore case. macOS may also fold "ß" to "ss", and does not distinguish composed from decomposed
    Unicode.
    """
    if sys.platform == "win32":
        return str(path).lower()
    return unicodedata.normalize("NFC", str(path)).casefold() if sys.platform == "darwin" else str(path)


def is_within(path: str | Path, folder: str | Path) -> bool:
    """Return whether a resolved path is below a resolved folder."""
    return path_key(path).startswith(path_key(os.path.join(folder, "")))


@lru_cache(maxsize=1024)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def _real_path(path: Path) -> str:
    return os.path.realpath(path) if os.path.islink(path) else os.path.join(_real_folder(str(path.parent)), path.name)


def _named_files(text: str, out: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of one argument as (input folder, name relative to it and to the output folder)."""
    if not text:  # such as from an unset shell variable
        raise UserError("INPUT: expected the name of a file or folder, got an empty string")
    given, left_out, number = user_path(text), Counter[str](), 0
    if os.path.isdir(given):  # Path.is_dir() raises for a name that is too long
        results = os.path.realpath(out)
        is_input = path_key(results) == path_key(os.path.realpath(given))
        found = _files_below(str(given), None if is_input else results, left_out)
        nothing = f"{text}: no image or video in this folder ({' '.join(SUFFIXES)})"
    elif os.path.exists(given):
        if not os.path.isfile(given):  # reading a pipe would wait for its writer
            raise UserError(f"{text}: {SPECIAL_FILE}")
        if given.suffix.lower() not in SUFFIXES:
            raise UserError(f"{text}: is not an image or video by its name, expected one of {' '.join(SUFFIXES)}")
        yield str(given.parent), given.name
        return
    elif glob.has_magic(text):
        results = out.resolve() if is_within(out.resolve(), split_pattern(text)[0]) else None
        matches = sorted(Path(match) for match in glob.iglob(str(given), recursive=True))
        found = (
            (str(match.parent), match.name)
            for match in matches
            if not _is_below(match, results) and is_file(match, SUFFIXES, left_out)
        )
        if "**" not in given.parts:  # ** also matches the files in the folders
            left_out[MATCHED] = sum(match.is_dir() and not _is_below(match / "x", results) for match in matches)
        nothing = f"{text}: matches no image or video ({' '.join(SUFFIXES)})"
        nothing += "" if results is None else f" outside {out}"
    else:
        raise UserError(f"{text}: {not_found(given)}")
    for folder, name in found:
        if _is_readable(name, left_out):
            number += 1
            yield folder, name
    skipped = describe_skipped(left_out)
    if not number:
        raise UserError(nothing + (f"; {skipped}" if skipped else ""))
    if skipped:
        note(f"{text}: left out {skipped}")


def split_pattern(text: str) -> tuple[Path, tuple[str, ...]]:
    """Return the resolved folder in which an input begins, and the parts of its pattern, () if it has no pattern."""
    given = user_path(text)
    count = 0 if os.path.exists(given) else len(list(dropwhile(lambda part: not glob.has_magic(part), given.parts)))
    return Path(*given.parts[: len(given.parts) - count]).resolve(), given.parts[len(given.parts) - count :]


def matches_pattern(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a pattern matches a path, both split into parts; ``**`` matches any number of folders."""
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return matches_pattern(names, pattern[1:]) or matches_pattern(names[1:], pattern)
    return fnmatch(names[0], pattern[0]) and matches_pattern(names[1:], pattern[1:])


def _is_below(path: Path, folder: Path | None) -> bool:
    """Return whether a file, or the target of a link, is below a resolved folder; False if ``folder`` is None."""
    if folder is None:
        return False
    return is_within(os.path.join(_real_folder(str(path.parent)), path.name), folder) or is_within(
        _real_path(path), folder
    )


def _files_below(folder: str, results: str | None, left_out: Counter[str]) -> Iterator[tuple[str, str]]:
    """Yield the files below a folder in alphabetical order, except hidden ones and those in ``results``."""
    waiting = [("", True, False)]  # no recursion, since folders may be nested deeper than Python's recursion limit
    while waiting:
        below, is_folder, is_link = waiting.pop()
        path = os.path.join(folder, below)
        if is_folder:
            try:
                waiting += reversed(_entries(folder, below, results))
            except OSError as error:
                if not below:
                    raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
                count_unreadable(error, left_out)
        elif is_link and os.path.isdir(path):
            left_out[LINKED] += 1
        elif is_link and results and is_within(os.path.realpath(path), results):
            continue
        elif is_file(path, SUFFIXES, left_out):
            yield folder, below


def _entries(folder: str, below: str, results: str | None) -> list[tuple[str, bool, bool]]:
    """List a folder as (name relative to ``folder``, is a folder, is a link). ``results`` is treated as empty."""
    place = os.path.join(folder, below)
    with os.scandir(place) as entries:
        kinds = ((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries)
        found = sorted(kind for kind in kinds if not kind[0].startswith("."))  # such as .Trash-1000, .thumbnails
    if results is not None and path_key(os.path.realpath(place)) == path_key(results):
        return []
    return [(os.path.join(below, name), is_folder, is_link) for name, is_folder, is_link in found]


def _missing_extra(suffix: str) -> str:
    """Return the extra that is needed to read files of a suffix but not installed, or ""."""
    needed = {**dict.fromkeys(HEIF_SUFFIXES, ("pillow_heif", "heif")), **dict.fromkeys(VIDEO_FORMATS, ("av", "video"))}
    module, extra = needed.get(suffix, ("", ""))
    return extra if module and importlib.util.find_spec(module) is None else ""


def _is_readable(name: str, left_out: Counter[str]) -> bool:
    """Return whether a file is a readable image or video; count unreadable images and videos in ``left_out``."""
    suffix = os.path.splitext(name)[1].lower()
    if extra := _missing_extra(suffix):
        left_out[f"{suffix} (pip install 'restormixer[{extra}]' to read them)"] += 1
        return False
    if suffix in OTHER_SUFFIXES:
        left_out[f"{suffix} (not supported)"] += 1
    return suffix in SUFFIXES


def make_folder(folder: Path) -> None:
    """Create an output folder. Raises UserError if it cannot be created or written to."""
    missing = [folder]
    try:
        while not missing[-1].parent.exists():  # ends at the root or at '.'
            missing.append(missing[-1].parent)
        for path in reversed(missing):  # mkdir(parents=True) would recurse for each folder
            path.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"-o: {str(folder)!r} cannot be created ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"-o: {str(folder)!r} cannot be written into (permission denied)")
