"""Make the sample data that ships with the project: clean and rainy crops of free photographs.

    python -m restormixer_arch.data.preparation.make_samples --photos DIR --out DIR

``--photos`` is a folder with the photographs below as PNG, and with a table ``LICENCES.tsv`` whose columns are file,
package, version, suite (PyPI or one of Debian's), path_in_package, licence, author and source. The same photographs
give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from restormixer_arch.data.degradations.rain import add_rain, draw_shower
from restormixer_arch.data.images.folder import existing_folder
from restormixer_arch.data.lmdb_io import write_lmdb
from restormixer_arch.data.preparation.sub_images import reduced
from restormixer_arch.errors import UserError

SEED = 20250415
SHORT_SIDE = 480  # photographs are reduced to it, about the size of the pictures in deraining's test sets
PICTURE_SIZE = (256, 384)  # height, width

# All are in the public domain or CC0. No photograph is in two of the three parts but for the pictures, which are
# reduced from photographs of the validation part, so that a network trained on the sample has not seen them.
TRAINING = (
    "budgie-backgrounds__abstract-spiral",
    "budgie-backgrounds__beacon-street-sunset",
    "budgie-backgrounds__blue-periwinkle",
    "budgie-backgrounds__canyon-wren",
    "budgie-backgrounds__casa-mila",
    "budgie-backgrounds__oakland-zoo-otters",
    "budgie-backgrounds__singaporean-cityscape",
    "budgie-backgrounds__tea-gardens",
    "palapeli-data__cincinnati-bridge",
    "palapeli-data__citrus-fruits",
    "scikit-image__chelsea",
    "scikit-image__coffee",
    "scikit-image__rocket",
    "scipy__face-raccoon",
)
VALIDATION = (
    "budgie-backgrounds__lake-sherburne",
    "budgie-backgrounds__perched-osprey",
    "budgie-backgrounds__roman-colosseum",
    "palapeli-data__european-honey-bee",
    "scikit-image__astronaut",
)
PICTURES = ("budgie-backgrounds__perched-osprey", "budgie-backgrounds__roman-colosseum")


@dataclass(frozen=True)
class Pair:
    """A clean image and the same in rain, BGR uint8 (H, W, 3), and the name of both."""

    name: str
    clean: np.ndarray
    rainy: np.ndarray


def read_photograph(photos: Path, name: str, short_side: int = SHORT_SIDE) -> np.ndarray:
    """Return a photograph, BGR uint8, reduced to ``short_side`` where it is larger. Raises UserError: not there."""
    path = photos / f"{name}.png"
    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if image is None:
        raise UserError(f"{path}: no such photograph, or not a PNG")
    return reduce_to(image, short_side)


def reduce_to(image: np.ndarray, short_side: int) -> np.ndarray:
    """Return the image with its shorter side reduced to ``short_side`` by area averaging; never enlarged."""
    height, width = image.shape[:2]
    factor = short_side / min(height, width)
    if factor >= 1:
        return image
    return cv2.resize(image, (round(width * factor), round(height * factor)), interpolation=cv2.INTER_AREA)


def most_detailed(image: np.ndarray, size: int, count: int) -> list[tuple[int, int]]:
    """Return (top, left) of up to ``count`` squares that do not overlap, the one with the strongest edges first."""
    gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    edges = cv2.magnitude(cv2.Sobel(gray, cv2.CV_32F, 1, 0), cv2.Sobel(gray, cv2.CV_32F, 0, 1))
    sums = cv2.integral(edges)  # sums[i, j] is the sum over rows < i and columns < j
    scores = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    places: list[tuple[int, int]] = []
    while len(places) < count and scores.max() >= 0:
        top, left = (int(i) for i in np.unravel_index(scores.argmax(), scores.shape))
        places.append((top, left))
        scores[max(top - size + 1, 0) : top + size, max(left - size + 1, 0) : left + size] = -1
    return places


def in_rain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a BGR uint8 image in rain drawn from ``rng``, rounded to 8 bits."""
    rgb = image[..., ::-1].astype(np.float32) / 255
    return np.round(add_rain(rgb, draw_shower(rng))[..., ::-1] * 255).astype(np.uint8)


def make_crops(photograph: np.ndarray, name: str, size: int, count: int) -> list[Pair]:
    """Return crops of a photograph, each in rain of its own that depends on the name alone."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    pairs = []
    for number, (top, left) in enumerate(most_detailed(photograph, size, count)):
        clean = np.ascontiguousarray(photograph[top : top + size, left : left + size])
        pairs.append(Pair(f"{name}_{number}", clean, in_rain(clean, rng)))
    return pairs


def make_picture(photograph: np.ndarray, name: str) -> Pair:
    """Return the middle of a whole photograph, reduced to ``PICTURE_SIZE``, clean and in rain."""
    height, width = PICTURE_SIZE
    factor = max(height / photograph.shape[0], width / photograph.shape[1])
    reduced = reduce_to(photograph, round(min(photograph.shape[:2]) * factor))
    top, left = (reduced.shape[0] - height) // 2, (reduced.shape[1] - width) // 2
    clean = np.ascontiguousarray(reduced[top : top + height, left : left + width])
    rng = np.random.default_rng([SEED, zlib.crc32(f"{name} picture".encode())])
    return Pair(name, clean, in_rain(clean, rng))


def write_pairs(out: Path, part: str, pairs: Sequence[Pair]) -> None:
    """Write ``<part>_gt.lmdb`` and ``<part>_lq.lmdb``."""
    write_lmdb(out / f"{part}_gt.lmdb", [(pair.name, pair.clean) for pair in pairs])
    write_lmdb(out / f"{part}_lq.lmdb", [(pair.name, pair.rainy) for pair in pairs])


def write_reduced(out: Path, part: str, pairs: Sequence[Pair]) -> None:
    """Write ``<part>_x2_lq.lmdb``: the clean crops at half their size, for super-resolution."""
    write_lmdb(out / f"{part}_x2_lq.lmdb", [(pair.name, reduced(pair.clean, 2)) for pair in pairs])


def write_pictures(out: Path, pairs: Sequence[Pair]) -> None:
    """Write ``pictures/clean`` and ``pictures/rainy``."""
    for kind in ("clean", "rainy"):
        folder = out / "pictures" / kind
        folder.mkdir(parents=True, exist_ok=True)
        for pair in pairs:
            cv2.imwrite(str(folder / f"{pair.name}.png"), getattr(pair, kind), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def attribution(table: Path) -> str:
    """Return ATTRIBUTION.md for the photographs used, from ``LICENCES.tsv``. Raises UserError: one is not in it."""
    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = {row["file"]: row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    except OSError as error:
        raise UserError(f"{table}: cannot be read ({error.strerror})") from error
    lines = [
        "# Where the sample photographs come from",
        "",
        "Every photograph is in the public domain or under CC0 1.0. Crops are named after theirs; `_lq` and `rainy`",
        "hold the same with synthetic rain (`data/degradations/rain.py`), `_x2_lq` the same at half the size. Made by",
        "`data/preparation/make_samples.py`, which reduces the photographs to a shorter side of "
        f"{SHORT_SIDE} pixels and rounds to 8 bits.",
        "`degradations.jpg` is perched-osprey under all degradations, made by `basicsr degrade sheet`; `demo.jpg`",
        "shows crops of roman-colosseum and european-honey-bee, rainy, restored by the demo, and clean; `restored.jpg`",
        "perched-osprey and roman-colosseum with synthetic rain, and restored by the installed weights. `compare.png`",
        "is the top of a report of `basicsr compare`.",
        "",
        "| photograph | part | package | file in the package | author | licence | source |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for part, names in (("training", TRAINING), ("validation", VALIDATION)):
        for name in names:
            row = rows.get(f"{name}.png")
            if row is None:
                raise UserError(f"{table}: has no line for {name}.png")
            suite = row["suite"] if row["suite"] == "PyPI" else f"Debian {row['suite']}"
            package = f"{row['package']} {row['version']} ({suite})"
            shown = f"{part}, picture" if name in PICTURES else part
            cells = (name, shown, package, row["path_in_package"], row["author"], row["licence"], row["source"])
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def make_samples(photos: Path, out: Path) -> None:
    """Write the six LMDBs, the pictures and ATTRIBUTION.md to ``out``."""
    text = attribution(photos / "LICENCES.tsv")
    training = [p for name in TRAINING for p in make_crops(read_photograph(photos, name), name, size=128, count=5)]
    validation = [p for name in VALIDATION for p in make_crops(read_photograph(photos, name), name, size=192, count=2)]
    pictures = [make_picture(read_photograph(photos, name), name) for name in PICTURES]
    out.mkdir(parents=True, exist_ok=True)
    write_pairs(out, "rain_train", training)
    write_pairs(out, "rain_val", validation)
    write_reduced(out, "sr_train", training)
    write_reduced(out, "sr_val", validation)
    write_pictures(out, pictures)
    (out / "ATTRIBUTION.md").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the sample data from free photographs.")
    parser.add_argument("--photos", type=Path, required=True, help="folder of the photographs and LICENCES.tsv")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    try:
        make_samples(existing_folder(options.photos, "--photos"), options.out)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
