"""Key names of the authors' released code, turned into this project's.

The released names are facts of a file format: the tables below are all of that format that is known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Where a tensor lies: released prefix -> ours.
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
# What a part of the rest of the name is called; a part that is not here keeps its name.
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


def from_released(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the tensors of a released checkpoint; other keys, this project's own among them, stay as they are.

    The released code keeps a scan's A and D as (K * D, N) and (K * D); here they are (K, D, N) and (K, D). Its in_proj
    is in_proj and gate_proj here.

    Args:
        state_dict: tensors by name, left untouched.

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
