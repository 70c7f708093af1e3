"""Computation in strips of rows, in-place activations, modified layers, and fused weights."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_network import wake
from torch.nn.utils import prune

from restormixer_arch import RestorMixer, layers
from restormixer_arch.cnn_blocks import RDCNN
from restormixer_arch.layers import Mlp, by_rows, gelu, rowwise, silu


@settings(max_examples=40)
@given(height=st.integers(1, 40), strip=st.integers(1, 400), multiple=st.integers(1, 9), halo=st.integers(0, 3))
def test_by_rows_equals_the_function_on_the_complete_image(height, strip, multiple, halo):
    """Means over groups of ``multiple`` rows, and moving means over ``2 * halo + 1`` rows with zero padding."""

    def grouped(x, y):
        rows = torch.arange(x.shape[1]) // multiple
        return torch.stack([(x * y)[:, rows == row].mean(1) for row in rows], dim=1)  # each row: mean of its group

    def smoothed(x):
        return torch.nn.functional.avg_pool2d(x, (2 * halo + 1, 1), stride=1, padding=(halo, 0))

    x, y = torch.rand(2, 2, height, 3, 4)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(layers, "STRIP_ELEMENTS", strip)
        torch.testing.assert_close(by_rows(grouped, x, y, multiple=multiple), grouped(x, y))
        planes = x.permute(0, 3, 1, 2)
        torch.testing.assert_close(by_rows(smoothed, planes, dim=2, halo=halo), smoothed(planes))


def test_strip_height_is_limited_only_without_gradients(monkeypatch):
    monkeypatch.setattr(layers, "STRIP_ELEMENTS", 2 * 3 * 4 * 5)  # five rows of the features below
    heights = []

    def doubled(x):
        heights.append(x.shape[1])
        return 2 * x

    x = torch.rand(2, 12, 3, 4)
    with torch.no_grad():
        by_rows(doubled, x)
        by_rows(doubled, x, multiple=4)
        by_rows(doubled, x[:, :5])
    by_rows(doubled, x)
    assert heights == [5, 5, 2, 4, 4, 4, 5, 12]


def test_strips_are_larger_on_devices_other_than_the_cpu():
    heights = []

    def copied(x):
        heights.append(x.shape[1])
        return x.clone()

    x = torch.empty(1, 1 << 13, 1 << 10, 8, device="meta")  # two strips of GPU_STRIP_ELEMENTS
    with torch.no_grad():
        assert by_rows(copied, x).shape == x.shape
        by_rows(copied, x[:, : 1 << 12])
    assert heights == [1 << 12] * 3


def test_rowwise_reads_the_group_size_from_a_module_attribute(monkeypatch):
    monkeypatch.setattr(layers, "STRIP_ELEMENTS", 2 * 3 * 4 * 5)  # five rows of the features below

    class Flip(torch.nn.Module):
        """Reverses the rows within each group."""

        side = 4

        @rowwise(multiple="side")
        def forward(self, x):
            return x.unflatten(1, (-1, self.side)).flip(2).flatten(1, 2)

    x = torch.rand(2, 12, 3, 4)
    with torch.no_grad():
        strips = Flip()(x)
    assert torch.equal(strips, Flip()(x))


@pytest.mark.parametrize("norms_alone", [False, True])
def test_batchnorm_in_training_mode_uses_complete_images(monkeypatch, norms_alone):
    """Without gradients, as in torch.optim.swa_utils.update_bn; also if only the norms are in training mode."""
    monkeypatch.setattr(layers, "STRIP_ELEMENTS", 4 * 3 * 8)
    block, x = RDCNN(4).train(not norms_alone), torch.randn(2, 4, 32, 3)
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.train()
    other = copy.deepcopy(block)
    wanted = other(x)
    with torch.no_grad():
        torch.testing.assert_close(block(x), wanted)
    for name, buffer in block.named_buffers():
        torch.testing.assert_close(buffer, other.get_buffer(name))


@pytest.mark.parametrize("activation, reference", [(gelu, torch.nn.functional.gelu), (silu, torch.nn.functional.silu)])
def test_activations_run_in_place_only_without_gradients(activation, reference):
    x = torch.randn(100)
    kept, wanted = x.clone(), reference(x)
    torch.testing.assert_close(activation(x), wanted)
    torch.testing.assert_close(x, kept, rtol=0, atol=0)
    with torch.no_grad():
        assert activation(x).data_ptr() == x.data_ptr()
    torch.testing.assert_close(x, wanted)


class Adapter(torch.nn.Module):
    """A low-rank adapter as in peft: it replaces a layer and exposes that layer's weight and bias."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = torch.nn.Linear(layer.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, layer.out_features, bias=False)

    weight = property(lambda self: self.layer.weight)
    bias = property(lambda self: self.layer.bias)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def adapt(block):
    block.fc1, block.fc2 = Adapter(block.fc1), Adapter(block.fc2)


def prune_weights(block):
    prune.l1_unstructured(block.fc1, "weight", amount=0.5)
    with torch.no_grad():
        block.fc1.weight_orig.add_(1)  # as an optimizer does; the next forward pass updates ``weight``


def replace_forward(block):
    block.fc2.forward = lambda x: 3 * x


def parametrize_weights(block):
    torch.nn.utils.parametrizations.weight_norm(block.fc1)
    with torch.no_grad():
        block.fc1.parametrizations.weight.original0.mul_(2)


@pytest.mark.parametrize("change", [adapt, prune_weights, replace_forward, parametrize_weights])
def test_modified_layer_takes_effect_without_gradients(change):
    block, x = Mlp(8, 8), torch.randn(5, 8)
    with torch.no_grad():
        unchanged = block(x)
        change(block)
        changed = block(x)
    torch.testing.assert_close(changed, block(x).detach())
    assert (changed - unchanged).abs().max() > 1e-3


def test_hooks_receive_the_same_results_with_and_without_gradients():
    """Hooks of single modules and global hooks; their results must not be overwritten later."""
    torch.manual_seed(0)
    network = RestorMixer(base_channels=8, num_blocks=(1, 2, 2)).eval()
    x = torch.rand(1, 3, 16, 16)
    names = {module: name for name, module in network.named_modules()}

    def seen(gradient, register):
        results = {}
        handles = register(lambda module, _, y: results.update({names[module]: y}))
        with torch.set_grad_enabled(gradient):
            network(x)
        for handle in handles:
            handle.remove()
        return {name: y.detach() for name, y in results.items() if isinstance(y, torch.Tensor)}

    def single(hook):
        return [module.register_forward_hook(hook) for module in names]

    def every(hook):
        return [torch.nn.modules.module.register_module_forward_hook(hook)]

    wanted = seen(True, single)
    assert {"encoder.mt_half.units.0.emvm.mlp.fc1", "encoder.rdcnn.0.conv.norm"} <= wanted.keys()
    for register in (single, every):
        results = seen(False, register)
        assert results.keys() == wanted.keys()
        for name, y in results.items():
            torch.testing.assert_close(
                y, wanted[name], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("part", ["encoder", "decoder", "around"])
def test_weights_loaded_into_a_submodule_or_through_a_parent_are_fused_again(part):
    torch.manual_seed(0)
    network = wake(RestorMixer(base_channels=8, num_blocks=(1, 2, 2))).fuse()
    other = wake(RestorMixer(base_channels=8, num_blocks=(1, 2, 2)))
    for norm in (module for module in other.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean)
        torch.nn.init.uniform_(norm.weight)
    x = torch.rand(1, 3, 16, 16)
    if part == "around":
        torch.nn.Sequential(network).load_state_dict(torch.nn.Sequential(other).state_dict())
    else:
        getattr(network, part).load_state_dict(getattr(other, part).state_dict())
    unfused = copy.deepcopy(network).train().eval()
    with torch.no_grad():
        torch.testing.assert_close(network(x), unfused(x), rtol=1e-4, atol=1e-5)
