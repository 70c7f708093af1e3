"""Measure how much of an image a network uses: its effective receptive field, and the gain of larger crops.

The effective receptive field (Luo et al., NeurIPS 2016, arXiv 1701.04128) is the gradient of the restored center pixel
with respect to the input.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restormixer_arch.compare.options import context_options
from restormixer_arch.compare.pictures import datasets, items
from restormixer_arch.compare.results import Comparison, ResultModel, read_part
from restormixer_arch.compare.run import trained_entry
from restormixer_arch.compare.study import DIGITS, FIELD_SIDE, ContextUse, radius_of
from restormixer_arch.compare.training import JOBS
from restormixer_arch.errors import UserError
from restormixer_arch.output import note, write_text_atomically
from restormixer_arch.processes import run_in_process

SHARES = (50, 90, 99)  # percent of the gradient


class ContextRecord(ResultModel):
    """The record of one competitor: the context that it uses, and the settings that this depends on."""

    settings: dict[str, Any]
    use: ContextUse | None = None


def measure_context(
    options: dict[str, Any], context: dict[str, Any], comparison: Comparison, folder: Path, out: Path
) -> dict[str, ContextUse]:
    """Measure each competitor of a comparison in a separate process; reuse results with the same settings.

    Args:
        options: options of the comparison.
        context: section ``context`` of the option file.
        comparison: comparison whose competitors are measured.
        folder: folder of the comparison.
        out: output folder for the context that each competitor uses, ``<competitor>.json``, and its receptive field,
            ``<competitor>.png``, see :func:`.study_plots.write_field`.
    """
    uses = {}
    for competitor in comparison.competitors:
        name = competitor.name
        kept, field = out / f"{name}.json", out / f"{name}.png"
        settings = {
            "entry": trained_entry(options, name, folder).as_job(),
            "options": context_options({**options, "context": context}),
            "sizes": context["sizes"],
        }
        training = competitor.training and competitor.training.model_dump()
        measured = ContextRecord(settings=json.loads(json.dumps({**settings, "training": training})))
        measured.use = _read_use(kept, field, measured.settings)
        if measured.use is None:
            note(f"measuring the context of {name}")
            arguments = {**settings, "options": {**settings["options"], "file": options["file"]}}
            arguments["field_file"] = str(field)
            job = {"kind": "context", "threads": comparison.machine["threads"], "arguments": arguments}
            out.mkdir(exist_ok=True)
            measured.use = ContextUse(**run_in_process(JOBS, job, f"compare: context of {name}"))
            write_text_atomically(kept, measured.model_dump_json() + "\n")
        uses[name] = measured.use
    return uses


def _read_use(kept: Path, field: Path, settings: dict[str, Any]) -> ContextUse | None:
    try:
        found = read_part(ContextRecord, kept)
    except UserError:
        return None
    return found.use if found.settings == settings and field.is_file() else None


def measure_context_use(network: nn.Module, options: dict[str, Any], sizes: list[int]) -> tuple[ContextUse, Tensor]:
    """Measure the context that a network uses on the dataset of an option file.

    Args:
        network: network in evaluation mode that restores images (1, C, H, W) of any size.
        options: options of ``basicsr test``; images smaller than the largest crop are skipped.
        sizes: sides of the input crops in pixels.

    Returns:
        The context used, and the mean absolute gradient (side, side) around the center pixel, which is set to 0. Each
        image's gradient is divided by its sum, so images with small and large gradients have the same weight.

    Raises:
        UserError: if the dataset cannot be read, or has no image as large as the largest crop.
    """
    psnr: dict[int, dict[str, float]] = {size: {} for size in sizes}
    total, largest = torch.zeros(()), max(sizes)
    for _, data in datasets(options):
        for name, item in items(data):
            lq, gt = item["lq"][None], item["gt"][None]
            if min(lq.shape[-2:]) < largest:
                continue
            for size in sizes:
                psnr[size][name] = round(center_psnr(network, lq, gt, size, min(sizes)), DIGITS)
            field = receptive_field(network, center_crop(lq, min(FIELD_SIDE, largest)))
            field[field.shape[0] // 2, field.shape[1] // 2] = 0
            total = total + field / field.sum().clamp_min(torch.finfo(field.dtype).tiny)
    if not psnr[largest]:
        raise UserError(f"context.dataset: no picture has {largest} x {largest} pixels, see context.sizes")
    field = total / len(psnr[largest])
    radius = {share: radius_of(field.numpy(), share / 100) for share in SHARES}
    return ContextUse(psnr=psnr, radius=radius), field


def center_crop(picture: Tensor, side: int) -> Tensor:
    """Return the center (B, C, side, side) of images (B, C, H, W)."""
    top, left = (picture.shape[-2] - side) // 2, (picture.shape[-1] - side) // 2
    return picture[..., top : top + side, left : left + side]


def center_psnr(network: nn.Module, lq: Tensor, gt: Tensor, size: int, center: int) -> float:
    """Return the PSNR in dB of the center pixels of a crop.

    Args:
        network: network that restores images (1, C, H, W).
        lq: LQ image (1, C, H, W) in [0, 1].
        gt: GT image (1, C, scale * H, scale * W) in [0, 1].
        size: side of the network's input crop, in pixels of ``lq``.
        center: side of the compared region at its center, in pixels of ``lq``.
    """
    scale = gt.shape[-1] // lq.shape[-1]
    inner = (size - center) // 2
    top, left = ((length - center) // 2 - inner for length in lq.shape[-2:])  # the same center for every size
    with torch.inference_mode():
        restored = _last(network(lq[..., top : top + size, left : left + size]))
    rows, columns = (slice(scale * inner, scale * (inner + center)) for _ in range(2))
    down, right = (slice(scale * (at + inner), scale * (at + inner + center)) for at in (top, left))
    error = restored[..., rows, columns].clamp(0, 1).double() - gt[..., down, right].double()
    return -10 * math.log10(max(float(error.square().mean()), 1e-12))


def receptive_field(network: nn.Module, lq: Tensor) -> Tensor:
    """Return the absolute gradient of the restored center pixel (all channels) with respect to the input.

    It is summed over the input channels: (1, C, H, W) -> (H, W).
    """
    lq = lq.clone().requires_grad_()
    restored = _last(network(lq))
    restored[..., restored.shape[-2] // 2, restored.shape[-1] // 2].sum().backward()
    assert lq.grad is not None
    return lq.grad[0].abs().sum(0)


def _last(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[-1]
