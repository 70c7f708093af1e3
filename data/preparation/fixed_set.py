"""Write a fixed validation or test set: clean images degraded with every label, as folders or LMDBs of pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from restormixer_arch import __version__
from restormixer_arch.data.degradations.compose import Composition, compositions_text, read_compositions
from restormixer_arch.data.degradations.labels import parse_mixture
from restormixer_arch.data.degraded_dataset import DegradedDataset, Sample
from restormixer_arch.data.images.folder import FolderImages, without_suffix
from restormixer_arch.data.images.opencv import encode
from restormixer_arch.data.lmdb_io import LmdbImages, key_problem
from restormixer_arch.data.preparation.find_pairs import stored_name
from restormixer_arch.data.preparation.store import STORES, difference, meta_line, open_reader
from restormixer_arch.data.preparation.sub_images import Entry
from restormixer_arch.errors import UserError
from restormixer_arch.output import atomic_folder

RECORD = "made_with.json"
COMPOSITIONS = "compositions.json"
Compositions = dict[str, dict[str, Composition]]  # label -> image -> parameters
OPTIONS = ("degradations", "seed", "scale", "gt_size", "recursive")
PNG_LEVEL = 6
BATCH = 2**24  # bytes of encoded images that are held in memory before they are written
FORMATS = {False: ("folder", ""), True: ("lmdb", ".lmdb")}  # lmdb -> (format, suffix)


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

    PairedRestorationDataset reads them (folders with ``recursive: true``) and reports results per label. The pairs are
    the same as those of a DegradedDataset with the same options in validation. ``made_with.json`` records the options,
    the clean images with their sizes in bytes, and the format. ``compositions.json`` contains the parameters of every
    degradation, which suffice to create the pairs again without drawing parameters.

    Args:
        gt: folder or LMDB of the clean images.
        out: folder to create; it is created completely or not at all.
        degradations, seed, scale, gt_size, recursive: options of DegradedDataset.
        lmdb: whether to write LMDBs.
        compositions: label -> image -> parameters to use instead of drawn ones.

    Returns:
        The number of pairs, and the labels.

    Raises:
        UserError: if ``out`` exists, an option is invalid, an image cannot be read, or two have the same name.
    """
    if out.exists():
        raise UserError(f"{out}: already exists; remove it first or choose another folder")
    options = {"degradations": degradations, "seed": seed, "scale": scale, "gt_size": gt_size, "recursive": recursive}
    dataset = _dataset(gt, options, compositions)
    with atomic_folder(out) as unfinished:
        _write_pairs(unfinished, dataset, gt, lmdb)
        record = {"restormixer": __version__, "dataroot_gt": str(gt), **options}
        record |= {"format": FORMATS[lmdb][0], "images": clean_images(gt, recursive)}
        (unfinished / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return len(dataset), dataset.labels


def _write_pairs(folder: Path, dataset: DegradedDataset, gt: str, lmdb: bool) -> None:
    """Write the images and the parameters of the degradations."""
    form, suffix = FORMATS[lmdb]
    waiting: dict[str, list[Entry]] = {"gt": [], "lq": []}
    lines: dict[str, list[str]] = {kind: [] for kind in waiting}
    used: Compositions = {}
    with ExitStack() as stack:
        stores = {kind: STORES[form](folder / f"{kind}{suffix}") for kind in waiting}
        for store in stores.values():
            stack.callback(store.close_unfinished)
        for name, sample, images in _pairs(dataset, gt, partial(_pair_name, dots=not lmdb)):
            used.setdefault(sample.label, {})[without_suffix(sample.name)] = sample.composition
            if lmdb and (problem := key_problem(name)):
                raise UserError(f"{gt}: the name {name!r} {problem}; rename the image")
            for kind, image in images.items():
                content = encode(".png", image, (cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL))
                waiting[kind].append(Entry(name, ".png", image.shape[:2], content))
                lines[kind].append(meta_line(waiting[kind][-1], PNG_LEVEL))
                if sum(len(entry.content) for entry in waiting[kind]) > BATCH:
                    stores[kind].put(waiting[kind])
                    waiting[kind].clear()
        for kind, store in stores.items():
            store.put(waiting[kind])
            store.close(lines[kind])
    (folder / COMPOSITIONS).write_text(compositions_text(used) + "\n", encoding="utf-8")


def recorded_options(out: Path) -> dict[str, Any]:
    """Return the options that a fixed set was created with. Raises UserError if ``out`` is not a fixed set."""
    return _record(out)[0]


def labels_of(recorded: dict[str, Any]) -> list[str]:
    """Return the labels in the options that :func:`recorded_options` returns."""
    return [ingredient.label for ingredient in parse_mixture(recorded["degradations"], recorded["scale"])]


def difference_of_set(out: Path, gt: str, options: dict[str, Any], lmdb: bool) -> str:
    """Describe how an existing fixed set differs from the one that would be created, "" if it does not.

    Args:
        out: folder of the set.
        gt: folder or LMDB of the clean images.
        options: options that are not left at their defaults.
        lmdb: whether it would be written as LMDBs.

    Raises:
        UserError: if ``out`` is not a fixed set, or the clean images cannot be read.
    """
    recorded, known = _record(out)
    if not options.items() <= recorded.items():
        return "was made with other settings"
    form, suffix = FORMATS[lmdb]
    if not all((out / f"{kind}{suffix}").is_dir() for kind in ("gt", "lq")):
        return f"was made with another --format than {form}"
    now = clean_images(gt, recorded["recursive"])
    if known is not None:
        return "" if known == now else "was made of other clean images"
    # An earlier version did not record the images, but the names of the pairs contain theirs.
    there = open_reader(out / f"gt{suffix}", form).names
    pair_name = _pair_names(there, lmdb)
    wanted = {pair_name(label, name) for label in labels_of(recorded) for name in now}
    return "" if set(there) == wanted else "was made of other clean images"


def clean_images(gt: str, recursive: bool = False) -> dict[str, int]:
    """Return name -> size in bytes of the images of a folder or an LMDB. Raises UserError if it cannot be read."""
    if Path(gt).suffix == ".lmdb":
        source = LmdbImages(gt, "dataroot_gt")
        return {name: len(source.content(name) or b"") for name in source.names}
    folder = FolderImages(gt, "dataroot_gt", recursive)
    return {name: (folder.root / name).stat().st_size for name in folder.names}


def _record(out: Path) -> tuple[dict[str, Any], dict[str, int] | None]:
    """Return the options of a fixed set, and its clean images or None if they are not recorded."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        options = {key: record[key] for key in OPTIONS}
        labels_of(options)
        return options, record.get("images")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out}: is not a fixed set of pairs: {RECORD} cannot be read ({error})") from error


def check_fixed_set(gt: str, out: Path, lmdb: bool, compositions: Compositions | None = None) -> tuple[int, list[str]]:
    """Create the pairs again from the records next to them and compare. Returns the number of images and the problems.

    Args:
        gt: folder or LMDB of the clean images.
        out: folder of the set.
        lmdb: whether the set consists of LMDBs.
        compositions: parameters for a set without ``compositions.json``, as written by earlier versions.

    Raises:
        UserError: if ``out`` is not a fixed set, or the clean images cannot be read.
    """
    form, suffix = FORMATS[lmdb]
    readers = {kind: open_reader(out / f"{kind}{suffix}", form) for kind in ("gt", "lq")}
    left = {kind: set(reader.names) for kind, reader in readers.items()}
    count, problems = 0, []
    if (out / COMPOSITIONS).is_file():
        compositions = read_compositions(out / COMPOSITIONS)
    dataset = _dataset(gt, recorded_options(out), compositions)
    for name, _, images in _pairs(dataset, gt, _pair_names(readers["gt"].names, lmdb)):
        for kind, image in images.items():
            count += 1
            left[kind].discard(name)
            content = encode(".png", image)
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


def _pairs(
    dataset: DegradedDataset, gt: str, pair_name: Callable[[str, str], str]
) -> Iterator[tuple[str, Sample, dict[str, np.ndarray]]]:
    """Yield the name, sample and two BGR uint8 images of each pair. Raises UserError if two have the same name."""
    seen: set[str] = set()
    for number in range(len(dataset)):
        sample = dataset.sample(0, number)
        name = pair_name(sample.label, sample.name)
        if name in seen:
            raise UserError(f"{gt}: more than one image would be named {name!r}")
        seen.add(name)
        yield name, sample, {"gt": _to_uint8(sample.gt), "lq": _to_uint8(sample.lq)}


def _pair_name(label: str, name: str, dots: bool) -> str:
    stem = without_suffix(name).replace("/", "_")
    return f"{label}/{stem if dots else stored_name(stem)}_{label}"


def _pair_names(there: Sequence[str], lmdb: bool) -> Callable[[str, str], str]:
    """Return the function that names an existing set's pairs: LMDBs of earlier versions may have dots in their keys."""
    return partial(_pair_name, dots=not lmdb or any("." in name for name in there))


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.round(image[..., ::-1].clip(0, 1) * 255).astype(np.uint8)
