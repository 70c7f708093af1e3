"""A ComfyUI node (https://github.com/comfyanonymous/ComfyUI) that restores images with the installed weights.

Create the file ``custom_nodes/restormixer/__init__.py`` with the line
``from restormixer_arch.export.comfyui_node import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS``.
Put your own weights, from ``basicsr export``, into ``models/upscale_models``. ComfyUI's "Load Upscale Model" can then
load them, since it uses spandrel and this module registers RestorMixer there.

Shape letters: B batch, H x W size in pixels, C channels, s the network's upscale.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import comfy.model_management
import comfy.utils
import torch
import torch.nn.functional as F
from torch import Tensor

from restormixer_arch.export.spandrel_adapter import register
from restormixer_arch.inference.installed import DEFAULT_TASK, installed_tasks, installed_weights
from restormixer_arch.inference.restorer import Restorer, load_restorer

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

register()


class RestorMixerRestore:
    """A node that restores images. ComfyUI reads the constants below."""

    CATEGORY = "image/restoration"
    FUNCTION = "restore"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = (
        "Remove rain, snow, haze, blur, noise or several of them at once, brighten dark images, or enlarge by 2, 3 or "
        "4, with the weights that RestorMixer installs."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 - ComfyUI's name
        strength = "0 is the input, 1 the restored image"
        tile = "side of the tiles in pixels; 0: what memory allows"
        return {
            "required": {
                "image": ("IMAGE",),
                "task": (installed_tasks(), {"default": DEFAULT_TASK}),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05, "tooltip": strength}),
                "tile": ("INT", {"default": 0, "min": 0, "max": 4096, "step": 64, "tooltip": tile}),
            }
        }

    def restore(self, image: Tensor, task: str, strength: float, tile: int) -> tuple[Tensor]:
        """Restore a batch on ComfyUI's device.

        Args:
            image: float32 RGB images in [0, 1]. Further channels, such as alpha, are kept, and upsampled bicubically
                if the task upsamples.
            task, strength, tile: see ``INPUT_TYPES``.

        Shape:
            (B, H, W, C) -> (B, s * H, s * W, C)

        Raises:
            UserError: if there is not enough memory or the tile is too small.
        """
        restorer = _cached_restorer(task, tile, str(comfy.model_management.get_torch_device()))
        bar = comfy.utils.ProgressBar(image.shape[0])

        results: list[Tensor] = []

        def on_tile(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(len(results) * total + done, image.shape[0] * total)

        for one in image[..., :3].movedim(-1, 1).split(1):  # (1, 3, H, W)
            results.append(restorer(one, on_tile, strength))
        restored = torch.cat(results).movedim(1, -1)
        if image.shape[-1] == 3:
            return (restored,)
        others = image[..., 3:].to(restored)
        if restorer.scale > 1:
            size = restored.shape[1:3]
            others = F.interpolate(others.movedim(-1, 1), size=size, mode="bicubic").clamp_(0, 1).movedim(1, -1)
        return (torch.cat([restored, others], dim=-1),)


@lru_cache(maxsize=2)
def _cached_restorer(task: str, tile: int, device: str) -> Restorer:
    return load_restorer(installed_weights(task), torch.device(device), tile=tile or None)


NODE_CLASS_MAPPINGS = {"RestorMixerRestore": RestorMixerRestore}
NODE_DISPLAY_NAME_MAPPINGS = {"RestorMixerRestore": "Restore Image (RestorMixer)"}
