"""A dataset that degrades the clean images of a folder or an LMDB on the fly, according to labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.data.dataset_options import as_numbers, check_crop, check_shared_options, open_source
from restormixer_arch.data.degradations.common import log_uniform
from restormixer_arch.data.degradations.compose import Composition, add_composition, draw_composition, read_compositions
from restormixer_arch.data.degradations.labels import WeightedLabel, parse_mixture
from restormixer_arch.data.images.folder import without_suffix
from restormixer_arch.data.images.opencv import enlarge
from restormixer_arch.data.pairing import result_names
from restormixer_arch.errors import UserError

compat.apply()  # basicsr can be imported from here on

from basicsr.utils.registry import DATASET_REGISTRY  # noqa: E402


@dataclass(frozen=True)
class Sample:
    """A pair of float32 RGB images (H, W, 3) in [0, 1], its degradations, and the name of the clean image."""

    gt: np.ndarray
    lq: np.ndarray
    composition: Composition
    name: str

    @property
    def label(self) -> str:
        return self.composition.label


@DATASET_REGISTRY.register()
class DegradedDataset(Dataset):
    """Clean images, degraded on the fly.

    A sample depends only on (``seed``, epoch, index), not on the number of worker processes. ``basicsr train``
    passes the epoch with each index; other training loops can do so with the sampler and the wrapper of
    :mod:`restormixer_arch.training.loader`. A plain index belongs to epoch 0, also in BasicSR's own loop.

    In training, an item is a random crop degraded by a label that is drawn by weight. In validation and test, every
    combination of an image and a label is an item, the same in every epoch, so labels are compared on the same images.
    The image is cropped, flipped and rotated before it is degraded, so rain always falls down. The degraded image
    is rounded to 8 bits, as a file would be.

    Args:
        opt: options:
            dataroot_gt: folder or LMDB of the clean images.
            io_backend: ``{type: disk}`` or ``{type: lmdb}``.
            degradations: ``cdd11``, a list of labels, or a table label -> {weight, strength}; see
                :func:`restormixer_arch.data.degradations.labels.parse_mixture`.
            phase: ``train``, ``val`` or ``test``; set by BasicSR.
            scale: size of the clean image relative to the degraded one; set by BasicSR. If it is greater than 1, every
                label must include ``down`` or ``blind``.
            gt_size: side of the square crops in pixels, a multiple of ``scale``; in validation, images are cropped at
                the center, or not at all if it is not set.
            use_hflip, use_rot: random horizontal flips, and rotations by 90 degrees, in training.
            resize: [low, high], range of the random resize factor of training images before the crop, in (0, 2]; a
                downsized photograph has finer detail and less of its original noise and compression, an enlarged one is
                soft. Default: [1, 1].
            exposure: [low, high], range in (0, 2] of the random factor, uniform in stops, that multiplies the values of
                a training image before it is degraded; values above 1 are clipped. The clean images thus include dark
                scenes, and degradations are not confused with darkness. Default: [1, 1].
            unclipped_noise: share of the samples labeled ``noise`` whose noise is neither clipped nor rounded to 8
                bits, as the denoising benchmarks define it. Default: 0.
            compositions: JSON file of fixed parameters, label -> image -> degradation -> parameters, which validation
                and test use instead of random ones, such as the ``compositions.json`` of a fixed dataset.
            seed: random seed. Default: 0, or ``manual_seed`` if ``basicsr train`` trains on the dataset.
            recursive: whether to include subfolders.

    Item:
        ``lq`` (3, h, w) and ``gt`` (3, scale * h, scale * w): float32 tensors, RGB, in [0, 1]; ``label``; ``gt_path``;
        ``lq_path``, which is not a file but names results: ``<label>/<image>_<label>.png``.

    Raises:
        UserError: if an option is missing or invalid, or an image cannot be read.
    """

    indexed_by_epoch = True

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        self.opt = dict(opt)
        _check_options(self.opt)
        self.scale, self.training = self.opt["scale"], self.opt["phase"] == "train"
        self.mixture = parse_mixture(self.opt["degradations"], self.scale)
        weights = np.array([ingredient.weight for ingredient in self.mixture])
        self._probabilities = weights / weights.sum()
        self._gt = open_source(self.opt, "dataroot_gt")
        self._stems = dict(zip(self._gt.names, result_names(self._gt.names, ""), strict=True))
        self.compositions = read_compositions(Path(self.opt["compositions"])) if self.opt.get("compositions") else None

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(ingredient.label for ingredient in self.mixture)

    def __len__(self) -> int:
        return len(self._gt.names) * (1 if self.training else len(self.mixture))

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Tensor | str]:
        if isinstance(index, tuple):
            epoch, number = index
        elif 0 <= index < len(self):
            epoch, number = 0, index
        else:
            raise IndexError(f"index must be in [0, {len(self)}), got {index}")
        sample = self.sample(epoch, number)
        stem = self._stems[sample.name]
        return {
            "lq": _tensor(sample.lq),
            "gt": _tensor(sample.gt),
            "label": sample.label,
            "lq_path": f"{sample.label}/{stem}_{sample.label}.png",
            "gt_path": self._gt.locate(sample.name),
        }

    def sample(self, epoch: int, number: int) -> Sample:
        """Return the pair of (``seed``, epoch, number); in validation every epoch is the same.

        Args:
            epoch: epoch, from 0.
            number: sample number, from 0; numbers beyond the end repeat the images with other random draws.
        """
        names = self._gt.names
        if self.training:
            rng = np.random.default_rng([self.opt["seed"], epoch, number])
            ingredient = self.mixture[rng.choice(len(self.mixture), p=self._probabilities)]
            name = names[number % len(names)]
            gt = self._vary(self._read(name), rng)
        else:
            rng = np.random.default_rng([self.opt["seed"], 0, number])
            ingredient = self.mixture[number % len(self.mixture)]
            name = names[number // len(self.mixture) % len(names)]
            gt = self._middle(self._read(name), name)
        composition = self._composition(rng, ingredient, name)
        if ingredient.label == "noise" and rng.uniform() < self.opt["unclipped_noise"]:
            composition = composition.unclipped()
            return Sample(gt, add_composition(gt, composition), composition, name)
        lq = np.round(add_composition(gt, composition) * 255) / np.float32(255)
        return Sample(gt, lq, composition, name)

    def _composition(self, rng: np.random.Generator, ingredient: WeightedLabel, name: str) -> Composition:
        if self.compositions is None or self.training:
            return draw_composition(rng, ingredient.label, ingredient.draw_strength(rng), self.scale)
        try:
            return self.compositions[ingredient.label][without_suffix(name)]
        except KeyError:
            raise UserError(
                f"{self.opt.get('compositions') or 'compositions'}: no parameters of {ingredient.label!r} for {name!r}"
            ) from None

    def _read(self, name: str) -> np.ndarray:
        return self._gt.read(name)[..., ::-1]

    def _vary(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a random crop, randomly resized, flipped, rotated and exposed."""
        size, (low, high) = self.opt["gt_size"], self.opt["resize"]
        # side of the area that is resized to the crop
        source = size if low == high == 1 else max(round(size / rng.uniform(low, high)), 1)
        if source > size:
            source = max(min(source, *image.shape[:2]), size)
        image = enlarge(image, source)
        top, left = (int(rng.integers(side - source + 1)) for side in image.shape[:2])
        mirrored, turns = bool(rng.integers(2)), int(rng.integers(4))
        crop = image[top : top + source, left : left + source]
        if source != size:
            interpolation = cv2.INTER_AREA if source > size else cv2.INTER_CUBIC
            crop = cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=interpolation).clip(0, 1)
        if mirrored and self.opt["use_hflip"]:
            crop = crop[:, ::-1]
        if self.opt["use_rot"]:
            crop = np.rot90(crop, turns)
        low, high = self.opt["exposure"]
        if not low == high == 1:
            crop = np.minimum(crop * np.float32(log_uniform(rng, low, high)), 1)
        return np.ascontiguousarray(crop)

    def _middle(self, image: np.ndarray, name: str) -> np.ndarray:
        """Return the center crop of at most ``gt_size`` whose sides are multiples of the scale."""
        height, width = (side - side % self.scale for side in image.shape[:2])
        if min(height, width) == 0:
            shape = f"{image.shape[0]}x{image.shape[1]}"
            raise UserError(f"{self._gt.describe(name)}: is {shape}, expected at least scale {self.scale} on each side")
        size = self.opt.get("gt_size")
        if size is not None:
            height, width = min(height, size), min(width, size)
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        return np.ascontiguousarray(image[top : top + height, left : left + width])


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _check_options(opt: dict[str, Any]) -> None:
    check_shared_options(opt, "DegradedDataset", ["dataroot_gt", "degradations"])
    if opt.get("gt_size") is not None:
        check_crop(opt)
    opt["seed"] = 0 if opt.get("seed") is None else opt["seed"]
    if not isinstance(opt["seed"], Integral) or opt["seed"] < 0:
        raise UserError(f"seed is {opt['seed']!r}, expected a whole number from 0")
    for key in ("resize", "exposure"):
        opt[key] = [1.0, 1.0] if opt.get(key) is None else opt[key]
        ends = as_numbers(opt[key])
        if len(ends) != 2 or not 0 < ends[0] <= ends[1] <= 2:
            raise UserError(f"{key} is {opt[key]!r}, expected [low, high] with 0 < low <= high <= 2")
    opt["unclipped_noise"] = opt.get("unclipped_noise") or 0.0
    if not isinstance(opt["unclipped_noise"], Real) or not 0 <= opt["unclipped_noise"] <= 1:
        raise UserError(f"unclipped_noise is {opt['unclipped_noise']!r}, expected a share in [0, 1]")
