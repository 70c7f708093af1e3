"""The native scan against a float64 loop and golden values: outputs, gradients and dtypes."""

from __future__ import annotations

import pytest
import torch
from native_scan_cases import (
    DIRECTIONS,
    HERE,
    INSTRUCTION_SETS,
    assert_close,
    check_1d,
    check_2d,
    inputs_1d,
    inputs_2d,
    leaves,
    loop,
    loop_2d,
    needs_kernel,
    scan_1d,
    scan_2d,
)
from safetensors.torch import load_file

from restormixer_arch.native import library as native_library

pytestmark = needs_kernel


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


@pytest.fixture(params=INSTRUCTION_SETS)
def each_instruction_set(request, monkeypatch):
    if native_library._LIBRARY.restormixer_isa(request.param.encode()) is None:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setattr(native_library, "_ISA", request.param.encode())


def test_one_channel_matches_manually_computed_values():
    """A = -ln 2 and delta = 1 halve the state at each step: h = 3, 3/2 + 5, ...; y = 2 h + 10 u."""
    u = torch.tensor([[[3.0, 5.0, -1.0]]])
    ones = torch.ones(1, 1, 3)
    log_half = -torch.log(torch.tensor([[2.0]]))
    y, state = scan_1d(u, ones, log_half, ones, 2 * ones, D=torch.tensor([10.0]), return_last_state=True)
    torch.testing.assert_close(y, torch.tensor([[[36.0, 63.0, -5.5]]]))
    torch.testing.assert_close(state, torch.tensor([[[2.25]]]))


@pytest.mark.parametrize("case", ["no_skip", "one_group", "three_groups", "gated"])
def test_golden_values(case, each_instruction_set):
    golden = load_file(HERE / "golden" / "selective_scan.safetensors")
    golden = {key.split("/")[1]: value for key, value in golden.items() if key.startswith(f"{case}/")}
    names = [n for n in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias") if n in golden]
    args = dict(zip(names, leaves(golden[n] for n in names), strict=True))
    y, state = scan_1d(**args, delta_softplus=True, return_last_state=True)
    assert_close("out", y, golden["out"], 1e-5)
    assert_close("last_state", state, golden["last_state"], 1e-5)
    for name, grad in zip(names, torch.autograd.grad(y, args.values(), golden["grad_out"]), strict=True):
        assert_close(f"grad {name}", grad, golden[f"grad_{name}"], 1e-5)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000])
def test_lengths(length):
    check_1d(inputs_1d(length=length), 1e-5)


@pytest.mark.parametrize("states", [1, 3, 16, 17, 64])
def test_states(states, each_instruction_set):
    check_1d(inputs_1d(states=states, length=70))


@pytest.mark.parametrize("groups", [None, 0, 1, 2, 5])
@pytest.mark.parametrize("softplus", [True, False])
def test_groups(groups, softplus):
    args = inputs_1d(groups=groups)
    if not softplus:  # a negative time step would let the state grow without bound
        args["delta"], args["delta_bias"] = args["delta"].abs() / 10, args["delta_bias"].abs() / 10
    check_1d(args, softplus=softplus)


@pytest.mark.parametrize("b_groups, c_groups", [(0, None), (None, 0), (0, 4), (5, 0)])
def test_mixed_forms_of_b_and_c(b_groups, c_groups):
    args = inputs_1d(groups=b_groups)
    args["C"] = inputs_1d(groups=c_groups, seed=1)["C"]
    check_1d(args)


@pytest.mark.parametrize("left_out", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_optional_arguments(left_out):
    check_1d(inputs_1d(**dict.fromkeys(left_out, False)), last=False)


def _channels_last(t):
    return t.transpose(1, 2).contiguous().transpose(1, 2) if t.dim() == 3 else t


def _every_second(t):
    return t.repeat_interleave(2, dim=-1)[..., ::2]


def _first_axis_last(t):
    return t.movedim(0, -1).contiguous().movedim(-1, 0)


@pytest.mark.parametrize("transform", [_channels_last, _every_second, _first_axis_last])
def test_strides(transform):
    for args in (inputs_1d(channels=32), inputs_1d(channels=20, groups=2)):
        check_1d(args, transform=transform)


def test_expanded_inputs():
    args = inputs_1d(batch=1)
    args["u"], args["B"] = args["u"][:, :1].expand(2, 20, -1), args["B"].expand(2, -1, -1)
    check_1d({**args, **{n: args[n].expand(2, -1, -1) for n in ("delta", "C", "z")}})


def test_positive_a():
    args = inputs_1d(length=40)
    check_1d({**args, "A": -args["A"] / 8, "delta": args["delta"] - 3})


def test_extreme_values(each_instruction_set):
    """|delta| up to 50 and A down to -1000: finite and correct, and zero after the state has decayed."""
    args = inputs_1d(length=130)
    args["delta"] = torch.linspace(-50, 50, args["delta"].numel()).view_as(args["delta"])
    args["A"] = -torch.logspace(-3, 3, args["A"].numel()).view_as(args["A"])
    check_1d(args, 2e-5)
    args = {**args, "delta": args["delta"].abs(), "delta_bias": args["delta_bias"].abs()}
    check_1d(args, 2e-5, softplus=False)


def test_nan_and_infinity_are_propagated(each_instruction_set):
    args = inputs_1d(z=False)
    args["u"][0, 3, 10] = torch.nan
    args["u"][1, 4, 20] = torch.inf
    y = scan_1d(**args, delta_softplus=True)
    assert y[0, 3, 10:].isnan().all() and y[0, 3, :10].isfinite().all()
    assert not y[1, 4, 20:].isfinite().any() and y[1, :4].isfinite().all()
    args = inputs_1d(z=False)
    args["delta"][0, 3, 10] = torch.nan
    assert scan_1d(**args, delta_softplus=True)[0, 3, 10:].isnan().all()


def test_long_slow_decay(each_instruction_set):
    """With a decay of 1e-4 per step, an error in the slope of exp at 0 would accumulate over 20000 steps."""
    args = {"u": torch.ones(1, 1, 20000), "delta": torch.full((1, 1, 20000), 1e-3), "A": torch.tensor([[-0.1]])}
    ones = torch.ones(1, 1, 20000)
    y = scan_1d(**args, B=ones, C=ones)
    t = torch.arange(1, 20001, dtype=torch.float64)
    rate = args["delta"][0, 0, 0].double() * args["A"].double()
    wanted = 1e-3 * (1 - torch.exp(rate * t)) / (1 - torch.exp(rate))
    assert_close("y", y[0, 0], wanted[0], 2e-4)


@pytest.mark.parametrize("directions", [(name,) for name in DIRECTIONS] + [DIRECTIONS, DIRECTIONS[:0:-1]], ids=str)
@pytest.mark.parametrize("size", [(5, 7), (1, 9), (13, 1), (9, 8)])
def test_directions(directions, size):
    check_2d(inputs_2d(2, *size, count=len(directions)), directions)


def test_2d_on_each_instruction_set(each_instruction_set):
    check_2d(inputs_2d(channels=48), DIRECTIONS)
    check_2d(inputs_2d(channels=5, states=4), DIRECTIONS)


def test_2d_scan_order_of_each_direction():
    """If the state does not decay, y is the cumulative sum of x in scan order."""
    x = torch.arange(6.0).view(1, 2, 3, 1)
    one = torch.full((1, 2, 3, 1, 1), 1.0)
    ones = one.new_full((1, 1, 1), 0.0), one, one, torch.zeros(1, 1), torch.full((1, 1), 0.5413248546)  # softplus: 1
    wanted = {
        "row": [[0, 1, 3], [6, 10, 15]],
        "column": [[0, 4, 10], [3, 8, 15]],
        "row_reverse": [[15, 15, 14], [12, 9, 5]],
        "column_reverse": [[15, 12, 7], [15, 11, 5]],
    }
    for name, y in wanted.items():
        got = scan_2d(x, torch.zeros_like(one), *ones, (name,))
        torch.testing.assert_close(got, torch.tensor(y, dtype=torch.float32).view(1, 2, 3, 1))


def test_2d_accepts_any_strides():
    x, delta, *rest = inputs_2d(2, 6, 5, count=2)
    planes = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    part = torch.cat([delta, delta], dim=2)[:, :, : delta.shape[2]]
    wanted = scan_2d(x, delta, *rest, ("row", "column"))
    torch.testing.assert_close(scan_2d(planes, part, *rest, ("row", "column")), wanted)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (2, 6), (5, 17), (13, 6)])
def test_2d_accepts_channels_first_memory(height, width, direction):
    """Only along rows are steps adjacent in memory; elsewhere a chunk's first and last step may be as far apart."""

    def by_channels(t):
        return t.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)

    x, *rest = inputs_2d(1, height, width, channels=8, states=4, count=1)
    got_in, want_in = leaves((by_channels(x), *rest)), leaves((x, *rest), torch.float64)
    y, y_want = scan_2d(*got_in, (direction,)), loop_2d(*want_in, (direction,))
    assert_close("y", y, y_want, 5e-6)
    grad = torch.randn_like(x)
    want = torch.autograd.grad(y_want, want_in, grad.double())
    for name, a, b in zip(
        "x delta A B C D bias".split(), torch.autograd.grad(y, got_in, by_channels(grad)), want, strict=True
    ):
        assert_close(f"grad {name}", a, b, 5e-6)


# ------------------------------------------------------------------ dtypes


@pytest.mark.parametrize("streams", ["all", "u", "delta"])
def test_bfloat16_is_rounded_once(streams):
    """Computed in float32 from the given inputs: the result is that of the float64 loop, rounded to bfloat16."""
    args = inputs_1d(channels=32, length=80)
    names = ("u", "delta", "B", "C", "z") if streams == "all" else (streams,)
    args = {n: t.bfloat16() if n in names else t for n, t in args.items()}
    got_in, want_in = leaves(args.values()), leaves(args.values(), torch.float64)
    y = scan_1d(**dict(zip(args, got_in, strict=True)), delta_softplus=True)
    y_want, _ = loop(**dict(zip(args, want_in, strict=True)), delta_softplus=True)
    assert y.dtype is args["u"].dtype
    assert_close("y", y, y_want, 4e-3)
    grad = torch.randn_like(y)
    want = torch.autograd.grad(y_want, want_in, grad.double())
    for name, a, b in zip(args, torch.autograd.grad(y, got_in, grad), want, strict=True):
        assert a.dtype is args[name].dtype
        assert_close(f"grad {name}", a, b, 4e-3)


def test_2d_bfloat16_sums_directions_in_float32():
    args = [t.bfloat16() if t.dim() > 3 else t for t in inputs_2d(channels=16)]
    y = scan_2d(*args, DIRECTIONS)
    exact = scan_2d(*(t.float() for t in args), DIRECTIONS)
    assert torch.equal(y, exact.bfloat16())
    got = leaves(args)
    grads = torch.autograd.grad(scan_2d(*got, DIRECTIONS), got, torch.ones_like(y))
    assert [g.dtype for g in grads] == [t.dtype for t in args]


def test_float16_is_computed_in_float32():
    args = {n: t.half() for n, t in inputs_1d().items()}
    y = scan_1d(**args, delta_softplus=True)
    exact = scan_1d(**{n: t.float() for n, t in args.items()}, delta_softplus=True)
    assert y.dtype is torch.float16 and torch.equal(y, exact.half())


def test_autocast_does_not_affect_the_scan():
    args = inputs_2d()
    with torch.autocast("cpu", torch.bfloat16):
        y = scan_2d(*args, DIRECTIONS)
    assert y.dtype is torch.float32 and torch.equal(y, scan_2d(*args, DIRECTIONS))
