"""Check the options that the datasets of this package share, and open the images that they name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from restormixer_arch.config.rules import crop_problem, database_problem
from restormixer_arch.data.images.folder import FolderImages
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.errors import UserError, did_you_mean

BACKENDS = ("disk", "lmdb")


def open_source(opt: Mapping[str, Any], key: str) -> FolderImages | LmdbImages:
    """Return the images of the folder or LMDB that a dataset option names. Raises UserError if it cannot be read."""
    root = opt[key]
    if opt["io_backend"]["type"] == "lmdb":
        return LmdbImages(root, key)
    if problem := database_problem(Path(root), "disk"):
        raise UserError(f"{key}: {problem}")
    return FolderImages(root, key, bool(opt.get("recursive")))


def check_shared_options(opt: Mapping[str, Any], kind: str, own: Sequence[str]) -> None:
    """Check the options that the datasets of this package share.

    Args:
        opt: options of the dataset.
        kind: class name of the dataset, for messages.
        own: names of further required options.

    Raises:
        UserError: if an option is missing, or a path, ``io_backend``, ``phase`` or ``scale`` is invalid.
    """
    needed = [*own, "io_backend", "phase", "scale"]
    if opt.get("phase") == "train":
        needed += ["gt_size", "use_hflip", "use_rot"]
    for key in needed:
        if opt.get(key) is None:
            raise UserError(f"{key} is missing in the options of {kind} {opt.get('name', '')!r}")
    if not isinstance(opt["io_backend"], Mapping):
        raise UserError(f"io_backend is {opt['io_backend']!r}, expected a table such as {{type: disk}}")
    backend = opt["io_backend"].get("type")
    if backend not in BACKENDS:
        raise UserError(
            f"io_backend.type is {backend!r}, expected {' or '.join(BACKENDS)}.{did_you_mean(backend, BACKENDS)}"
        )
    if opt["phase"] not in ("train", "val", "test"):
        raise UserError(f"phase is {opt['phase']!r}, expected train, val or test")
    if not isinstance(opt["scale"], Integral) or opt["scale"] < 1:
        raise UserError(f"scale is {opt['scale']!r}, expected a whole number from 1")
    for key in ("dataroot_gt", "dataroot_lq", "meta_info_file", "compositions"):
        if opt.get(key) is not None and not isinstance(opt[key], str | os.PathLike):
            raise UserError(f"{key} is {opt[key]!r}, expected the name of a file or folder")


def check_crop(opt: Mapping[str, Any]) -> None:
    """Raise UserError if ``gt_size`` is not a positive multiple of the scale."""
    size = opt["gt_size"]
    if not isinstance(size, Integral):
        raise UserError(f"gt_size: got {size!r}, expected a whole number of pixels")
    if problem := crop_problem(size, opt["scale"]):
        raise UserError(f"gt_size: {problem}")


def as_numbers(value: Any) -> list[Any]:
    """Return the numbers of a list, tuple or array as a list; return an empty list for any other value."""
    try:
        values = list(value)
    except TypeError:
        return []
    return values if all(isinstance(number, Real) for number in values) else []
