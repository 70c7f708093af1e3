"""Write a RestorMixer as an ONNX file, and compare what onnxruntime makes of it with torch.

Shape letters: B batch, C channels, H x W size, s the network's upscale.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from restormixer_arch import __version__
from restormixer_arch.export.exportable import exportable
from restormixer_arch.export.onnx_operators import OPSET, TRANSLATIONS
from restormixer_arch.restormixer_arch import SIZE_MULTIPLE, RestorMixer

MAX_DIM = 4096  # images of a batch, and times SIZE_MULTIPLE the largest side, that the file expects
TRACED = (2, 64, 72)  # batch, height and width that the network is followed with: two of its windows and a part of one
COMPARED = ((1, 64, 72), (2, 40, 136))


class _Half(nn.Module):
    """A network in float16 behind float32 inputs and outputs. (B, C, H, W) -> (B, C, s * H, s * W)"""

    def __init__(self, network: RestorMixer) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.half()).float()


def export_onnx(network: RestorMixer, path: Path, *, half: bool = False) -> None:
    """Write the network for batches of any number, height and width, the sides in multiples of 8.

    ``input`` (B, C, H, W) float32 in [0, 1], RGB, gives ``output`` (B, C, s * H, s * W), float32, not clamped. The
    same stands in the file's metadata.

    Args:
        network: fused, in eval mode, on the CPU.
        path: file to write.
        half: weights and arithmetic in float16, except within the scans; inputs and outputs stay float32.
    """
    batch, height, width = (torch.export.Dim(name, min=1, max=MAX_DIM) for name in ("batch", "h", "w"))
    picture = torch.full((TRACED[0], network.in_channels, *TRACED[1:]), 0.5, device="cpu")
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        # With gradients, since without them the network works on strips, whose number depends on the size.
        with exportable(), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, of what is its own
            program = torch.onnx.export(
                _Half(network) if half else network,
                (picture,),
                dynamo=True,
                dynamic_shapes=({0: batch, 2: SIZE_MULTIPLE * height, 3: SIZE_MULTIPLE * width},),
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
        opset=str(OPSET),
        precision="float16 inside, float32 inputs and outputs" if half else "float32",
    )
    for node in program.model.graph.all_nodes():  # where in the source each came from: as much as the weights
        node.metadata_props.clear()
    program.save(path)


def _pictures(network: RestorMixer, sizes: tuple[tuple[int, int, int], ...]) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for batch, *size in sizes:
        yield torch.rand(batch, network.in_channels, *size, generator=generator)


@torch.no_grad()
def overflows_in_half(network: RestorMixer) -> bool:
    """Return whether float16 arithmetic gives values that are not finite for random pictures.

    onnxruntime would not show it on a CPU, where it computes in float32.
    """
    half = _Half(network)
    return not all(torch.isfinite(half(picture)).all() for picture in _pictures(network, COMPARED))


@torch.no_grad()
def compare_outputs(
    network: RestorMixer, path: Path, sizes: tuple[tuple[int, int, int], ...] = COMPARED
) -> tuple[float, float]:
    """Compare onnxruntime's outputs with torch's for random pictures.

    Args:
        network: that was written.
        path: the file.
        sizes: batch, height and width of each.

    Returns:
        The largest absolute difference, and the PSNR in dB of the one output against the other.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for picture in _pictures(network, sizes):
        (output,) = session.run(["output"], {"input": picture.numpy()})
        differences.append((torch.from_numpy(output) - network(picture)).flatten())
    error = torch.cat(differences)
    return float(error.abs().max()), -10 * math.log10(max(float(error.square().mean()), 1e-30))
