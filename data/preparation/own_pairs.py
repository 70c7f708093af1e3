"""Split the user's images for training and validation: a folder of clean ones, with or without degraded ones.

They become a set like the public ones: ``train_gt``, ``train_lq``, ``val_gt`` and ``val_lq``. Without degraded images
there are only clean ones, from which validation pairs are created once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from restormixer_arch.data.preparation.find_pairs import Found, images_in, pair_folders, stored_name
from restormixer_arch.data.preparation.layouts import Layout, Part, PublicSet, before_last_underscore, no_in_front, same
from restormixer_arch.errors import UserError

VAL_SHARE, MAX_VAL = 10, 50  # one in ten images, at most 50, is used for validation


ENDINGS = ("_lq", "_rain", "_input", "_noisy", "_blur", "_hazy", "_low", "_snow")  # of degraded images


def without_ending(clean: str = "") -> Callable[[str], str]:
    """Return a rule: ``0001_lq`` belongs to ``0001``; with ``clean="_gt"``, it and ``0001`` belong to ``0001_gt``."""

    def rule(stem: str) -> str:
        bare = next((stem[: -len(ending)] for ending in ENDINGS if stem.lower().endswith(ending)), stem)
        return f"{bare}{clean}"

    return rule


RULES = (
    same,
    *(without_ending(clean) for clean in ("", "_gt", "_GT", "_clean", "_Clean")),
    no_in_front,
    before_last_underscore,
)


def find_own_images(gt: Path, lq: Path | None, val: int | None) -> list[Found]:
    """Return the parts ``train`` and ``val`` of one or two folders.

    Images are paired by name, with the first of :data:`RULES` that fits all. Clean images are chosen for validation,
    together with all their degraded images. The choice depends only on the names. Images that are added later may
    replace others in validation, which are then used for training.

    Args:
        gt: folder of the clean images.
        lq: folder of the degraded images, or None.
        val: number of clean images for validation; None for one in ten, at least one and at most 50.

    Raises:
        UserError: if an image has no partner, two have the same name, or there are too few.
    """
    found = _pair(gt, lq)
    clean = {unit.gt for unit in found.units}
    count = len(clean)
    wanted = min(max(count // VAL_SHARE, 1), MAX_VAL) if val is None else val
    if wanted >= count:
        raise UserError(f"{gt}: has {count} images, of which {wanted} are for validation: none is left for training")
    chosen = set(sorted(clean, key=_name_hash)[:wanted])
    parts = {
        "train": [unit for unit in found.units if unit.gt not in chosen],
        "val": [unit for unit in found.units if unit.gt in chosen],
    }
    return [
        replace(found, part=Part(name, (), *((480, 240) if name == "train" else ())), units=units)
        for name, units in parts.items()
        if units
    ]


def _name_hash(clean: Path) -> bytes:
    return hashlib.sha256(stored_name(clean.stem).encode()).digest()


def _pair(gt: Path, lq: Path | None) -> Found:
    public = PublicSet("pairs", "pairs", ())
    if lq is None:
        return pair_folders(public, Part("train", ()), Layout(""), gt, {})
    clean, degraded = images_in(gt), images_in(lq)
    for rule in RULES:
        if degraded and {rule(stem) for stem in degraded} <= clean.keys():
            break
    else:
        rule = same  # its error names the first image without a partner
    return pair_folders(public, Part("train", ()), Layout("", "", rule), gt, {"": lq})
