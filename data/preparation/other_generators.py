"""Test pairs by other people's generators of rain, snow, fog and blur: those of albumentations and kornia.

A network that was trained with this package's degradations must not be tested with them alone. The other generators are
simpler and mostly harsher; what counts is that no restored picture is worse than its input. Both libraries are loaded
here only: ``pip install kornia`` and ``pip install --no-deps albumentations==2.0.8 albucore==0.0.24`` with
``stringzilla simsimd`` (the last release under the MIT licence; its own requirements would bring a second OpenCV).
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from restormixer_arch.data.images.folder import without_suffix
from restormixer_arch.data.lmdb_io import open_images, write_lmdb
from restormixer_arch.data.preparation.find_pairs import stored_name
from restormixer_arch.errors import UserError
from restormixer_arch.output import atomic_folder, note

INSTALL = {
    "albumentations": "pip install --no-deps albumentations==2.0.8 albucore==0.0.24 && pip install stringzilla simsimd",
    "kornia": "pip install kornia",
}
RECORD = "made_with.json"
LEAST_SIDE = 20  # of an image, in pixels: kornia's drops are that long
LABELS = {"albumentations": ("rain", "snow", "haze", "blur", "defocus"), "kornia": ("rain", "snow", "blur")}


def write_other_sets(gt: str, out: Path, libraries: tuple[str, ...], gt_size: int = 256, seed: int = 0) -> list[str]:
    """Write ``<out>/<library>_<label>/{gt,lq}.lmdb`` for every label that a library has a generator for.

    Args:
        gt: folder or LMDB of clean images.
        out: folder to write to; a set is whole or not there at all, and one that is there is left as it is if it was
            made in the same way.
        libraries: of :data:`LABELS`; those that are not installed are left out with a note.
        gt_size: the middle of each image is taken, this many pixels a side at most, and at least 20.
        seed: of all chance; each image has its own from it.

    Returns:
        The names of the sets.

    Raises:
        UserError: a library is unknown, none of them is installed, an image cannot be read or is smaller than 20 pixels
            a side, two have one name but for the extension or dots, or half of a set or another one is there.
    """
    if gt_size < LEAST_SIDE:
        raise UserError(f"--gt-size: expected at least {LEAST_SIDE}, got {gt_size}")
    for library in libraries:
        if library not in INSTALL:
            raise UserError(f"{library!r} is not a library with generators here, expected {' or '.join(INSTALL)}")
    absent = [library for library in libraries if importlib.util.find_spec(library) is None]
    for library in absent:
        text = f"{library}, which is not installed: {INSTALL[library]}"
        if len(absent) == len(libraries):
            raise UserError(f"needs {text}")
        note(f"left out the sets by {text}")
    libraries = tuple(library for library in libraries if library not in absent)
    images = _middles(gt, gt_size)
    record: dict[str, Any] = {"gt_size": gt_size, "seed": seed}
    record["images"] = {name: zlib.crc32(image.tobytes()) for name, image in images.items()}
    sets = []
    for library in libraries:
        for label in LABELS[library]:
            sets.append(f"{library}_{label}")
            folder = out / sets[-1]
            if folder.exists():
                _check_whole(folder, record)
                continue
            degrade = GENERATORS[library]
            # The generators work on RGB, LMDBs hold BGR.
            lq = {
                name: degrade(image[..., ::-1], label, seed + number)[..., ::-1]
                for number, (name, image) in enumerate(images.items())
            }
            with atomic_folder(folder) as part:
                write_lmdb(part / "gt.lmdb", [(f"{label}/{name}", image) for name, image in images.items()])
                write_lmdb(part / "lq.lmdb", [(f"{label}/{name}", np.ascontiguousarray(i)) for name, i in lq.items()])
                (part / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return sets


def _middles(gt: str, size: int) -> dict[str, np.ndarray]:
    """Return name without extension and dots -> middle of the image, uint8 BGR (H, W, 3)."""
    source = open_images(gt, "--gt")
    stems: dict[str, str] = {}
    for name in source.names:
        other = stems.setdefault(stored_name(without_suffix(name)), name)
        if other != name:
            same = "but for the extension" if without_suffix(other) == without_suffix(name) else "with dots as _"
            raise UserError(f"--gt: {gt}: {name!r} has the same name as {other!r} {same}")
    images = {}
    for stem, name in stems.items():
        image = np.round(source.read(name) * 255).astype(np.uint8)
        if min(image.shape[:2]) < LEAST_SIDE:
            shape = f"{image.shape[0]}x{image.shape[1]}"
            raise UserError(f"{source.describe(name)}: is {shape}, expected at least {LEAST_SIDE} pixels a side")
        top, left = ((side - min(side, size)) // 2 for side in image.shape[:2])
        images[stem] = np.ascontiguousarray(image[top : top + size, left : left + size])
    return images


def _check_whole(folder: Path, record: dict[str, Any]) -> None:
    """Raise UserError: a set that is not whole, or was made in another way than ``record`` says."""
    for name in ("gt.lmdb", "lq.lmdb", RECORD):
        if not (folder / name).exists():
            raise UserError(f"{folder}: is there, but has no {name}; remove it to have it made again")
    try:
        before = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        other = [key for key in record if before.get(key) != record[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / RECORD}: cannot be read ({error}); remove the set to have it made again") from error
    if other:
        shown = ", ".join(key if key == "images" else f"{key} {before.get(key)!r}" for key in other)
        raise UserError(f"{folder}: was made with other settings ({shown}); remove it or choose another --out")


def by_albumentations(image: np.ndarray, label: str, seed: int) -> np.ndarray:
    """Return an image, uint8 RGB (H, W, 3), degraded by albumentations with the defaults of its transforms.

    Motion blur alone is kept in register with the image: its defaults move it by 0.8 pixels on average.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import albumentations

        kinds = {"rain": "RandomRain", "snow": "RandomSnow", "haze": "RandomFog", "blur": "MotionBlur"}
        centred = {"allow_shifted": False, "direction_range": (0, 0)} if label == "blur" else {}
        transform = getattr(albumentations, kinds.get(label, "Defocus"))(p=1, **centred)
        pipeline = albumentations.Compose([transform], seed=seed)
        return pipeline(image=np.ascontiguousarray(image))["image"]


def by_kornia(image: np.ndarray, label: str, seed: int) -> np.ndarray:
    """Return an image, uint8 RGB (H, W, 3), degraded by kornia; motion blur is kept in register with it."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from kornia import augmentation

        transforms = {
            "rain": lambda: augmentation.RandomRain(p=1),
            "snow": lambda: augmentation.RandomSnow(snow_coefficient=(0.2, 0.6), brightness=(1.5, 3), p=1),
            "blur": lambda: augmentation.RandomMotionBlur((5, 15), 180.0, (0.0, 0.0), border_type="reflect", p=1),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255
            result = transforms[label]()(tensor)[0].permute(1, 2, 0).clamp(0, 1)
    return np.round(result.numpy() * 255).astype(np.uint8)


GENERATORS: dict[str, Callable[[np.ndarray, str, int], np.ndarray]] = {
    "albumentations": by_albumentations,
    "kornia": by_kornia,
}
