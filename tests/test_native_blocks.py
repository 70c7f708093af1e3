"""GELU and window attention of the compiled library: values and gradients equal float64 torch; fallbacks."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from restormixer_arch.layers import ConvNormAct, conv, conv_act, linear_act
from restormixer_arch.mwsa import WindowAttention
from restormixer_arch.native import blocks as native_blocks
from restormixer_arch.native import library as native_library

pytestmark = pytest.mark.skipif(bool(native_library.REASON), reason=native_library.REASON or "the library is there")


def attention_in_float64(qkv, heads):
    q, k, v = qkv.double().unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
    return (weights @ v).permute(0, 2, 1, 3).flatten(2)


def test_gelu_equals_torch_over_its_range():
    x = torch.cat([torch.linspace(-14, 14, 200_003), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 80.0, -80.0, 3e38])])
    wanted = F.gelu(x.double())
    torch.testing.assert_close(native_blocks.gelu(x).double(), wanted, rtol=3e-7, atol=4e-7)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(native_blocks.gelu(x[:-1]).sum(), x)
    (expected,) = torch.autograd.grad(F.gelu(x.double()).sum(), x)
    torch.testing.assert_close(gradient[:-1], expected[:-1], rtol=0, atol=5e-7)


def test_gelu_of_nan_and_infinity():
    x = torch.tensor([float("nan"), float("inf")])
    y = native_blocks.gelu(x)
    assert torch.isnan(y[0]) and y[1] == float("inf")


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 8, 16, 20, 48]), st.integers(1, 9), st.integers(1, 40)),
    channels_last=st.booleans(),
    grad_channels_last=st.booleans(),
)
def test_gelu_with_scale_and_shift_equals_torch(shape, channels_last, grad_channels_last):
    formats = {True: torch.channels_last, False: torch.contiguous_format}
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator).to(memory_format=formats[channels_last]).requires_grad_()
    scale, shift = (torch.randn(shape[1], generator=generator).requires_grad_() for _ in range(2))
    weight = torch.randn(shape, generator=generator).to(memory_format=formats[grad_channels_last])
    y = native_blocks.gelu(x, scale, shift)
    wanted = F.gelu(x.double() * scale.double()[:, None, None] + shift.double()[:, None, None])
    torch.testing.assert_close(y.double(), wanted, rtol=1e-6, atol=1e-6)
    found = torch.autograd.grad(y, (x, scale, shift), weight)
    expected = torch.autograd.grad(wanted, (x, scale, shift), weight.double())
    for gradient, value in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-5, atol=1e-5 * (1 + value.abs().max().item()))


@pytest.mark.parametrize(
    "view", [lambda x: x, lambda x: x[:, :, 1:5], lambda x: x.transpose(2, 3), lambda x: x[..., ::2]]
)
def test_gelu_in_place_changes_only_the_view(view):
    x = torch.randn(2, 16, 8, 12)
    around, part = x.clone(), view(x)
    wanted = F.gelu(part)
    assert native_blocks.gelu_(part) is part
    torch.testing.assert_close(part, wanted)
    view(around).copy_(wanted)
    torch.testing.assert_close(x, around)  # values outside the view are unchanged


@pytest.mark.parametrize("tokens", [1, 9, 16, 64, 100, 256])
@pytest.mark.parametrize(("heads", "dim"), [(1, 1), (2, 3), (4, 8), (3, 12), (2, 32)])
def test_window_attention_equals_torch(tokens, heads, dim):
    qkv = torch.randn(3, tokens, 3 * heads * dim).requires_grad_()
    weight = torch.randn(3, tokens, heads * dim)
    y = native_blocks.window_attention(qkv, heads)
    wanted = attention_in_float64(qkv, heads)
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)
    (found,) = torch.autograd.grad(y, qkv, weight)
    (expected,) = torch.autograd.grad(wanted, qkv, weight.double())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_window_attention_with_large_exponents():
    """Softmax of exponents for which float32's exp overflows."""
    qkv = 12 * torch.randn(2, 64, 3 * 16)  # products up to 1000, which float32 represents to 1e-4
    torch.testing.assert_close(
        native_blocks.window_attention(qkv, 2).double(), attention_in_float64(qkv, 2), rtol=1e-3, atol=1e-3
    )


def test_values_do_not_depend_on_the_number_of_threads():
    qkv, x = torch.randn(40, 64, 96), torch.randn(2, 16, 130, 130)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append((native_blocks.window_attention(qkv, 4), native_blocks.gelu(x)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_layers_with_native_operators_equal_the_torch_fallback(monkeypatch):
    torch.manual_seed(0)
    layer, attention = ConvNormAct(conv(3, 24, 3)), WindowAttention(24, 4)
    nn.init.normal_(layer.norm.weight)
    layer.norm.running_mean.normal_()
    layer.norm.running_var.uniform_(0.5, 2)
    depthwise, linear = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Linear(24, 30)
    x, windows = torch.randn(2, 3, 10, 11), torch.randn(5, 64, 24)

    def results():
        layer.train()
        layer.norm.eval()  # frozen
        gradients = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
        layer.eval().fuse()
        with torch.no_grad():
            y = layer(x)
            rest = conv_act(depthwise, y, "swish"), linear_act(linear, windows, "gelu"), attention(windows)
            wide = torch.randn(2, 24, 20, 11, generator=torch.Generator().manual_seed(1))
            last = wide.contiguous(memory_format=torch.channels_last)
            sums = [  # also with rows of a larger image as residual
                conv_act(depthwise, y, activation, residual=residual)
                for residual in (wide[..., 4:14, :], last[..., 4:14, :])
                for activation in ("none", "gelu")
            ]
            assert torch.equal(wide, last)  # residuals are not modified
        return [*gradients, y, *rest, *sums, linear_act(linear, windows)]

    calls, run = [], native_library.run
    monkeypatch.setattr(native_library, "run", lambda name, call: calls.append(name) or run(name, call))
    fast = results()
    assert set(calls) == {"restormixer_gelu", "restormixer_attention"}
    monkeypatch.setattr(native_blocks, "on_cpu", lambda x: False)
    for one, other in zip(fast, results(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_other_dtypes_devices_and_autocast_are_left_to_torch():
    assert native_blocks.usable(torch.zeros(2))
    assert not native_blocks.usable(torch.zeros(2, dtype=torch.float64))
    assert not native_blocks.usable(torch.zeros(2, device="meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not native_blocks.usable(torch.zeros(2))


def test_forward_hooks_of_layers_are_called():
    called, layer = [], nn.Linear(4, 4)
    layer.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        linear_act(layer, torch.zeros(1, 4), "gelu")
    assert called


def test_flop_counter_counts_all_operations():
    """Manually computed for a convolution, a linear layer and an attention; a multiply-add is two operations."""
    depthwise, linear = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Linear(8, 5)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        conv_act(depthwise, torch.zeros(1, 8, 6, 7), "swish")
        assert counter.get_total_flops() == 2 * 9 * 8 * 6 * 7
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        conv_act(depthwise, torch.zeros(1, 8, 6, 7), residual=torch.zeros(1, 8, 6, 7))
        assert counter.get_total_flops() == 2 * 9 * 8 * 6 * 7
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        linear_act(linear, torch.zeros(3, 8), "gelu")
        assert counter.get_total_flops() == 2 * 3 * 8 * 5
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        native_blocks.window_attention(torch.zeros(2, 16, 24), 2)
        assert counter.get_total_flops() == 2 * 2 * (2 * 16 * 16 * 8)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # caused by torch itself, in jvp
def test_forward_mode_derivatives_are_computed_by_torch():
    """The library has none; with frozen parameters, torch would silently treat them as 0."""
    torch.manual_seed(0)
    net = nn.Sequential(ConvNormAct(conv(3, 8, 3)), conv(8, 4, 1)).eval().requires_grad_(False)
    x, direction = torch.rand(1, 3, 6, 6), torch.randn(1, 3, 6, 6)
    _, found = torch.func.jvp(net, (x,), (direction,))
    step = 1e-6
    net.double()
    wanted = (net(x.double() + step * direction) - net(x.double() - step * direction)) / (2 * step)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: native_blocks.gelu(torch.rand(3, dtype=torch.float64)), "x must be of dtype torch.float32"),
        (lambda: native_blocks.gelu(torch.rand(1, 3, 2, 2), torch.rand(2), torch.rand(2)), "a value for each of"),
        (lambda: native_blocks.window_attention(torch.rand(1, 4, 12).bfloat16(), 2), "qkv must be of dtype"),
        (lambda: native_blocks.window_attention(torch.rand(1, 4, 12), 3), "a multiple of 3 heads was expected"),
    ],
)
def test_unsupported_inputs_are_rejected(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_second_derivatives_raise_an_error_instead_of_being_zero():
    x = torch.randn(2, 4, 24, requires_grad=True)
    for y in (native_blocks.gelu(x), native_blocks.window_attention(x, 2)):
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative: compute it in float64"):
            gradient.sum().backward()
