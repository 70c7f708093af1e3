"""The set ``photos``: free photographs out of public packages, split by photograph, with fixed pairs made of them.

``photos.tsv`` beside this file is the split: the part of each photograph, the package, version and path that it comes
from, and its licence. Photographs for validation and testing are in the public domain or under CC0, so that pictures of
them can be shown; pictures of gcompris-qt-data, which are strongly compressed, are trained on alone.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from restormixer_arch.data.find_pairs import Found, Unit
from restormixer_arch.data.images.folder import FolderImages
from restormixer_arch.data.labels import CDD11
from restormixer_arch.data.layouts import Part, PublicSet
from restormixer_arch.errors import UserError

TABLE = Path(__file__).with_name("photos.tsv")
PHOTOS = PublicSet("photos", "photos", (Part("train", (), crop=256, step=192), Part("val", ()), Part("test", ())))
LABELS = {"derain": ("rain",), "mixed": (*CDD11, "noise")}  # of the fixed pairs, by task
SIZES = {"val": 192, "test": 256}  # side of the crop out of the middle of each photograph
SEEDS = {"val": 1, "test": 2}  # of the degradations


@dataclass(frozen=True)
class FixedPairs:
    """Pairs that are made once, ``<part>_<task>/{gt,lq}``: the folder, and what they are made of and with."""

    out: Path
    gt: Path
    labels: tuple[str, ...]
    seed: int
    size: int


def read_table() -> list[dict[str, str]]:
    """Return the rows of ``photos.tsv``: part, file, package, version, suite, path_in_package, class, licence, ..."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def find_photos(root: Path) -> tuple[list[Found], list[Path]]:
    """Return the parts of the set, and the images under ``root`` that are not in the split.

    Raises:
        UserError: a photograph is missing: the set would be another one.
    """
    rows = read_table()
    missing = [row for row in rows if not (root / row["file"]).is_file()]
    if missing:
        first = missing[0]
        source = f"{first['path_in_package']} of {first['package']} {first['version']} ({first['suite']})"
        raise UserError(f"{root}: lacks {len(missing)} of {len(rows)} photographs, first {first['file']}, {source}")
    found = [
        Found(PHOTOS, part, [_unit(root / row["file"]) for row in rows if row["part"] == part.name], [root])
        for part in PHOTOS.parts
    ]
    known = {row["file"] for row in rows}
    others = [root / name for name in FolderImages(root, "--root").names if name not in known]
    return found, others


def fixed_pairs(folder: Path, form: str) -> Iterator[FixedPairs]:
    """Yield the fixed pairs that belong to a prepared set.

    Args:
        folder: of the set.
        form: ``lmdb`` or ``folder``.
    """
    suffix = ".lmdb" if form == "lmdb" else ""
    for part, size in SIZES.items():
        for task, labels in LABELS.items():
            yield FixedPairs(folder / f"{part}_{task}", folder / f"{part}_gt{suffix}", labels, SEEDS[part], size)


def _unit(path: Path) -> Unit:
    return Unit(path.stem.replace(".", "_"), path)
