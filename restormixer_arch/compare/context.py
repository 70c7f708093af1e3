"""How much of a picture a network uses: its effective receptive field, and what a larger crop gains in the same place.

The effective receptive field (Luo et al., NeurIPS 2016, arXiv 1701.04128) is the gradient of the restored middle pixel
by the input.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from restormixer_arch.compare.options import context_options
from restormixer_arch.compare.pictures import datasets, items
from restormixer_arch.compare.results import Comparison, ResultModel, read_part
from restormixer_arch.compare.run import trained_entry
from restormixer_arch.compare.study import FIELD_SIDE, ContextUse
from restormixer_arch.compare.training import JOBS
from restormixer_arch.data.degradations.labels import label_of
from restormixer_arch.errors import UserError
from restormixer_arch.output import note, write_text_atomically
from restormixer_arch.processes import run_in_process

SHARES = (50, 90, 99)  # percent of the gradient


class Measured(ResultModel):
    """What is kept of one competitor: its use of a picture, and what that follows from."""

    settings: dict[str, Any]
    use: ContextUse | None = None


def measure_context(
    options: dict[str, Any], context: dict[str, Any], comparison: Comparison, folder: Path, out: Path
) -> dict[str, ContextUse]:
    """Measure the competitors of a comparison, each in a process of its own; what was measured alike is kept.

    Args:
        options: of the comparison.
        context: the section of that name.
        comparison: whose competitors are measured.
        folder: of the comparison.
        out: what each competitor uses is written here, ``<competitor>.json``, and its receptive field, ``.png``, see
            :func:`.study_plots.write_field`.
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
        measured = Measured(settings=json.loads(json.dumps({**settings, "training": training})))
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
        found = read_part(Measured, kept)
    except UserError:
        return None
    return found.use if found.settings == settings and field.is_file() else None


def use_of(network: nn.Module, options: dict[str, Any], sizes: list[int]) -> tuple[ContextUse, Tensor]:
    """Measure one network on the data set of an option file.

    Args:
        network: restores (1, C, H, W) of any size, in evaluation mode.
        options: for ``basicsr test``; pictures that are smaller than the largest crop are left out.
        sizes: sides of the crops of the inputs.

    Returns:
        What it uses, and the size of the gradient (side, side), a mean over pictures.

    Raises:
        UserError: the data set cannot be read, or has no picture of that size.
    """
    values: dict[str, list[list[float]]] = {}
    count, total, largest = 0, torch.zeros(()), max(sizes)
    for _, data in datasets(options):
        for name, item in items(data):
            lq, gt = item["lq"][None], item["gt"][None]
            if min(lq.shape[-2:]) < largest:
                continue
            row = [middle_psnr(network, lq, gt, size, min(sizes)) for size in sizes]
            values.setdefault(label_of(name) or "all", []).append(row)
            total = total + receptive_field(network, middle(lq, min(FIELD_SIDE, largest)))
            count += 1
    if not count:
        raise UserError(f"context.dataset: no picture has {largest} x {largest} pixels, see context.sizes")
    field = total / count
    every = [row for rows in values.values() for row in rows]
    use = ContextUse(
        psnr=_means(sizes, every),
        by_label={label: _means(sizes, rows) for label, rows in sorted(values.items())},
        radius={share: radius_of(field, share / 100) for share in SHARES},
    )
    return use, field


def _means(sizes: list[int], rows: list[list[float]]) -> dict[int, float]:
    return dict(zip(sizes, np.mean(rows, axis=0).tolist(), strict=True))


def middle(picture: Tensor, side: int) -> Tensor:
    """Return the middle (B, C, side, side) of a picture (B, C, H, W)."""
    top, left = (picture.shape[-2] - side) // 2, (picture.shape[-1] - side) // 2
    return picture[..., top : top + side, left : left + side]


def middle_psnr(network: nn.Module, lq: Tensor, gt: Tensor, size: int, judged: int) -> float:
    """Return the PSNR in dB of the middle pixels of a crop.

    Args:
        network: restores (1, C, H, W).
        lq: (1, C, H, W) in [0, 1].
        gt: (1, C, scale * H, scale * W) in [0, 1].
        size: side of the crop that the network is given.
        judged: side of its middle, in pixels of ``lq``.
    """
    scale = gt.shape[-1] // lq.shape[-1]
    inner = (size - judged) // 2
    top, left = ((length - judged) // 2 - inner for length in lq.shape[-2:])  # the same middle for every size
    with torch.inference_mode():
        restored = _last(network(lq[..., top : top + size, left : left + size]))
    rows, columns = (slice(scale * inner, scale * (inner + judged)) for _ in range(2))
    down, right = (slice(scale * (at + inner), scale * (at + inner + judged)) for at in (top, left))
    error = restored[..., rows, columns].clamp(0, 1).double() - gt[..., down, right].double()
    return -10 * math.log10(max(float(error.square().mean()), 1e-12))


def receptive_field(network: nn.Module, lq: Tensor) -> Tensor:
    """Return the size of the gradient of the restored middle pixel's sum by the input, (1, C, H, W) -> (H, W)."""
    lq = lq.clone().requires_grad_()
    restored = _last(network(lq))
    restored[..., restored.shape[-2] // 2, restored.shape[-1] // 2].sum().backward()
    assert lq.grad is not None
    return lq.grad[0].abs().sum(0)


def radius_of(field: Tensor, share: float) -> int:
    """Return the distance in pixels from the middle within which that share of a field (H, W) lies.

    The middle pixel itself is left out, since the identity of a residual network is all there.
    """
    height, width = field.shape
    rows = torch.arange(height)[:, None] - height // 2
    columns = torch.arange(width)[None, :] - width // 2
    distance = (rows.square() + columns.square()).sqrt().ceil().long()
    rings = torch.zeros(int(distance.max()) + 1, dtype=torch.float64)
    rings.index_add_(0, distance.flatten(), field.double().flatten())
    rings[0] = 0
    total = rings.cumsum(0)
    return int((total < share * total[-1]).sum())


def _last(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[-1]
