"""Write a RestorMixer as an ONNX file and compare its outputs in onnxruntime with those of torch.

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

MAX_DIM = 4096  # largest batch size and, times SIZE_MULTIPLE, largest side that the export declares
TRACED = (2, 64, 72)  # batch, height and width of the traced input, which has complete and partial windows
COMPARED = ((1, 64, 72), (2, 40, 136))


class _Half(nn.Module):
    """A network in float16 with float32 inputs and outputs. (B, C, H, W) -> (B, C, s * H, s * W)"""

    def __init__(self, network: RestorMixer) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.half()).float()


def export_onnx(network: RestorMixer, path: Path, *, half: bool = False) -> None:
    """Write the network for any batch size, height and width; both sides must be multiples of 8.

    ``input`` (B, C, H, W), float32 RGB in [0, 1], gives ``output`` (B, C, s * H, s * W), float32, not clamped. The
    metadata of the file state the same.

    Args:
        network: fused network in eval mode on the CPU.
        path: output file.
        half: whether weights and arithmetic are float16, except within the scans; inputs and outputs remain float32.
    """
    batch, height, width = (torch.export.Dim(name, min=1, max=MAX_DIM) for name in ("batch", "h", "w"))
    picture = torch.full((TRACED[0], network.in_channels, *TRACED[1:]), 0.5, device="cpu")
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        # Gradients are enabled, since without them the network works in strips, whose number depends on the size.
        with exportable(), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own internals
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
    for node in program.model.graph.all_nodes():  # source locations of the nodes, as large as the weights
        node.metadata_props.clear()
    program.save(path)


def _pictures(network: RestorMixer, sizes: tuple[tuple[int, int, int], ...]) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for batch, *size in sizes:
        yield torch.rand(batch, network.in_channels, *size, generator=generator)


@torch.no_grad()
def overflows_in_float16(network: RestorMixer) -> bool:
    """Return whether float16 arithmetic gives non-finite values for random images.

    onnxruntime would not reveal this on a CPU, where it computes in float32.
    """
    half = _Half(network)
    return not all(torch.isfinite(half(picture)).all() for picture in _pictures(network, COMPARED))


@torch.no_grad()
def compare_outputs(
    network: RestorMixer, path: Path, sizes: tuple[tuple[int, int, int], ...] = COMPARED
) -> tuple[float, float]:
    """Compare onnxruntime's outputs with torch's for random images.

    Args:
        network: network that was exported.
        path: ONNX file.
        sizes: batch size, height and width of each input.

    Returns:
        The largest absolute difference, and the PSNR in dB between the two outputs.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    for picture in _pictures(network, sizes):
        (output,) = session.run(["output"], {"input": picture.numpy()})
        differences.append((torch.from_numpy(output) - network(picture)).flatten())
    error = torch.cat(differences)
    return float(error.abs().max()), -10 * math.log10(max(float(error.square().mean()), 1e-30))
