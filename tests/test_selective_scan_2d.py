"""Scans of an image: manually computed values for every direction, and every backend against the definition."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import assert_close, results, usable

from restormixer_arch.selective_scan import DIRECTIONS, segment, selective_scan_2d
from restormixer_arch.selective_scan.definition import selective_scan_2d_loop, token_order

NATIVE = usable("native")
NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias")
S3 = ("column", "row_reverse", "column_reverse")


def image_inputs(count, batch=2, height=3, width=4, channels=3, states=2, dtype=torch.float64):
    tokens = (batch, height, width)
    return {
        "x": torch.randn(*tokens, channels, dtype=dtype),
        "delta": torch.randn(*tokens, count, channels, dtype=dtype),
        "A": -0.2 - 1.8 * torch.rand(count, channels, states, dtype=dtype),
        "B": torch.randn(*tokens, count, states, dtype=dtype),
        "C": torch.randn(*tokens, count, states, dtype=dtype),
        "D": torch.randn(count, channels, dtype=dtype),
        "delta_bias": torch.randn(count, channels, dtype=dtype) - 1,
    }


@pytest.mark.parametrize(
    ("direction", "order"),
    {
        "row": [0, 1, 2, 3, 4, 5],
        "column": [0, 3, 1, 4, 2, 5],
        "row_reverse": [5, 4, 3, 2, 1, 0],
        "column_reverse": [5, 2, 4, 1, 3, 0],
    }.items(),
)
def test_order_of_a_2x3_image(direction, order):
    assert token_order(direction, 2, 3).tolist() == order


# Sums of the tokens visited so far: no decay (A = 0), steps of 1 (softplus(ln(e - 1)) = 1), weights of 1, no skip.
SUMS = {
    "row": [[1, 11, 111], [1111, 11111, 111111]],
    "column": [[1, 1011, 11111], [1001, 11011, 111111]],
    "row_reverse": [[111111, 111110, 111100], [111000, 110000, 100000]],
    "column_reverse": [[111111, 110110, 100100], [111110, 110100, 100000]],
}


def running_sums(directions, backend):
    count = len(directions)
    one = torch.ones(1, 2, 3, count, 1)
    x = torch.tensor([[1.0, 10.0, 100.0], [1000.0, 10000.0, 100000.0]]).view(1, 2, 3, 1)
    nothing, bias = torch.zeros(count, 1), torch.full((count, 1), math.log(math.e - 1))
    sums = selective_scan_2d(x, 0 * one, nothing[..., None], one, one, nothing, bias, directions, backend=backend)
    return sums.view(2, 3)


@pytest.mark.parametrize("backend", ["definition", "torch", NATIVE])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_running_sums_of_a_2x3_image(direction, backend):
    torch.testing.assert_close(running_sums((direction,), backend), torch.tensor(SUMS[direction]).float())


@pytest.mark.parametrize("backend", ["definition", "torch", NATIVE])
def test_directions_are_restored_to_image_order_and_summed(backend):
    wanted = sum(torch.tensor(SUMS[name]) for name in S3).float()
    torch.testing.assert_close(running_sums(S3, backend), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("directions", [*((name,) for name in DIRECTIONS), S3, DIRECTIONS], ids="+".join)
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_values_and_gradients_match_the_definition(backend, directions, dtype):
    tensors = image_inputs(len(directions), height=5, width=7)
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {k: t.to(dtype if k in ("x", "delta", "B", "C") else parameters) for k, t in tensors.items()}
    found = results(selective_scan_2d, tensors, directions=directions, backend=backend)
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-2}[dtype]
    assert found["out"].dtype == dtype
    assert_close(found, results(selective_scan_2d_loop, exact, directions=directions), tolerance)


@settings(max_examples=25)
@given(data=st.data())
def test_random_sizes_and_directions_match_the_definition(data):
    sizes = data.draw(st.tuples(*[st.integers(1, 6)] * 5))
    directions = tuple(data.draw(st.lists(st.sampled_from(DIRECTIONS), min_size=1, unique=True)))
    tensors = image_inputs(len(directions), *sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "CPU_SEGMENT", data.draw(st.integers(1, 400)))
        found = results(selective_scan_2d, tensors, directions=directions, backend="torch")
    assert_close(found, results(selective_scan_2d_loop, tensors, directions=directions), 1e-10)


@pytest.mark.parametrize("backend", ["torch", NATIVE])
def test_noncontiguous_inputs(backend):
    """As in the network, B, C and delta are slices of one tensor, so their rows are not adjacent in memory."""
    tensors = {name: tensor.float() for name, tensor in image_inputs(3).items()}
    wanted = results(selective_scan_2d, tensors, directions=S3, backend=backend)
    names = ("delta", "B", "C")
    joined = torch.cat([tensors[name] for name in names], dim=-1)
    views = joined.split([tensors[name].shape[-1] for name in names], dim=-1)
    tensors |= dict(zip(names, views, strict=True))
    tensors["x"] = tensors["x"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not tensors["x"].is_contiguous() and not tensors["B"].is_contiguous()
    assert_close(results(selective_scan_2d, tensors, directions=S3, backend=backend), wanted, 2e-6)


def test_gradcheck():
    tensors = image_inputs(2, batch=1, height=2, width=3, channels=2)

    def scan(*values):
        return selective_scan_2d(*values, ("column", "row_reverse"), backend="torch")

    assert torch.autograd.gradcheck(scan, [tensors[name].requires_grad_() for name in NAMES])


@pytest.mark.parametrize("backend", ["definition", "torch", NATIVE])
def test_autocast_does_not_lower_the_precision(backend):
    tensors = {name: tensor.float() for name, tensor in image_inputs(3).items()}
    wanted = results(selective_scan_2d, tensors, directions=S3, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(selective_scan_2d, tensors, directions=S3, backend=backend)
    assert_close(found, wanted, 1e-7)


def bad_input(name, value):
    tensors = image_inputs(1)
    tensors[name] = value(tensors[name])
    return tensors


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("x", lambda t: t[0], ValueError, r"x must be \(B, H, W, D\), got shape \(3, 4, 3\)"),
        ("A", lambda t: t[0], ValueError, r"A must be \(K, D, N\), got shape \(3, 2\)"),
        ("A", lambda t: t[:, :2], ValueError, r"A must be \(K, D, N\) = \(1, 3, 2\), got \(1, 2, 2\)"),
        ("delta", lambda t: t[..., 0], ValueError, r"delta must be \(B, H, W, K, D\) = .*, got \(2, 3, 4, 1\)"),
        ("B", lambda t: t[:1], ValueError, r"B must be .* = \(2, 3, 4, 1, 2\), got \(1, 3, 4, 1, 2\)"),
        ("C", lambda t: t[..., :1], ValueError, r"C must be .* = \(2, 3, 4, 1, 2\), got \(2, 3, 4, 1, 1\)"),
        ("D", lambda t: t[0], ValueError, r"D must be \(K, D\) = \(1, 3\), got \(3,\)"),
        ("delta_bias", lambda t: t[0], ValueError, r"delta_bias must be \(K, D\) = \(1, 3\), got \(3,\)"),
        ("x", lambda t: t[:0], ValueError, r"x must not be empty, got shape \(0, 3, 4, 3\)"),
        ("B", lambda t: t.int(), TypeError, "B must be real and floating-point, got torch.int32"),
        ("C", lambda t: t.to("meta"), ValueError, "C must be on the device of x, cpu, got meta"),
    ],
)
def test_invalid_inputs_are_rejected(name, value, error, message):
    with pytest.raises(error, match=message):
        selective_scan_2d(**bad_input(name, value), directions=("row",))


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        (("rows",), "one of row, column, row_reverse, column_reverse, got 'rows'. Did you mean 'row'"),
        (("row", "row"), r"different names, got \('row', 'row'\)"),
        ((), r"one or more different names, got \(\)"),
    ],
)
def test_invalid_directions_are_rejected(directions, message):
    with pytest.raises(ValueError, match=message):
        selective_scan_2d(**image_inputs(max(1, len(directions))), directions=directions)
