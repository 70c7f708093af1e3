"""Restore, measure and write the images of the datasets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.utils import tensor2img
from torch import Tensor, nn

from restormixer_arch.config.rules import expand_paths
from restormixer_arch.data.images.opencv import write_png
from restormixer_arch.errors import UserError
from restormixer_arch.models.metrics import enlarge, measure
from restormixer_arch.training.loader import build_dataset

INPUT, TRUTH, RESTORED = "input", "truth", "restored"


def measure_pictures(
    options: dict[str, Any], folder: Path, name: str | None, network: nn.Module | None, device: torch.device
) -> dict[str, list[dict[str, Any]]]:
    """Restore, measure and write every image.

    Args:
        options: options of ``basicsr test``.
        folder: folder in which images are written to ``restored/<dataset>/<name>/``, or to ``input/<dataset>/`` and
            ``truth/<dataset>/``.
        name: name of the competitor, or None for the inputs themselves.
        network: network that restores (1, C, H, W), or None for the inputs, which are enlarged if ``scale`` exceeds 1.
        device: device of the network.

    Returns:
        dataset -> for each image, sorted by name: ``name``, ``values`` by metric, and the paths of the written images
        relative to ``folder``: ``restored``, or ``input`` and ``truth``.

    Raises:
        UserError: if a dataset cannot be read, or an image cannot be measured.
    """
    metrics, scale, results = options["val"]["metrics"], options.get("scale", 1), {}
    for phase, dataset in datasets(options):
        where, rows = options["datasets"][phase]["name"], []
        for picture, item in items(dataset):
            lq, gt = item["lq"][None], item.get("gt")
            large = (scale * lq.shape[-2], scale * lq.shape[-1])
            restored = enlarge(lq, large) if network is None else _restore(network, lq.to(device))
            image = tensor2img([restored.nan_to_num(0.0)])  # as BasicSR's models write and measure it
            truth = None if gt is None else tensor2img([gt[None]])
            if truth is not None and truth.shape != image.shape:
                who = f"competitors.{name}" if name else f"datasets.{phase}"
                raise UserError(f"{who}: restores {picture!r} to {image.shape}, ground truth: {truth.shape}; see scale")
            row: dict[str, Any] = {"name": picture}
            if network is None:
                row["input"] = _write(folder, f"{INPUT}/{where}/{picture}.png", image)
                row["truth"] = None if truth is None else _write(folder, f"{TRUTH}/{where}/{picture}.png", truth)
            else:
                row["restored"] = _write(folder, f"{RESTORED}/{where}/{name}/{picture}.png", image)
            finite = bool(torch.isfinite(restored).all())
            nothing = dict.fromkeys(metrics, math.nan)
            row["values"] = measure(metrics, image, truth, picture, where) if finite else nothing
            rows.append(row)
        results[where] = sorted(rows, key=lambda row: row["name"])  # a folder may be read in any order
    return results


def datasets(options: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Build the datasets of an option file of ``basicsr test``, and yield each with its phase.

    Messages name the file of the comparison if the options contain it as ``file``.
    """
    expand_paths(options)
    for phase, section in options["datasets"].items():
        section.update(phase="val", scale=options.get("scale", 1))
        yield phase, build_dataset(phase, section, options.get("file", options["name"]))


def items(dataset: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each image of a dataset under a unique name."""
    names: set[str] = set()
    for index in range(len(dataset)):
        item = dataset[index]
        stem = item.get("result_name", Path(item["lq_path"]).stem)
        numbered = (f"{stem}~{number}" for number in count(2))
        name = next(name for name in chain([stem], numbered) if name not in names)
        names.add(name)
        yield name, item


def _restore(network: nn.Module, lq: Tensor) -> Tensor:
    with torch.inference_mode():
        output = network(lq)
    if not isinstance(output, Tensor):
        output = output[-1]  # networks in BasicSR's style with outputs at several scales return the full scale last
    return output.float().cpu()


def _write(folder: Path, relative: str, image: np.ndarray) -> str:
    write_png(folder / relative, image)
    return relative
