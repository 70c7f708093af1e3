"""Write a RestorMixer as an ONNX file, and compare what onnxruntime makes of it with torch.

Shape letters: B batch, C channels, H x W size.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from restormixer_arch import __version__
from restormixer_arch.export.onnx_operators import OPSET, TRANSLATIONS
from restormixer_arch.export.operators import exportable
from restormixer_arch.restormixer_arch import SIZE_MULTIPLE, RestorMixer

MOST = 4096  # times SIZE_MULTIPLE: the largest side that the file expects
TRACED = (64, 72)  # height and width that the network is followed with: two of its windows and a part of one
COMPARED = ((64, 72), (40, 136))


def export_onnx(network: RestorMixer, path: Path) -> None:
    """Write the network for one picture at a time, of any height and width in multiples of 8.

    ``input`` (1, C, H, W) float32 in [0, 1], RGB, gives ``output`` (1, C, upscale * H, upscale * W), not clamped. The
    same stands in the file's metadata.

    Args:
        network: fused, in eval mode, on the CPU.
        path: file to write.
    """
    height, width = (torch.export.Dim(name, min=1, max=MOST) for name in ("h", "w"))
    picture = torch.rand(1, network.in_channels, *TRACED)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        # With gradients, since without them the network works on strips, whose number depends on the size.
        with exportable(), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, of what is its own
            program = torch.onnx.export(
                network,
                (picture,),
                dynamo=True,
                dynamic_shapes=({2: SIZE_MULTIPLE * height, 3: SIZE_MULTIPLE * width},),
                custom_translation_table=TRANSLATIONS,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
    program.model.producer_name, program.model.producer_version = "restormixer", __version__
    program.model.metadata_props.update(
        scale=str(network.upscale),
        size_multiple=str(SIZE_MULTIPLE),
        value_range="[0, 1], not clamped",
        channel_order="RGB" if network.in_channels == 3 else "as trained",
    )
    program.save(path)


def largest_difference(network: RestorMixer, path: Path, sizes: tuple[tuple[int, int], ...] = COMPARED) -> float:
    """The largest absolute difference between onnxruntime's and torch's outputs for random pictures.

    Args:
        network: that was written.
        path: the file.
        sizes: height and width of each picture.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    return max(
        _difference(network, session, torch.rand(1, network.in_channels, *size, generator=generator)) for size in sizes
    )


@torch.no_grad()
def _difference(network: RestorMixer, session: onnxruntime.InferenceSession, picture: Tensor) -> float:
    (output,) = session.run(["output"], {"input": picture.numpy()})
    return float((torch.from_numpy(output) - network(picture)).abs().max())
