"""The native scan against a float64 loop, golden cases, and the promises it makes to torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from restormixer_arch.errors import UserError
from restormixer_arch.native import library as native_library
from restormixer_arch.selective_scan import selective_scan, selective_scan_2d

HERE = Path(__file__).parent
KERNEL = HERE.parent / "restormixer_arch" / "native" / "kernel"
DIRECTIONS = ("row", "column", "row_reverse", "column_reverse")
INSTRUCTION_SETS = ("avx512", "avx2", "neon", "plain")
needs_kernel = pytest.mark.skipif(
    native_library.unusable_reason() is not None, reason=str(native_library.unusable_reason())
)
pytestmark = needs_kernel
scan_1d = partial(selective_scan, backend="native")
scan_2d = partial(selective_scan_2d, backend="native")


@pytest.fixture(autouse=True)
def _same_random_numbers():
    torch.manual_seed(0)


# ------------------------------------------------------------------ the definition, in float64


def loop(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """mamba-ssm's definition, one step at a time: (y, last state)."""
    batch, channels, length = u.shape
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt

    def steps(t):  # -> L tensors that broadcast with (B, D, N)
        if t.dim() == 2:
            return [t] * length
        t = t.unsqueeze(1) if t.dim() == 3 else t
        return t.repeat_interleave(channels // t.shape[1], dim=1).unbind(-1)

    h = u.new_zeros(batch, channels, A.shape[1])
    ys = []
    for dt_t, u_t, b_t, c_t in zip(dt.unbind(-1), u.unbind(-1), steps(B), steps(C), strict=True):
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * u_t)[..., None] * b_t
        ys.append((h * c_t).sum(-1))
    y = torch.stack(ys, -1)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * F.silu(z)), h


def loop_2d(x, delta, A, B, C, D, delta_bias, directions):
    """Flip, transpose, scan, put back: what the kernel does by index."""
    height, width = x.shape[1:3]

    def unroll(t, name):  # (B, H, W, lanes) -> (B, lanes, L)
        t = t.transpose(1, 2) if name.startswith("column") else t
        t = t.flatten(1, 2).transpose(1, 2)
        return t.flip(-1) if name.endswith("reverse") else t

    total = 0
    for k, name in enumerate(directions):
        tensors = (unroll(t, name) for t in (x, delta[:, :, :, k], B[:, :, :, k], C[:, :, :, k]))
        u, dt, b, c = tensors
        y, _ = loop(u, dt, A[k], b, c, D[k], None, delta_bias[k], True)
        y = (y.flip(-1) if name.endswith("reverse") else y).transpose(1, 2)
        columns = name.startswith("column")
        y = y.unflatten(1, (width, height)).transpose(1, 2) if columns else y.unflatten(1, (height, width))
        total = total + y
    return total


def inputs_1d(batch=2, channels=20, length=65, states=16, groups=None, seed=0, **without):
    """Arguments of the scan by name; groups None: B and C are (B, N, L), 0: constant."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    shapes = {None: (batch, states, length), 0: (channels, states)}
    shape = shapes.get(groups, (batch, groups, states, length))
    args = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length) - 1,
        "A": -8 * torch.rand(channels, states, generator=g),
        "B": normal(*shape),
        "C": normal(*shape),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }
    return {name: value for name, value in args.items() if without.get(name, True)}


def inputs_2d(batch=1, height=5, width=7, channels=20, states=16, count=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    projected = torch.randn(batch, height, width, count, 3 + 2 * states, generator=g)
    return (
        torch.randn(batch, height, width, channels, generator=g),
        torch.randn(batch, height, width, count, channels, generator=g) - 1,
        -8 * torch.rand(count, channels, states, generator=g),
        projected[..., 3 : 3 + states],  # views, as in the network
        projected[..., 3 + states :],
        torch.randn(count, channels, generator=g),
        torch.randn(count, channels, generator=g),
    )


def leaves(tensors, dtype=None):
    return [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]


def assert_close(name, got, wanted, tolerance):
    """Largest error relative to the largest value, since gradients range over decades."""
    assert torch.isfinite(got).all(), f"{name} is not finite"
    scale = max(wanted.abs().max().item(), 1e-6) if wanted.numel() else 1.0
    error = (got.detach().double() - wanted.detach()).abs().max().item() / scale if wanted.numel() else 0.0
    assert error <= tolerance, f"{name}: relative error {error:.2e}"


def check_1d(args, tolerance=5e-6, softplus=True, last=True, transform=lambda t: t):
    """Values and all gradients against the loop, the last state's gradient included."""
    names = list(args)
    got_in, want_in = leaves(args.values()), leaves(args.values(), torch.float64)
    y, state = scan_1d(
        **{n: transform(t) for n, t in zip(names, got_in, strict=True)}, delta_softplus=softplus, return_last_state=True
    )
    y_want, state_want = loop(**dict(zip(names, want_in, strict=True)), delta_softplus=softplus)
    assert_close("y", y, y_want, tolerance)
    assert_close("last_state", state, state_want, tolerance)
    grads = [torch.randn_like(y), torch.randn_like(state)][: 1 + last]
    got = torch.autograd.grad([y, state][: 1 + last], got_in, grads)
    want = torch.autograd.grad([y_want, state_want][: 1 + last], want_in, [g.double() for g in grads])
    for name, a, b in zip(names, got, want, strict=True):
        assert_close(f"grad {name}", a, b, tolerance)


def check_2d(args, directions, tolerance=5e-6):
    got_in, want_in = leaves(args), leaves(args, torch.float64)
    y, y_want = scan_2d(*got_in, directions), loop_2d(*want_in, directions)
    assert_close("y", y, y_want, tolerance)
    grad = torch.randn_like(y)
    names = ("x", "delta", "A", "B", "C", "D", "delta_bias")
    got, want = torch.autograd.grad(y, got_in, grad), torch.autograd.grad(y_want, want_in, grad.double())
    for name, a, b in zip(names, got, want, strict=True):
        assert_close(f"grad {name}", a, b, tolerance)


@pytest.fixture(params=INSTRUCTION_SETS)
def each_instruction_set(request, monkeypatch):
    if native_library._LIBRARY.restormixer_isa(request.param.encode()) is None:
        pytest.skip(f"this processor has no {request.param}")
    monkeypatch.setattr(native_library, "_ISA", request.param.encode())


# ------------------------------------------------------------------ values and gradients


def test_one_channel_by_hand():
    """A = -ln 2 and delta = 1 halve the state at each step: h = 3, 3/2 + 5, ...; y = 2 h + 10 u."""
    u = torch.tensor([[[3.0, 5.0, -1.0]]])
    ones = torch.ones(1, 1, 3)
    log_half = -torch.log(torch.tensor([[2.0]]))
    y, state = scan_1d(u, ones, log_half, ones, 2 * ones, D=torch.tensor([10.0]), return_last_state=True)
    torch.testing.assert_close(y, torch.tensor([[[36.0, 63.0, -5.5]]]))
    torch.testing.assert_close(state, torch.tensor([[[2.25]]]))


@pytest.mark.parametrize("case", ["no_skip", "one_group", "three_groups", "gated"])
def test_golden(case, each_instruction_set):
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


def test_positive_a_grows():
    args = inputs_1d(length=40)
    check_1d({**args, "A": -args["A"] / 8, "delta": args["delta"] - 3})


def test_extremes(each_instruction_set):
    """|delta| up to 50 and A down to -1000: finite, right, and zero where the state has died."""
    args = inputs_1d(length=130)
    args["delta"] = torch.linspace(-50, 50, args["delta"].numel()).view_as(args["delta"])
    args["A"] = -torch.logspace(-3, 3, args["A"].numel()).view_as(args["A"])
    check_1d(args, 2e-5)
    args = {**args, "delta": args["delta"].abs(), "delta_bias": args["delta_bias"].abs()}
    check_1d(args, 2e-5, softplus=False)


def test_nan_and_infinity_stay_visible(each_instruction_set):
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
    """A decay of 1e-4 a step over 20000 steps: an error in the exponential's slope at 0 would pile up."""
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


def test_2d_walks_the_image_by_index():
    """With a state that never decays, y is the running sum in the order of the walk."""
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


def test_2d_takes_any_strides():
    x, delta, *rest = inputs_2d(2, 6, 5, count=2)
    planes = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    part = torch.cat([delta, delta], dim=2)[:, :, : delta.shape[2]]
    wanted = scan_2d(x, delta, *rest, ("row", "column"))
    torch.testing.assert_close(scan_2d(planes, part, *rest, ("row", "column")), wanted)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (2, 6), (5, 17), (13, 6)])
def test_2d_takes_channels_first_memory(height, width, direction):
    """Steps lie side by side in memory along rows alone, even where a chunk's first and last step are as far apart."""

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
    """Computed in float32 from what was given: the result is the float64 loop's, rounded to bfloat16."""
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


def test_autocast_leaves_the_scan_alone():
    args = inputs_2d()
    with torch.autocast("cpu", torch.bfloat16):
        y = scan_2d(*args, DIRECTIONS)
    assert y.dtype is torch.float32 and torch.equal(y, scan_2d(*args, DIRECTIONS))


# ------------------------------------------------------------------ threads and processes


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _values_and_gradients(args):
    tensors = leaves(args)
    y = scan_2d(*tensors, DIRECTIONS)
    return [y.detach(), *torch.autograd.grad(y, tensors, torch.ones_like(y))]


def test_threads_change_nothing_but_rounding(threads):
    args = inputs_2d(1, 12, 13, channels=80)
    results = {}
    for count in (1, 2, 3, 5):
        threads(count)
        results[count] = _values_and_gradients(args)
        again = _values_and_gradients(args)
        assert all(torch.equal(a, b) for a, b in zip(results[count], again, strict=True)), f"{count} threads"
    for count, tensors in results.items():
        for i, (a, b) in enumerate(zip(tensors, results[1], strict=True)):
            assert_close(f"{count} threads, tensor {i}", a, b.double(), 2e-6)


def test_calls_from_several_python_threads(threads):
    threads(2)
    cases = [inputs_2d(1, 20, 16, channels=32, seed=seed) for seed in range(4)]
    wanted = [_values_and_gradients(case) for case in cases]
    start = threading.Barrier(4)

    def work(i):
        torch.set_num_threads(2)
        start.wait()
        return [_values_and_gradients(cases[i]) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for want, runs in zip(wanted, pool.map(work, range(4)), strict=True):
            assert all(torch.equal(a, b) for run in runs for a, b in zip(run, want, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_after_fork(threads):
    """The child has none of the parent's OpenMP threads, and must neither wait for them nor lose the result."""
    threads(2)
    args = inputs_1d(1, 32, 1000, states=32)  # enough work for two threads, yet too small for torch's own
    wanted = scan_1d(**args, delta_softplus=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        same = torch.equal(scan_1d(**args, delta_softplus=True), wanted)
        os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert torch.equal(scan_1d(**args, delta_softplus=True), wanted)


def test_threads_of_its_own(threads, monkeypatch):
    """Without torch's OpenMP runtime the kernel starts threads itself."""
    args = inputs_1d(1, 64, 1000, states=16)
    threads(2)
    wanted = scan_1d(**args, delta_softplus=True)
    monkeypatch.setattr(native_library, "_parallel", 0)
    assert torch.equal(scan_1d(**args, delta_softplus=True), wanted)


# ------------------------------------------------------------------ torch.library


def _op_arguments(device="cpu"):
    one = inputs_1d(1, 4, 5, 3, z=False)
    two = inputs_2d(1, 2, 3, 4, 3, 2)
    return {
        "scan_1d": (*leaves(one[n] for n in ("u", "delta", "A", "B", "C", "D")), None, None, True, True),
        "scan_2d": (*leaves(two), [1, 2], "native", True),
    }


@pytest.mark.parametrize("name", ["scan_1d", "scan_2d"])
def test_opcheck(name):
    operator = getattr(torch.ops.restormixer, name).default
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(operator, _op_arguments()[name])


@pytest.mark.parametrize("name", ["scan_1d", "scan_2d"])
def test_opcheck_of_the_backward_pass(name):
    args = [t.detach() if isinstance(t, torch.Tensor) else t for t in _op_arguments()[name]]
    forward = getattr(torch.ops.restormixer, name).default
    y, *_, states = forward(*args)
    head = (y, None) if name == "scan_1d" else (y,)
    options = 1 if name == "scan_1d" else 2  # softplus; directions and backend
    full = (*head, *args[: -1 - options], states, *args[-1 - options : -1])
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(getattr(torch.ops.restormixer, f"{name}_backward").default, full, test_utils=tests)


def test_gradient_without_saved_states():
    """A direct call that did not ask for saved states repeats the forward pass."""
    for name, (*args, _) in _op_arguments().items():
        operator = getattr(torch.ops.restormixer, name).default
        tensors = [t for t in args if isinstance(t, torch.Tensor)]
        kept, repeated = (torch.autograd.grad(operator(*args, keep)[0].sum(), tensors) for keep in (True, False))
        assert all(torch.equal(a, b) for a, b in zip(kept, repeated, strict=True))


def test_only_the_last_state_is_used():
    args = inputs_1d(z=False)
    tensors = leaves(args.values())
    args = dict(zip(args, tensors, strict=True))
    _, state = scan_1d(**args, delta_softplus=True, return_last_state=True)
    grad_c = torch.autograd.grad(state.sum(), tensors)[list(args).index("C")]
    assert torch.equal(grad_c, torch.zeros_like(grad_c))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in jvp
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_forward_mode_derivatives_are_refused_and_never_silently_zero(backend):
    x, *others = inputs_2d(1, 2, 3, 4, 2, 1)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative: use backend='definition'"):
        torch.func.jvp(lambda x: selective_scan_2d(x, *others, DIRECTIONS[:1], backend=backend), (x,), (x,))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in jvp
def test_forward_mode_derivatives_in_one_dimension_are_refused():
    u, *others = inputs_1d(1, 4, 5, 3, z=False).values()
    with pytest.raises(NotImplementedError, match="no forward-mode derivative: use backend='definition'"):
        torch.func.jvp(lambda u: scan_1d(u, *others[:-1], delta_bias=others[-1]), (u,), (u,))


def test_second_derivative_is_refused():
    u, *rest = leaves(inputs_1d(1, 4, 5, 3, z=False).values())
    y = scan_1d(u, *rest[:-1], delta_bias=rest[-1])
    (grad,) = torch.autograd.grad(y.sum(), u, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative.*backend='definition'"):
        grad.sum().backward()


def test_flops_are_counted():
    """7 operations a state and 6 a channel, for each token and direction."""
    args = inputs_2d(1, 3, 4, 5, 2, 2)
    with FlopCounterMode(display=False) as counter:
        scan_2d(*args, ("row", "column"))
    assert counter.get_total_flops() == 12 * 2 * 5 * (7 * 2 + 6)
    with FlopCounterMode(display=False) as counter:
        scan_1d(**inputs_1d(3, 5, 4, 2, z=False))
    assert counter.get_total_flops() == 12 * 5 * (7 * 2 + 6)


@pytest.mark.slow
def test_compile_and_export():
    args = inputs_2d(1, 4, 5, 16)

    def scan(*tensors):
        return scan_2d(*tensors, DIRECTIONS) * 2

    class Scan(torch.nn.Module):
        def forward(self, *tensors):
            return scan(*tensors)

    compiled = torch.compile(scan, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        eager_in, compiled_in = leaves(args), leaves(args)
        wanted, got = scan(*eager_in), compiled(*compiled_in)
        torch.testing.assert_close(got, wanted)
        grads = (torch.autograd.grad(y.sum(), t) for y, t in ((got, compiled_in), (wanted, eager_in)))
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)
        exported = torch.export.export(Scan(), args)
        torch.testing.assert_close(exported.module()(*args), wanted)
    assert "restormixer.scan_2d" in exported.graph_module.code


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"u": torch.zeros(2, 3)}, ValueError, r"u must be \(B, D, L\), got shape \(2, 3\)"),
        ({"delta": torch.zeros(2, 20, 3)}, ValueError, r"delta must be \(B, D, L\) = \(2, 20, 65\), got \(2, 20, 3\)"),
        ({"B": torch.zeros(2, 15, 65)}, ValueError, r"B must be \(B, N, L\) = \(2, 16, 65\), got \(2, 15, 65\)"),
        ({"C": torch.zeros(5)}, ValueError, r"C must be \(D, N\), .*got shape \(5,\)"),
        (
            {n: torch.zeros(2, 3, 16, 65) for n in "BC"},
            ValueError,
            r"groups of B must divide the 20 channels",
        ),
        ({"u": torch.zeros(2, 20, 65).double()}, TypeError, r"u must be of dtype .*bfloat16, got torch.float64"),
        (
            {"A": torch.zeros(20, 16, dtype=torch.complex64)},
            TypeError,
            "A must be real .*got torch.complex64",
        ),
        (dict.fromkeys("ABC", torch.zeros(20, 257)), ValueError, r"A must have 1 to 256 states, got 257"),
    ],
)
def test_mistakes_in_1d(change, error, message):
    with pytest.raises(error, match=message):
        scan_1d(**{**inputs_1d(), **change})


@pytest.mark.parametrize(
    "place, value, message",
    [
        (0, torch.zeros(5, 7, 20), r"x must be \(B, H, W, D\), got shape \(5, 7, 20\)"),
        (
            1,
            torch.zeros(1, 5, 7, 3, 20),
            r"delta must be .* = \(1, 5, 7, 4, 20\), got \(1, 5, 7, 3, 20\)",
        ),
        (5, torch.zeros(20), r"D must be \(K, D\) = \(4, 20\), got \(20,\)"),
        (7, ("row", "row"), r"directions must be one or more different names, got \('row', 'row'\)"),
        (7, ("diagonal",), r"a direction must be one of row, .*got 'diagonal'"),
        (7, (), r"directions must be one or more different names, got \(\)"),
    ],
)
def test_mistakes_in_2d(place, value, message):
    args = [*inputs_2d(), DIRECTIONS]
    args[place] = value
    with pytest.raises(ValueError, match=message):
        scan_2d(*args)


def test_operator_refuses_unknown_direction_numbers():
    *args, _, backend, keep = _op_arguments()["scan_2d"]
    with pytest.raises(ValueError, match=r"got \[1, 9\]"):
        torch.ops.restormixer.scan_2d.default(*args, [1, 9], backend, keep)


def test_a_missing_kernel_is_reported_with_the_cure(monkeypatch):
    monkeypatch.setattr(native_library, "REASON", "the native kernel was not built: run pip")
    assert native_library.unusable_reason() == "the native kernel was not built: run pip"
    with pytest.raises(UserError, match="cannot be used: the native kernel was not built: run pip"):
        scan_1d(**inputs_1d())
    with pytest.raises(UserError, match="run pip"):
        scan_2d(*inputs_2d(), DIRECTIONS)


def test_library_of_another_version_is_refused(tmp_path, monkeypatch):
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    source = tmp_path / "old.c"
    source.write_text("int restormixer_abi(void) { return -1; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "_kernel.so", source], check=True)
    library, isa, reason = native_library.load(tmp_path)
    assert library is None and isa == "" and "_kernel.so belongs to another version" in reason
    source.write_text(f"int restormixer_abi(void) {{ return {native_library.ABI}; }}\n")  # and nothing else
    (tmp_path / "other").mkdir()
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "other/_kernel.so", source], check=True)
    assert "_kernel.so cannot be loaded" in native_library.load(tmp_path / "other")[2]


def test_a_broken_or_missing_library_is_refused(tmp_path):
    assert "was not built" in native_library.load(tmp_path)[2]
    (tmp_path / "_kernel.so").write_bytes(b"no library")
    assert "_kernel.so cannot be loaded" in native_library.load(tmp_path)[2]


def _in_a_fresh_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_environment_forces_an_instruction_set():
    code = "from restormixer_arch.native import library as native_library; print(native_library.INSTRUCTION_SET)"
    assert _in_a_fresh_process(code, RESTORMIXER_ISA="plain").stdout.strip() == "plain"
    wrong = _in_a_fresh_process(code, RESTORMIXER_ISA="avx1024", RESTORMIXER_REQUIRE_NATIVE="1")
    assert wrong.returncode == 1 and "UserError: RESTORMIXER_REQUIRE_NATIVE=1, but" in wrong.stderr
    assert "got 'avx1024'" in wrong.stderr


# ------------------------------------------------------------------ the C program under the sanitizers


@pytest.mark.slow
@pytest.mark.timeout(600)  # the sanitizers make compilers slow
@pytest.mark.parametrize("flags", [(), ("-DSCAN_SCALAR",)], ids=["vectors", "scalar"])
@pytest.mark.parametrize("name", ["check_kernel", "check_blocks"])
def test_sanitizers(tmp_path, flags, name):
    compiler = shutil.which("gcc") or shutil.which("clang") or pytest.skip("needs gcc or clang")
    program = tmp_path / name
    sources = [HERE / "native" / f"{name}.c", *sorted(KERNEL.glob("kernel*.c"))]
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-g1"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(
        [compiler, *strict, *sanitizers, *flags, f"-I{KERNEL}", *sources, "-o", program, "-pthread", "-lm"], check=True
    )
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
