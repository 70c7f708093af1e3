"""Run an ONNX file of ``basicsr export`` as a network, by onnxruntime on the CPU.

Shape letters: B batch, C channels, H x W size in pixels, s the network's upscale.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from restormixer_arch.errors import UserError, not_found
from restormixer_arch.layers import pad_to_multiple
from restormixer_arch.output import user_path

SUFFIX = ".onnx"


def is_onnx(weights: str | Path) -> bool:
    """Return whether the name of a file ends in ``.onnx``."""
    return Path(weights).suffix.lower() == SUFFIX


class OnnxNetwork(nn.Module):
    """A RestorMixer in an ONNX file, with the attributes of a network that the restorer needs.

    Args:
        path: file written by :func:`restormixer_arch.export.onnx_file.export_onnx`.

    Attributes:
        in_channels, upscale: number of input channels and upscale factor of the network.

    Shape:
        (B, C, H, W) in [0, 1] -> (B, C, s * H, s * W), not clamped; any H and W

    Raises:
        UserError: if onnxruntime is not installed, or the file is missing, damaged or from another tool.
        RuntimeError: if onnxruntime fails in ``forward``, for example for lack of memory.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        path = user_path(path)
        if path.is_dir():
            raise UserError(f"{path}: is a folder, expected a file of 'basicsr export'")
        if not path.is_file():
            raise UserError(f"{path}: {not_found(path)}")
        if importlib.util.find_spec("onnxruntime") is None:
            raise UserError(f"{path}: needs onnxruntime; pip install 'restormixer[export]'")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # the exception states what is wrong
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime has a dozen of its own, all direct heirs of Exception
            raise UserError(f"{path}: cannot be read as ONNX ({str(error).splitlines()[0]})") from error
        made = self.session.get_modelmeta().custom_metadata_map
        if not {"scale", "size_multiple"} <= made.keys():
            raise UserError(f"{path}: is not a file of 'basicsr export' (its metadata has no scale and size_multiple)")
        self.in_channels = self.session.get_inputs()[0].shape[1]
        self.upscale, self.size_multiple = int(made["scale"]), int(made["size_multiple"])
        place = torch.empty(0, device="cpu")  # whatever torch's default device is
        self.place = nn.Parameter(place, requires_grad=False)  # shows callers that the device is the CPU

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = pad_to_multiple(x, self.size_multiple).contiguous().numpy()
        try:
            (result,) = self.session.run(["output"], {"input": padded})
        except Exception as error:  # noqa: BLE001 - as above; those who apply a network know torch's alone
            raise RuntimeError(str(error)) from error
        return torch.from_numpy(result)[..., : self.upscale * height, : self.upscale * width]
