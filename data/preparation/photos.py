"""Find the free photographs of the dataset ``photos``, from public packages, and define fixed pairs of them.

``photos.tsv`` next to this file defines the split: the part of each photograph, the package, version and path that it
comes from, and its license. Photographs for validation and testing are in the public domain or under CC0, so that their
images can be shown; those of gcompris-qt-data, which are strongly compressed, are only used for training.

``photos_pairs.json`` contains the degradation parameters of the fixed pairs, so that a test set remains the same when a
later version draws other parameters. ``test_derain`` and ``test_mixed`` use the parameter ranges of the first weights.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from restormixer_arch.data.degradations.compose import Composition, compositions_of
from restormixer_arch.data.images.folder import FolderImages
from restormixer_arch.data.preparation.find_pairs import Found, Unit
from restormixer_arch.data.preparation.layouts import Part, PublicSet
from restormixer_arch.errors import UserError

TABLE = Path(__file__).with_name("photos.tsv")
PHOTOS = PublicSet("photos", "photos", (Part("train", (), crop=256, step=192), Part("val", ()), Part("test", ())))
PAIRS = Path(__file__).with_name("photos_pairs.json")
SIZES = {"val": 192, "test": 256}  # side in pixels of the center crop of each photograph


@dataclass(frozen=True)
class FixedPairs:
    """Pairs that are created once, ``<part>_<task>/{gt,lq}``: folder, clean images, parameters, and crop size."""

    out: Path
    gt: Path
    compositions: dict[str, dict[str, Composition]]
    size: int

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.compositions)


def read_table() -> list[dict[str, str]]:
    """Return the rows of ``photos.tsv``: part, file, package, version, suite, path_in_package, class, licence, ..."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def find_photos(root: Path) -> tuple[list[Found], list[Path]]:
    """Return the parts of the set, and the images under ``root`` that are not in the split.

    Raises:
        UserError: if a photograph is missing, since the set would differ.
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
        folder: folder of the set.
        form: format of the set, ``lmdb`` or ``folder``.
    """
    suffix = ".lmdb" if form == "lmdb" else ""
    for name, table in json.loads(PAIRS.read_text(encoding="utf-8")).items():
        part = name.partition("_")[0]
        yield FixedPairs(folder / name, folder / f"{part}_gt{suffix}", compositions_of(table), SIZES[part])


def _unit(path: Path) -> Unit:
    return Unit(path.stem.replace(".", "_"), path)
