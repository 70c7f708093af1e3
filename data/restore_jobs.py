"""Which files a restoration reads and writes, settled before the first is read.

Names are kept: ``photo.jpg`` goes to ``out/photo.jpg``, and ``holiday/sea/1.jpg`` of the folder ``holiday`` to
``out/sea/1.jpg``.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from restormixer_arch.data.image_io import IMAGE_SUFFIXES
from restormixer_arch.data.video import CODECS
from restormixer_arch.errors import UserError, not_found

SUFFIXES = (*IMAGE_SUFFIXES, *CODECS)


@dataclass(frozen=True)
class Job:
    """One file to restore.

    Attributes:
        source: the picture or video.
        target: where its restoration goes.
        pair: where the picture of before and after goes, or None.
    """

    source: Path
    target: Path
    pair: Path | None = None

    @property
    def is_video(self) -> bool:
        return self.source.suffix.lower() in CODECS

    @property
    def outputs(self) -> list[Path]:
        return [self.target] if self.pair is None else [self.target, self.pair]


def find_jobs(inputs: Sequence[str], out: Path, *, compare: bool = False) -> list[Job]:
    """Settle what is read and written.

    Args:
        inputs: files, folders (with their sub-folders), and patterns such as ``"holiday/**/*.jpg"``.
        out: the folder to write into; inside an input folder it is not read.
        compare: also write ``<name>_compare.<suffix>``.

    Raises:
        UserError: an input is not there or cannot be read, is no picture or video, or holds none; two outputs would
            have the same name; or an output would replace an input.
    """
    jobs: dict[Path, Job] = {}  # by source, which may be named twice
    for text in inputs:
        found = _named_files(text, out)
        for source, name in found:
            target = out / name
            pair = target.with_name(f"{target.stem}_compare{target.suffix}") if compare else None
            jobs.setdefault(source.parent.resolve() / source.name, Job(source, target, pair))  # links have own names
    sources = {source.resolve() for source in jobs}
    writers: dict[Path, Path] = {}
    for job in jobs.values():
        for output in job.outputs:
            place = output.resolve()
            if place in sources:
                raise UserError(f"-o: {output} is an input itself and would be replaced; give another folder")
            if place in writers:
                raise UserError(
                    f"{job.source}: would be written to {output}, and so would {writers[place]}; "
                    "restore them into different folders"
                )
            writers[place] = job.source
    return list(jobs.values())


def _named_files(text: str, out: Path) -> list[tuple[Path, Path]]:
    """The files of one argument, and their names below the output folder."""
    given = Path(text).expanduser()
    if given.is_dir():
        files = _files_below(given, out)
        if not files:
            raise UserError(f"{text}: no picture or video in this folder ({' '.join(SUFFIXES)})")
        return [(file, file.relative_to(given)) for file in files]
    if given.exists():
        if given.suffix.lower() not in SUFFIXES:
            raise UserError(f"{text}: is no picture or video by its name, expected one of {' '.join(SUFFIXES)}")
        return [(given, Path(given.name))]
    if not glob.has_magic(text):
        raise UserError(f"{text}: {not_found(text)}")
    matches = sorted(Path(match) for match in glob.glob(str(given), recursive=True))
    files = [match for match in matches if match.suffix.lower() in SUFFIXES and match.is_file()]
    if not files:
        raise UserError(f"{text}: matches no picture or video ({' '.join(SUFFIXES)})")
    return [(file, Path(file.name)) for file in files]


def _files_below(folder: Path, out: Path) -> list[Path]:
    def refuse(error: OSError) -> None:  # rglob would leave its pictures out without a word
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error

    paths = [Path(place, name) for place, _, names in os.walk(folder, onerror=refuse) for name in names]
    results = None if out.resolve() == folder.resolve() else out.resolve()
    return [
        path
        for path in sorted(paths)
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
        and (results is None or results not in path.resolve().parents)
    ]


def make_folder(folder: Path) -> None:
    """Make an output folder that can be written into. Raises UserError: it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o: {str(folder)!r} cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"-o: {str(folder)!r} cannot be written into (permission denied)")
