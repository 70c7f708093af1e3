"""Tell from a state dict which RestorMixer it belongs to.

Nearly all arguments of the network show in its shapes. Heads, windows, the merge of the scans and the deep
supervision do not: files that this project writes carry them as small tensors under :data:`STAMP`, which
``RestorMixer.load_state_dict`` passes over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from restormixer_arch.emvm import SCAN_MERGES
from restormixer_arch.released_keys import from_released

if TYPE_CHECKING:
    from restormixer_arch.restormixer_arch import RestorMixer

STAMP = "restormixer_options."
MARKS = ("encoder.scm_quarter.", "decoder.head_full.", "encoder.stem.")  # every RestorMixer has keys under these


def is_restormixer(state: Mapping[str, Any]) -> bool:
    """Whether these are weights of a RestorMixer, under our key names or those of the authors' released code."""
    names = tuple(from_released(state))
    return all(any(name.startswith(mark) for name in names) for mark in MARKS)


def stamped(state: Mapping[str, Tensor], network: RestorMixer) -> dict[str, Tensor]:
    """A copy of ``state`` with the options of ``network`` that its shapes do not tell, as int64 tensors."""
    stamps = {
        "window_size": [network.window_size],
        "encoder_heads": list(network.encoder_heads),
        "decoder_heads": list(network.decoder_heads),
        "scan_merge": [SCAN_MERGES.index(network.scan_merge)],
    }
    return {**state, **{STAMP + name: torch.tensor(values) for name, values in stamps.items()}}


def without_stamp(state: Mapping[str, Any]) -> dict[str, Any]:
    """``state`` without the tensors that :func:`stamped` added."""
    return {name: value for name, value in state.items() if not name.startswith(STAMP)}


def options_from_weights(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keyword arguments that build the RestorMixer of ``state``.

    Options that neither the shapes nor a stamp tell keep the network's defaults: heads, ``window_size`` and
    ``scan_merge`` of files that other tools wrote.

    Raises:
        ValueError: these are no weights of a RestorMixer.
    """
    if not is_restormixer(state):
        raise ValueError("not the weights of a RestorMixer: keys of its stem, SCM and head were expected")
    shapes = {name: tuple(value.shape) for name, value in from_released(without_stamp(state)).items()}
    base, in_channels = shapes["encoder.stem.0.conv.weight"][:2]
    options: dict[str, Any] = {
        "in_channels": in_channels,
        "out_channels": in_channels,
        "base_channels": base,
        "num_blocks": tuple(
            _count(shapes, f"encoder.{stage}") * blocks
            for stage, blocks in (("rdcnn", 1), ("mt_half.units", 2), ("mt_quarter.units", 2))
        ),
        "upscale": round((shapes["decoder.head_full.conv.weight"][0] / in_channels) ** 0.5),
    }
    units = [
        (f"encoder.{stage}.units.0.", channels)
        for stage, channels in (("mt_half", 2 * base), ("mt_quarter", 4 * base))
        if f"encoder.{stage}.units.0.emvm.scan1.A_log" in shapes
    ]
    if units:
        scans = [(shapes[unit + "emvm.scan1.A_log"], channels) for unit, channels in units]
        options["d_state"] = scans[0][0][2]
        options["expand"] = _ratio([(shape[1], channels) for shape, channels in scans])
        options["mlp_ratio"] = _ratio([(shapes[unit + "mwsa.mlp.fc1.bias"][0], channels) for unit, channels in units])
    stamp = {name.removeprefix(STAMP): value.tolist() for name, value in state.items() if name.startswith(STAMP)}
    if stamp:
        options["window_size"] = stamp["window_size"][0]
        options["encoder_heads"] = tuple(stamp["encoder_heads"])
        options["decoder_heads"] = tuple(stamp["decoder_heads"])
        options["scan_merge"] = SCAN_MERGES[stamp["scan_merge"][0]]
    return options


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """How many numbered modules there are under ``prefix``."""
    return len({match[1] for name in shapes if (match := re.match(re.escape(prefix) + r"\.(\d+)\.", name))})


def _ratio(hidden_and_channels: list[tuple[int, int]]) -> float:
    """A ratio with ``int(ratio * channels) == hidden`` for each: the network rounds such products down."""
    return max(hidden / channels for hidden, channels in hidden_and_channels) + 1e-9
