"""The ComfyUI node, loaded with replacements for ComfyUI's modules."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import restormixer_arch
from restormixer_arch.errors import UserError
from restormixer_arch.inference.installed import installed_tasks

spandrel = pytest.importorskip("spandrel")


@pytest.fixture
def comfy(monkeypatch):
    """The parts of ComfyUI that the node uses; ``steps`` records the progress that it shows."""
    steps = []
    package, management, utils = (ModuleType(name) for name in ("comfy", "comfy.model_management", "comfy.utils"))
    management.get_torch_device = lambda: torch.device("cpu")
    management.throw_exception_if_processing_interrupted = lambda: None
    bar = SimpleNamespace(update_absolute=lambda value, total: steps.append((value, total)))
    utils.ProgressBar = lambda total: bar
    package.model_management, package.utils = management, utils
    for module in (package, management, utils):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delitem(sys.modules, "restormixer_arch.export.comfyui_node", raising=False)
    return SimpleNamespace(steps=steps, management=management)


@pytest.fixture
def node(comfy):
    module = importlib.import_module("restormixer_arch.export.comfyui_node")
    (kind,) = module.NODE_CLASS_MAPPINGS.values()
    assert module.NODE_DISPLAY_NAME_MAPPINGS.keys() == module.NODE_CLASS_MAPPINGS.keys()
    return kind


def run(node, image, **settings):
    """Call a node as ComfyUI does, by its constants and with the default inputs."""
    inputs = node.INPUT_TYPES()["required"]
    defaults = {name: kind[1]["default"] for name, kind in inputs.items() if len(kind) > 1}
    assert node.RETURN_TYPES == ("IMAGE",)
    (result,) = getattr(node(), node.FUNCTION)(image=image, **defaults | settings)
    return result


def image(batch=1, height=40, width=56, channels=3):
    return torch.rand(batch, height, width, channels, generator=torch.Generator().manual_seed(0))


def test_node_gives_the_same_result_as_restore(node, comfy):
    x = image(batch=2)
    wanted = restormixer_arch.restore(x.movedim(-1, 1), task="mixed", device="cpu").movedim(1, -1)
    torch.testing.assert_close(run(node, x, task="mixed"), wanted, rtol=0, atol=1e-6)
    assert (wanted - x).abs().max() > 0.01
    assert comfy.steps == [(1, 2), (2, 2)]


def test_node_inputs_and_description(node):
    inputs = node.INPUT_TYPES()["required"]
    assert list(inputs) == ["image", "task", "strength", "tile"]
    assert inputs["task"] == (installed_tasks(), {"default": "derain"})
    words = {"derain": "rain", "desnow": "snow", "dehaze": "haze", "deblur": "blur", "denoise": "noise"}
    words |= {"mixed": "several", "low_light": "dark", "sr_x2": " 2", "sr_x3": " 3", "sr_x4": " 4"}
    assert all(words[task] in node.DESCRIPTION for task in installed_tasks())


def test_strength_blends_with_the_input_and_alpha_is_kept(node):
    x = image(channels=4)
    full, half, none = (run(node, x, strength=strength) for strength in (1.0, 0.5, 0.0))
    assert full.shape == x.shape and torch.equal(full[..., 3], x[..., 3])
    torch.testing.assert_close(none, x, rtol=0, atol=1e-6)
    unclamped = (full > 0) & (full < 1)
    torch.testing.assert_close(half[unclamped], torch.lerp(x, full, 0.5)[unclamped], rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [3, 4])
def test_upsampling_with_and_without_alpha(node, channels):
    x = image(height=16, width=24, channels=channels)
    x[..., 3:] = (x[..., 3:] > 0.5).float()  # sharp edges, at which bicubic interpolation overshoots
    result = run(node, x, task="sr_x2")
    assert result.shape == (1, 32, 48, channels)
    wanted = restormixer_arch.restore(x[..., :3].movedim(-1, 1), task="sr_x2", device="cpu").movedim(1, -1)
    torch.testing.assert_close(result[..., :3], wanted, rtol=0, atol=1e-6)
    if channels == 4:
        alpha = torch.nn.functional.interpolate(x[..., 3:].movedim(-1, 1), scale_factor=2.0, mode="bicubic")
        assert alpha.max() > 1.01
        torch.testing.assert_close(result[..., 3:], alpha.clamp(0, 1).movedim(1, -1))


def test_tiles_report_progress_and_too_small_ones_are_rejected(node, comfy):
    x = image(batch=2, height=64, width=256)
    tiled = run(node, x, tile=128)
    assert comfy.steps == [(1, 6), (2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]
    assert tiled.shape == x.shape and not torch.equal(tiled, run(node, x))
    with pytest.raises(UserError, match="tile: 32 is too small"):
        run(node, x, tile=32)


def test_interruption_by_the_user_stops_the_node(node, comfy):
    def interrupt():
        raise InterruptedError

    comfy.management.throw_exception_if_processing_interrupted = interrupt
    with pytest.raises(InterruptedError):
        run(node, image())


def test_importing_the_node_registers_restormixer_in_spandrel(node):
    from restormixer_arch.inference.installed import installed_weights

    model = spandrel.ModelLoader().load_from_file(installed_weights("mixed"))
    assert model.architecture.id == "RestorMixer"
