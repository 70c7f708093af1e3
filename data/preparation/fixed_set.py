"""Write a fixed validation or test set: clean images under every label, as folders or LMDBs of pairs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from restormixer_arch import __version__
from restormixer_arch.data.degradations.compose import Composition, compositions_text, read_compositions
from restormixer_arch.data.degraded_dataset import DegradedDataset, Sample
from restormixer_arch.data.images.folder import without_suffix
from restormixer_arch.data.images.opencv import write_png
from restormixer_arch.data.lmdb_io import write_lmdb
from restormixer_arch.data.preparation.store import difference, open_reader
from restormixer_arch.data.preparation.sub_images import Entry
from restormixer_arch.errors import UserError

RECORD = "made_with.json"
COMPOSITIONS = "compositions.json"
Compositions = dict[str, dict[str, Composition]]  # label -> image -> parameters
OPTIONS = ("degradations", "seed", "scale", "gt_size", "recursive")


def write_fixed_set(
    gt: str,
    out: Path,
    degradations: str | Sequence[str] | dict[str, Any] = "cdd11",
    *,
    seed: int = 0,
    scale: int = 1,
    gt_size: int | None = None,
    recursive: bool = False,
    lmdb: bool = False,
    compositions: Compositions | None = None,
) -> tuple[int, tuple[str, ...]]:
    """Write ``gt`` and ``lq`` (folders, or ``gt.lmdb`` and ``lq.lmdb``) with images ``<label>/<image>_<label>``.

    PairedRestorationDataset reads them, folders with ``recursive: true``, and shows results per label. The pairs are
    those of a DegradedDataset with the same options in validation. ``made_with.json`` records the options, and
    ``compositions.json`` the parameters of every degradation: the pairs can be made again from them alone.

    Args:
        gt: folder or LMDB of the clean images.
        out: folder to make; it is whole or not there at all.
        degradations, seed, scale, gt_size, recursive: as in the options of DegradedDataset.
        lmdb: write LMDBs; all images are held in memory on the way.
        compositions: label -> image -> parameters to take instead of drawn ones.

    Returns:
        the number of pairs, and the labels.

    Raises:
        UserError: ``out`` is there already, an option is wrong, an image cannot be read, or two have the same name.
    """
    if out.exists():
        raise UserError(f"{out}: is there already; remove it first or choose another folder")
    options = {"degradations": degradations, "seed": seed, "scale": scale, "gt_size": gt_size, "recursive": recursive}
    pairs: dict[str, list[tuple[str, np.ndarray]]] = {"gt": [], "lq": []}
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    dataset = _dataset(gt, options, compositions)
    used: Compositions = {}
    for name, sample, images in _pairs(dataset, gt):
        used.setdefault(sample.label, {})[without_suffix(sample.name)] = sample.composition
        for kind, image in images.items():
            if lmdb:
                pairs[kind].append((name, image))
            else:
                write_png(partial / kind / f"{name}.png", image)
    for kind, images in pairs.items():
        if lmdb:
            write_lmdb(partial / f"{kind}.lmdb", images, compression=6)
    record = {"restormixer": __version__, "dataroot_gt": str(gt), **options}
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (partial / COMPOSITIONS).write_text(compositions_text(used) + "\n", encoding="utf-8")
    partial.rename(out)
    return len(dataset), dataset.labels


def recorded_options(out: Path) -> dict[str, Any]:
    """Return the options that a fixed set was made with. Raises UserError: ``out`` is no fixed set."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        return {key: record[key] for key in OPTIONS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out}: is no fixed set of pairs: {RECORD} cannot be read ({error})") from error


def check_fixed_set(gt: str, out: Path, lmdb: bool, compositions: Compositions | None = None) -> tuple[int, list[str]]:
    """Make the pairs again from what is recorded beside them and compare. Returns the number of images, and problems.

    Args:
        gt: folder or LMDB of the clean images.
        out: folder of the set.
        lmdb: the set is written as LMDBs.
        compositions: parameters for a set that has no ``compositions.json``, as earlier versions wrote it.

    Raises:
        UserError: ``out`` is no fixed set, or the clean images cannot be read.
    """
    form, suffix = ("lmdb", ".lmdb") if lmdb else ("folder", "")
    readers = {kind: open_reader(out / f"{kind}{suffix}", form) for kind in ("gt", "lq")}
    left = {kind: set(reader.names) for kind, reader in readers.items()}
    count, problems = 0, []
    if (out / COMPOSITIONS).is_file():
        compositions = read_compositions(out / COMPOSITIONS)
    for name, _, images in _pairs(_dataset(gt, recorded_options(out), compositions), gt):
        for kind, image in images.items():
            count += 1
            left[kind].discard(name)
            content = cv2.imencode(".png", image)[1].tobytes()
            wrong = difference(readers[kind], Entry(name, ".png", image.shape[:2], content))
            if wrong:
                problems.append(f"{out / kind}{suffix}: image {name!r} {wrong}")
    for kind, names in left.items():
        if names:
            text = f"{len(names)} images have no source, the first is {min(names)!r}"
            problems.append(f"{out / kind}{suffix}: {text}")
    return count, problems


def _dataset(gt: str, options: dict[str, Any], compositions: Compositions | None) -> DegradedDataset:
    backend = {"type": "lmdb" if Path(gt).suffix == ".lmdb" else "disk"}
    dataset = DegradedDataset({**options, "dataroot_gt": gt, "io_backend": backend, "phase": "val", "name": "fixed"})
    dataset.compositions = compositions
    return dataset


def _pairs(dataset: DegradedDataset, gt: str) -> Iterator[tuple[str, Sample, dict[str, np.ndarray]]]:
    """Yield name, sample, and the two images, BGR uint8, of each pair. Raises UserError: two have the same name."""
    seen: set[str] = set()
    for number in range(len(dataset)):
        sample = dataset.sample(0, number)
        name = f"{sample.label}/{without_suffix(sample.name).replace('/', '_')}_{sample.label}"
        if name in seen:
            raise UserError(f"{gt}: more than one image would be named {name!r}")
        seen.add(name)
        yield name, sample, {"gt": _to_uint8(sample.gt), "lq": _to_uint8(sample.lq)}


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.round(image[..., ::-1] * 255).astype(np.uint8)
