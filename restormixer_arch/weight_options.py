"""State dicts of RestorMixer: conversion of the released code's names, and the network options they contain.

Nearly all arguments of the network can be derived from the shapes, except heads, window size, merge of the scans and
deep supervision. Files written by this project contain the first three as small tensors, called the stamp, under keys
that start with :data:`STAMP`. The ``.pth`` file of a training run contains them in a separate entry,
:data:`STAMP_ENTRY`, so its weights have only the network's keys.

The tables below contain everything that this project needs to know about the format of the released checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from restormixer_arch.emvm import SCAN_MERGES

STAMP = "restormixer_options."
STAMP_ENTRY = "restormixer_options"  # in a .pth file, next to "params"
# Every RestorMixer has keys with these prefixes: (this project's, the released code's).
KEY_PREFIXES = (
    ("encoder.stem.", "encoder.cnn_stem."),
    ("encoder.scm_quarter.", "encoder.SCM2."),
    ("decoder.head_full.", "decoder.output."),
)

# Prefix in the released code -> prefix in this project.
_PREFIXES = {
    "encoder.cnn_stem": "encoder.stem",
    "encoder.ecnn_stage": "encoder.rdcnn",
    "encoder.encoder_sampling.0": "encoder.down_half",
    "encoder.encoder_sampling.1": "encoder.down_quarter",
    **{f"encoder.SCM1.main.{i}": f"encoder.scm_half.conv{i + 1}" for i in range(3)},
    **{f"encoder.SCM2.main.{i}": f"encoder.scm_quarter.conv{i + 1}" for i in range(3)},
    "encoder.SCM1.main.3.main.0": "encoder.scm_half.conv4",
    "encoder.SCM2.main.3.main.0": "encoder.scm_quarter.conv4",
    "encoder.SCM1.main.4": "encoder.scm_half.norm",
    "encoder.SCM2.main.4": "encoder.scm_quarter.norm",
    "encoder.FAM1.merge.main.0": "encoder.fam_half.conv",
    "encoder.FAM2.merge.main.0": "encoder.fam_quarter.conv",
    "encoder.emix_stage1": "encoder.mt_half.units",
    "encoder.emix_stage2": "encoder.mt_quarter.units",
    "decoder.dmix_stage1": "decoder.mt_half.units",
    "decoder.dmix_stage2": "decoder.mt_quarter.units",
    "decoder.dcnn_stage": "decoder.rdcnn",
    "decoder.decoder_sampling.0": "decoder.up_half",
    "decoder.decoder_sampling.1": "decoder.up_full",
    "decoder.decoder_compress_channel.0.main.0": "decoder.merge_half",
    "decoder.decoder_compress_channel.1.main.0": "decoder.merge_full",
    "decoder.decoder_out_conv.0.main.0": "decoder.head_quarter",
    "decoder.decoder_out_conv.1.main.0": "decoder.head_half",
    "decoder.output": "decoder.head_full",
}
# The same for the parts of the remaining name; parts that are not listed keep their names.
_PARTS = {
    "main.0": "conv",
    "main.1": "norm",
    "conv1": "conv.conv",
    "bn1": "conv.norm",
    "pointwise": "pointwise.conv",
    "bn2": "pointwise.norm",
    "ln_1": "norm1",
    "ln_2": "norm2",
    "self_attention_1": "scan1",
    "self_attention_3": "scan3",
    "conv2d1_b1": "down",
    "conv2d": "conv",
    "upsample": "up",
    "out_norm": "norm",
    "dt_projs_weight": "dt_proj",
    "dt_projs_bias": "dt_bias",
    "x_proj_weight": "x_proj",
    "A_logs": "A_log",
    "Ds": "D_skip",
    "conv_blk": "mlp",
    "skip_scale": "skip_scale1",
    "attn": "attention",
}
_UNIT_BLOCKS = {"0": "emvm", "1": "mwsa"}


def is_restormixer(state: Mapping[str, Any]) -> bool:
    """Return whether this is the state dict of a RestorMixer, of this project or of the released code."""
    return all(any(name.startswith(marks) for name in state) for marks in KEY_PREFIXES)


def canonical(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split a state dict into its weights, with this project's names, and its stamp.

    Returns:
        The weights by name in the same order, and the stamp's tensors by name without the prefix :data:`STAMP`.
    """
    stamp = {name.removeprefix(STAMP): value for name, value in state.items() if name.startswith(STAMP)}
    return from_released({name: value for name, value in state.items() if not name.startswith(STAMP)}), stamp


def from_released(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the tensors of a released checkpoint; other keys are unchanged.

    A and D of a scan have shapes (K * D, N) and (K * D) in the released code, and (K, D, N) and (K, D) here. Its
    in_proj is split into in_proj and gate_proj here.

    Args:
        state_dict: tensors by name; it is not modified.

    Returns:
        A new dict in the same order.
    """
    renamed = {}
    for key, value in state_dict.items():
        name = _rename(key)
        if name != key and name.endswith((".A_log", ".D_skip")):
            directions = 3 if ".scan3." in name else 1
            value = value.unflatten(0, (directions, -1))
        if name != key and name.endswith(".in_proj.weight"):
            value, renamed[name.replace(".in_proj.", ".gate_proj.")] = value.chunk(2)
        renamed[name] = value
    return renamed


def _rename(key: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if key.startswith(f"{prefix}.")), None)
    if prefix is None:
        return key
    place, rest = _PREFIXES[prefix], key[len(prefix) + 1 :]
    if place.endswith(".units"):
        unit = re.fullmatch(r"(\d+)\.([01])\.(.+)", rest)
        if unit is None:
            return key
        place, rest = f"{place}.{unit[1]}.{_UNIT_BLOCKS[unit[2]]}", unit[3]
    parts = re.sub(r"main\.\d|\w+", lambda match: _PARTS.get(match[0], match[0]), rest)
    return f"{place}.{parts}"


def add_stamp(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of ``state`` with the stamp of a RestorMixer."""
    return {**state, **stamp_of(network)}


def stamp_of(network: nn.Module) -> dict[str, Tensor]:
    """Return the options that the shapes do not show, as int64 tensors under keys with the prefix :data:`STAMP`."""
    stamp = {
        "window_size": [network.window_size],
        "encoder_heads": list(network.encoder_heads),
        "decoder_heads": list(network.decoder_heads),
        "scan_merge": [SCAN_MERGES.index(network.scan_merge)],
    }
    return {STAMP + name: torch.tensor(values) for name, values in stamp.items()}


def stamp_problem(network: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Return a message on how a RestorMixer's options differ from the stamp of weights, "" if they do not."""
    stamp = canonical(state)[1]
    if not stamp:
        return ""
    try:
        written = _read_stamp(stamp)
    except (ValueError, IndexError, RuntimeError) as error:
        return f"have options that cannot be read ({error})"
    own = _read_stamp(canonical(stamp_of(network))[1])
    differing = [f"{name} {written[name]} and not {own[name]}" for name in own if written[name] != own[name]]
    return f"were trained with {', '.join(differing)}" if differing else ""


def _read_stamp(stamp: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options in a stamp. Raises ValueError, IndexError or RuntimeError if it is incomplete or damaged."""
    written = _Complete({STAMP + name: value for name, value in stamp.items()})
    return {
        "window_size": written[STAMP + "window_size"].item(),
        "encoder_heads": tuple(written[STAMP + "encoder_heads"].tolist()),
        "decoder_heads": tuple(written[STAMP + "decoder_heads"].tolist()),
        "scan_merge": SCAN_MERGES[written[STAMP + "scan_merge"].item()],
    }


def options_from_weights(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the keyword arguments of the RestorMixer with the state dict ``state``.

    Without a stamp, as in files from other tools, heads, ``window_size`` and ``scan_merge`` are omitted, so the
    network's defaults apply.

    Raises:
        ValueError: if this is not the state dict of a RestorMixer, or a key that an option is derived from is missing.
    """
    return options_of(*canonical(state))


def options_of(tensors: Mapping[str, Tensor], stamp: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the result of :func:`options_from_weights` for the outputs of :func:`canonical`."""
    if not is_restormixer(tensors):
        raise ValueError("not the weights of a RestorMixer: keys of its stem, SCM and head were expected")
    shapes = _Complete({name: tuple(value.shape) for name, value in tensors.items()})
    base, in_channels = shapes["encoder.stem.0.conv.weight"][:2]
    options: dict[str, Any] = {
        "in_channels": in_channels,
        "out_channels": in_channels,
        "base_channels": base,
        "num_blocks": (
            _count(shapes, "encoder.rdcnn"),
            _count(shapes, "encoder.mt_half.units") * 2,
            _count(shapes, "encoder.mt_quarter.units") * 2,
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
    if stamp:
        options |= _read_stamp(stamp)
    return options


class _Complete(dict[str, Any]):
    """A dict of the entries of a state dict that raises ValueError if a key is missing."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"not the complete weights of a RestorMixer: {key!r} is missing")


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Return the number of numbered modules under ``prefix``."""
    return len({match[1] for name in shapes if (match := re.match(re.escape(prefix) + r"\.(\d+)\.", name))})


def _ratio(hidden_and_channels: list[tuple[int, int]]) -> float:
    """Return a ratio with ``int(ratio * channels) == hidden`` for each pair, as the network rounds products down."""
    return max(hidden / channels for hidden, channels in hidden_and_channels) + 1e-9
