"""Your own images: a folder of clean ones, with or without a folder of degraded ones, for training and validation.

They become a set like the public ones: ``train_gt``, ``train_lq``, ``val_gt`` and ``val_lq``. Without degraded images
there are only clean ones, and pairs for validation are made of them once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from restormixer_arch.data.preparation.find_pairs import Found, images_in, pair_folders
from restormixer_arch.data.preparation.layouts import Layout, Part, PublicSet, before_last_underscore, no_in_front, same
from restormixer_arch.errors import UserError

VAL_SHARE, MOST_VAL = 10, 50  # every tenth image, and not more than 50, is for validation


def without_ending(*endings: str) -> Callable[[str], str]:
    """A rule: ``0001_lq`` belongs to ``0001_gt``, and to ``0001``."""

    def rule(stem: str) -> str:
        return next((stem[: -len(ending)] for ending in endings if stem.lower().endswith(ending)), stem)

    return rule


RULES = (same, without_ending("_lq", "_rain", "_input", "_noisy", "_blur"), no_in_front, before_last_underscore)


def find_own_images(gt: Path, lq: Path | None, val: int | None) -> list[Found]:
    """Return the parts ``train`` and ``val`` of two folders, or of one.

    Images are paired by name: the same one, or by the first of :data:`RULES` that fits all. Which ones are for
    validation depends on their names alone, so that it stays the same when others are added.

    Args:
        gt: folder of the clean images.
        lq: folder of the degraded ones.
        val: how many clean images are for validation; None for every tenth, at least one and at most 50.

    Raises:
        UserError: an image has no partner, two have one name, or there are too few.
    """
    found = _pair(gt, lq)
    count = len(found.units)
    wanted = min(max(count // VAL_SHARE, 1), MOST_VAL) if val is None else val
    if wanted >= count:
        raise UserError(f"{gt}: has {count} images, of which {wanted} are for validation: none is left for training")
    by_chance = sorted(found.units, key=lambda unit: hashlib.sha256(unit.name.encode()).digest())
    chosen = {unit.name for unit in by_chance[:wanted]}
    parts = {
        "train": [unit for unit in found.units if unit.name not in chosen],
        "val": [unit for unit in found.units if unit.name in chosen],
    }
    return [
        replace(found, part=Part(name, (), *((480, 240) if name == "train" else ())), units=units)
        for name, units in parts.items()
        if units
    ]


def _pair(gt: Path, lq: Path | None) -> Found:
    public = PublicSet("pairs", "pairs", ())
    if lq is None:
        return pair_folders(public, Part("train", ()), Layout(""), gt, {})
    clean, degraded = images_in(gt), images_in(lq)
    for rule in RULES:
        if degraded and {rule(stem) for stem in degraded} <= clean.keys():
            break
    else:
        rule = same  # whose message names the first image without a partner
    return pair_folders(public, Part("train", ()), Layout("", "", rule, gt_is_larger=True), gt, {"": lq})
