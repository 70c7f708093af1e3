"""Restore the pictures of the datasets, measure them and write them down."""

from __future__ import annotations

import math
from collections.abc import Iterator
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
    """Restore, measure and write every picture.

    Args:
        options: for ``basicsr test``.
        folder: pictures go to ``restored/<dataset>/<name>/``, or to ``input/<dataset>/`` and ``truth/<dataset>/``.
        name: of the competitor; None for the inputs themselves.
        network: restores (1, C, H, W); None for the inputs themselves, which are enlarged where ``scale`` is above 1.
        device: that the network is on.

    Returns:
        dataset -> for each picture, sorted by name: ``name``, ``values`` by metric, and the path of what was written
        relative to ``folder``: ``restored``, or ``input`` and ``truth``.

    Raises:
        UserError: a dataset cannot be read, or a picture cannot be measured.
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
    """Build the datasets of an option file of ``basicsr test``, each with its phase.

    Messages name ``file``, the file of the comparison, which the options may hold in addition.
    """
    expand_paths(options)
    for phase, section in options["datasets"].items():
        section.update(phase="val", scale=options.get("scale", 1))
        yield phase, build_dataset(phase, section, options.get("file", options["name"]))


def items(dataset: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each picture under a name that no other of the dataset has."""
    seen: dict[str, int] = {}
    for index in range(len(dataset)):
        item = dataset[index]
        stem = item.get("result_name", Path(item["lq_path"]).stem)
        seen[stem] = seen.get(stem, 0) + 1
        yield (stem if seen[stem] == 1 else f"{stem}~{seen[stem]}"), item


def _restore(network: nn.Module, lq: Tensor) -> Tensor:
    with torch.inference_mode():
        output = network(lq)
    if not isinstance(output, Tensor):
        output = output[-1]  # of outputs at several scales, the full one comes last in BasicSR's family
    return output.float().cpu()


def _write(folder: Path, relative: str, image: np.ndarray) -> str:
    write_png(folder / relative, image)
    return relative
