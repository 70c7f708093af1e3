"""Which files ``basicsr restore`` reads, and where their results go. Nothing is decoded here."""

from __future__ import annotations

import glob
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from restormixer_arch.data.images import (
    HEIF_SUFFIXES,
    IMAGE_SUFFIXES,
    MORE_IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    VIDEO_FORMATS,
)
from restormixer_arch.errors import UserError, not_found
from restormixer_arch.output import note

SUFFIXES = (*IMAGE_SUFFIXES, *MORE_IMAGE_SUFFIXES, *VIDEO_FORMATS)


@dataclass(frozen=True)
class Job:
    """One file to restore.

    Attributes:
        source: the image or video.
        target: where its restoration goes.
        pair: where the image or video of before and after goes, or None.
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


def find_jobs(inputs: Sequence[str], out: Path, *, compare: bool = False) -> list[Job]:
    """Find the files to restore and where their results go. What is left out of a folder is shown with its number.

    Args:
        inputs: files, folders (with their sub-folders), and patterns such as ``"holiday/**/*.jpg"``.
        out: the folder to write into; it is not read if it is inside an input folder.
        compare: also write ``<name>_compare.<suffix>``.

    Raises:
        UserError: an input does not exist, cannot be read, is not an image or video, or contains none; two outputs
            would have the same name; or an output would replace an input.
    """
    jobs: dict[Path, Job] = {}  # by source: an input may be given twice
    for text in inputs:
        found = _named_files(text, out)
        for source, name in found:
            target = out / name
            pair = target.with_name(f"{target.stem}_compare{target.suffix}") if compare else None
            jobs.setdefault(source.parent.resolve() / source.name, Job(source, target, pair))  # a link keeps its name
    sources = {_key(source.resolve()) for source in jobs}
    writers: dict[str, Path] = {}
    for job in jobs.values():
        for output in job.outputs:
            place = _key(output.resolve())
            if place in sources:
                raise UserError(f"-o: {output} is an input itself and would be replaced; give another folder")
            if place in writers:
                raise UserError(
                    f"{job.source}: would be written to {output}, and so would {writers[place]}; "
                    "restore them into different folders"
                )
            writers[place] = job.source
    return list(jobs.values())


def _key(path: Path) -> str:
    """Return what two names of one file share: Windows and macOS do not distinguish capitals."""
    return str(path).casefold() if sys.platform in ("win32", "darwin") else str(path)


def _named_files(text: str, out: Path) -> list[tuple[Path, Path]]:
    """Return the files of one argument, and their names below the output folder."""
    if not text:  # of a shell variable that is not set
        raise UserError("INPUT: expected the name of a file or folder, got none")
    given = Path(text).expanduser()
    if os.path.isdir(given):  # and not is_dir(), which raises for a name that is too long
        files, left_out = _files_below(given, out)
        found = [(file, file.relative_to(given)) for file in files]
        nothing = f"{text}: no image or video in this folder ({' '.join(SUFFIXES)})"
    elif os.path.exists(given):
        if given.suffix.lower() not in SUFFIXES:
            raise UserError(f"{text}: is not an image or video by its name, expected one of {' '.join(SUFFIXES)}")
        return [(given, Path(given.name))]
    elif glob.has_magic(text):
        matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))
        files, left_out = _readable(match for match in matches if match.is_file())
        found = [(file, Path(file.name)) for file in files]
        nothing = f"{text}: matches no image or video ({' '.join(SUFFIXES)})"
    else:
        raise UserError(f"{text}: {not_found(text)}")
    parts = [f"{number} {kind}" for kind, number in sorted(left_out.items())]
    if not found:
        raise UserError(nothing + (f"; {', '.join(parts)}" if parts else ""))
    if parts:
        note(f"{text}: left out {', '.join(parts)}")
    return found


def _files_below(folder: Path, out: Path) -> tuple[list[Path], Counter[str]]:
    """Return the images and videos in a folder and its sub-folders, and how many other ones of each kind."""

    def refuse(error: OSError) -> None:  # rglob would silently skip the folder
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error

    paths, links = [], 0
    for place, folders, names in os.walk(folder, onerror=refuse):
        paths += [Path(place, name) for name in names]
        links += sum(Path(place, name).is_symlink() for name in folders)
    results = None if out.resolve() == folder.resolve() else out.resolve()
    files, left_out = _readable(
        path for path in sorted(paths) if path.is_file() and (results is None or results not in path.resolve().parents)
    )
    if links:
        left_out["linked folders (give them as inputs of their own)"] = links
    return files, left_out


def _readable(paths: Iterable[Path]) -> tuple[list[Path], Counter[str]]:
    """Split files into images and videos that can be read here, and the number of others by suffix."""
    needed = {**dict.fromkeys(HEIF_SUFFIXES, ("pillow_heif", "heif")), **dict.fromkeys(VIDEO_FORMATS, ("av", "video"))}
    files, left_out = [], Counter()
    for path in paths:
        suffix = path.suffix.lower()
        module, extra = needed.get(suffix, ("", ""))
        if path.name.startswith("."):
            continue
        if module and importlib.util.find_spec(module) is None:
            left_out[f"{suffix} (pip install 'restormixer[{extra}]' to read them)"] += 1
        elif suffix in SUFFIXES:
            files.append(path)
        elif suffix in OTHER_SUFFIXES:
            left_out[f"{suffix} (not supported)"] += 1
    return files, left_out


def make_folder(folder: Path) -> None:
    """Make an output folder. Raises UserError if it cannot be made or written into."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o: {str(folder)!r} cannot be created ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"-o: {str(folder)!r} cannot be written into (permission denied)")
