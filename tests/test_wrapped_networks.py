"""Plug-in networks that wrap others, and networks without attributes such as their scale: weights, tiles, sizes."""

import pytest
import torch
from torch import nn
from training_cases import EDSR, RESTORMIXER, SWINIR, batch, build, options, step

from restormixer_arch import RestorMixer
from restormixer_arch.basicsr_adapter.padded import Padded, required_multiple
from restormixer_arch.inference.weights import read_weights
from restormixer_arch.models.restormixer_model import RestorMixerModel

ARGUMENTS = {name: value for name, value in RESTORMIXER.items() if name != "type"}


@pytest.fixture
def wrapped():
    """Register a network that wraps a RestorMixer, as a plug-in does; yield its options."""
    from basicsr.utils.registry import ARCH_REGISTRY

    class AroundRestorMixer(nn.Module):
        def __init__(self, **arguments):
            super().__init__()
            self.net = RestorMixer(**arguments)
            self.last = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            out = self.net(x)
            return self.last(out[0] if isinstance(out, list | tuple) else out)

    ARCH_REGISTRY.register(AroundRestorMixer)
    yield {"type": "AroundRestorMixer", **ARGUMENTS, "deep_supervision": False}
    del ARCH_REGISTRY._obj_map["AroundRestorMixer"]


def test_weights_of_a_network_that_wraps_a_restormixer_are_loaded(tmp_path, wrapped):
    """Its prefix ``net.`` looks like the one that some tools add to the weights of a RestorMixer."""
    model = build(tmp_path, wrapped)
    step(model, 1)
    model.save(0, 1)
    again = build(tmp_path, wrapped)
    again.load_network(again.net_g, tmp_path / "net_g_1.pth", strict=True)
    for name, value in model.net_g.state_dict().items():
        assert torch.equal(again.net_g.state_dict()[name], value), name
    inner = read_weights(tmp_path / "net_g_1.pth")  # read for a RestorMixer, without the prefix
    assert not any(name.startswith("net.") for name in inner)


def test_networks_that_pad_themselves_require_no_multiple(tmp_path, wrapped):
    assert required_multiple(build(tmp_path, wrapped).net_g) == 1
    assert required_multiple(build(tmp_path, SWINIR).net_g) == 8
    windows = nn.Sequential(nn.Conv2d(3, 3, 1), build(tmp_path, SWINIR).net_g)
    assert required_multiple(windows) == 8
    for pads_itself, multiple in ((True, 1), (False, 8)):
        windows.pads_itself = pads_itself
        assert required_multiple(windows) == multiple


@pytest.mark.parametrize("val", [{"tile": 64}, {"max_memory": "20G"}])
def test_tiles_of_a_network_without_a_scale_attribute(tmp_path, val):
    given = options(tmp_path, EDSR | {"upscale": 2}) | {"scale": 2, "val": val}
    model = RestorMixerModel(given)
    assert not hasattr(model.net_g, "upscale")
    lq = batch(images=1, side=96)["lq"]
    model.feed_data({"lq": lq})
    model.test()
    assert model.output.shape == (1, 3, 192, 192)
    corner = (..., slice(60), slice(60))  # only in the first tile, and far from its inner borders
    with torch.no_grad():
        torch.testing.assert_close(model.output[corner], model.net_g.eval()(lq)[corner], rtol=1e-3, atol=1e-4)


def test_padded_network_runs_without_torch_compile():
    seen = []

    def backend(graph, inputs):
        seen.append(inputs)
        return graph.forward

    network = nn.Conv2d(3, 3, 3, padding=1)
    network.compile(backend=backend)
    with torch.no_grad():
        Padded(network, 1)(torch.rand(1, 3, 8, 8))
        assert seen == []
        network(torch.rand(1, 3, 8, 8))
    assert len(seen) == 1
