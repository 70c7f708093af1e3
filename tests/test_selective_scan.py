"""The one-dimensional scan on the CPU, against manually computed values, golden values and the definition."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scan_cases import assert_close, scan_inputs, usable
from scan_cases import results as any_results

from restormixer_arch.selective_scan import segment, selective_scan
from restormixer_arch.selective_scan.definition import selective_scan_loop

GOLDEN = Path(__file__).parent / "golden" / "selective_scan.safetensors"
CASES = ("gated", "no_skip", "one_group", "three_groups")
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
TOKENS = ("u", "delta", "z", "B", "C")  # have the dtype of the tokens; the others are at least float32
# Largest error of an output or gradient, relative to its largest value.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 1e-2}


results = partial(any_results, return_last_state=True)


@pytest.fixture(params=["one segment", "short segments", "short parts"])
def cutting(request, monkeypatch):
    """Divide the tokens as in real use, or so finely that a short scan has segments and parts of every kind."""
    if request.param != "one segment":
        monkeypatch.setattr(segment, "CPU_SEGMENT", 1)
        monkeypatch.setattr(segment, "CPU_STEP", 10**6 if request.param == "short parts" else 1)


@pytest.mark.parametrize("backend", ["torch", usable("native")])
@pytest.mark.parametrize("where", [(0, 1, 2), ...])
def test_time_step_of_minus_infinity_skips_the_token(backend, where):
    """softplus(-inf) = 0 keeps the state and ignores the token; D = 0 removes its direct path to the output."""
    tensors = scan_inputs(groups=1, width=3, states=4, length=6, dtype=torch.float32)
    tensors["delta"][where] = -torch.inf
    tensors["D"] = torch.zeros_like(tensors["D"])
    found, wanted = (
        results(scan, {name: t.clone() for name, t in tensors.items()}, delta_softplus=True)
        for scan in (partial(selective_scan, backend=backend), selective_scan_loop)
    )
    assert all(torch.isfinite(value).all() for value in found.values())
    assert_close(found, wanted, 2e-5)


@pytest.mark.parametrize("backend", ["definition", "torch", usable("native")])
def test_three_tokens_match_manually_computed_values(backend):
    """One channel and one state with the decay exp(-ln 2) = 1/2: h = 1, 1/2 + 2, 5/4 + 6."""
    tensors = {
        "u": torch.tensor([[[1.0, 2.0, 3.0]]]),
        "delta": torch.ones(1, 1, 3),
        "A": torch.tensor([[-math.log(2)]]),
        "B": torch.tensor([[[1.0, 1.0, 2.0]]]),
        "C": torch.tensor([[[1.0, 2.0, 1.0]]]),
        "D": torch.tensor([0.5]),
    }
    for tensor in tensors.values():
        tensor.requires_grad_()
    out, state = selective_scan(**tensors, return_last_state=True, backend=backend)
    torch.testing.assert_close(out, torch.tensor([[[1.5, 6.0, 8.75]]]))  # C h + D u
    torch.testing.assert_close(state, torch.tensor([[[7.25]]]))
    out.sum().backward()
    # Gradients of the states, from the last: 1, 2 + 1/2, 1 + 5/4. Through the decay of tokens 2 and 3: 5/4 each.
    half = 1.25 * math.log(2)
    for name, gradient in {
        "u": [[[2.75, 3.0, 2.5]]],
        "delta": [[[2.25, 5 - half, 6 - half]]],
        "A": [[2.5]],
        "B": [[[2.25, 5.0, 3.0]]],
        "C": [[[1.0, 2.5, 7.25]]],
        "D": [6.0],
    }.items():
        torch.testing.assert_close(tensors[name].grad, torch.tensor(gradient), msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("backend", ["definition", "torch", usable("native")])
@pytest.mark.parametrize("case", CASES)
def test_golden_values(case, backend, cutting):
    golden = load_file(GOLDEN)
    tensors = {name: golden[f"{case}/{name}"] for name in NAMES if f"{case}/{name}" in golden}
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    out, state = selective_scan(**leaves, delta_softplus=True, return_last_state=True, backend=backend)
    gradients = torch.autograd.grad(out, list(leaves.values()), golden[f"{case}/grad_out"])
    found = {"out": out.detach(), "last_state": state.detach()}
    found |= {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    assert_close(found, {name: golden[f"{case}/{name}"] for name in found}, 2e-6)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_all_lengths_and_dtypes_match_the_definition(backend, dtype, length):
    tensors = scan_inputs(length=length, without=("z",) if length % 2 else ("D", "delta_bias"))
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {name: t.to(dtype if name in TOKENS else parameters) for name, t in tensors.items()}
    found = results(selective_scan, tensors, delta_softplus=True, backend=backend)
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    assert found["out"].dtype == dtype and found["last state"].dtype == parameters
    assert_close(found, results(selective_scan_loop, exact, delta_softplus=True), TOLERANCE[dtype])


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("constant", ["", "B", "C", "BC"])
def test_constant_weights_and_groups_match_the_definition(constant, softplus, cutting):
    tensors = scan_inputs(groups=3, length=50, constant=constant)
    if not softplus:
        tensors["delta"], tensors["delta_bias"] = tensors["delta"].abs(), tensors["delta_bias"].abs()
    found = results(selective_scan, tensors, delta_softplus=softplus, backend="torch")
    assert_close(found, results(selective_scan_loop, tensors, delta_softplus=softplus), 1e-11)


def test_groups_are_consecutive_channels():
    tensors = scan_inputs(groups=2, width=3, without=("z",))
    whole = selective_scan(**tensors, backend="torch")
    for group, channels in enumerate((slice(0, 3), slice(3, 6))):
        own = {name: t[:, channels] if name in ("u", "delta") else t[channels] for name, t in tensors.items()}
        own |= {name: tensors[name][:, group] for name in ("B", "C")}  # (B, N, L)
        torch.testing.assert_close(selective_scan(**own, backend="torch"), whole[:, channels])


@pytest.mark.parametrize("backend", ["torch", usable("native")])
def test_results_do_not_depend_on_the_memory_layout(backend, cutting):
    plain = {name: tensor.float() for name, tensor in scan_inputs(length=33).items()}
    wanted = results(selective_scan, plain, delta_softplus=True, backend=backend)
    turned = {n: t.transpose(0, -1).contiguous().transpose(0, -1) for n, t in plain.items()}
    spread = {n: t.repeat_interleave(2, dim=-1)[..., ::2] for n, t in plain.items()}
    for tensors in (turned, spread):
        assert not tensors["u"].is_contiguous()
        assert_close(results(selective_scan, tensors, delta_softplus=True, backend=backend), wanted, 2e-6)


@settings(max_examples=40)
@given(data=st.data())
def test_any_sizes_segments_and_options_match_the_definition(data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    tensors = scan_inputs(
        *(draw(1, 3), draw(1, 3), draw(1, 3), draw(1, 4), draw(1, 40)),
        constant=data.draw(st.sampled_from(["", "B", "C", "BC"])),
        without=data.draw(st.sets(st.sampled_from(["D", "z", "delta_bias"]))),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "CPU_SEGMENT", draw(1, 400))
        patch.setattr(segment, "CPU_STEP", draw(1, 400))
        found = results(selective_scan, tensors, delta_softplus=True, backend="torch")
    assert_close(found, results(selective_scan_loop, tensors, delta_softplus=True), 1e-10)


@pytest.mark.parametrize("backend", ["torch", usable("native")])
def test_extreme_decays_and_time_steps(backend, cutting):
    tensors = scan_inputs(length=40, states=6)
    tensors["A"] = -torch.logspace(-6, 3, 36, dtype=torch.float64).view(6, 6)
    tensors["delta"] = torch.randn(2, 6, 40, dtype=torch.float64).sign() * torch.linspace(0, 50, 40)
    single = {name: tensor.float() for name, tensor in tensors.items()}
    exact = {name: tensor.double() for name, tensor in single.items()}
    found = results(selective_scan, single, delta_softplus=True, backend=backend)
    assert_close(found, results(selective_scan_loop, exact, delta_softplus=True), 2e-5)


@pytest.mark.parametrize("without", [(), ("D", "z", "delta_bias")])
def test_gradcheck(without, cutting):
    tensors = scan_inputs(batch=1, groups=2, width=2, states=2, length=7, without=without)

    def scan(*values):
        options = {"delta_softplus": not without, "return_last_state": True, "backend": "torch"}
        return selective_scan(**dict(zip(tensors, values, strict=True)), **options)

    if without:
        tensors["delta"] = tensors["delta"].abs()
    assert torch.autograd.gradcheck(scan, [t.requires_grad_() for t in tensors.values()])


@pytest.mark.parametrize("chosen", [0, 1], ids=["output", "state"])
def test_gradient_of_only_the_output_or_the_last_state(chosen):
    tensors = scan_inputs()
    u = tensors["u"].requires_grad_()
    found, wanted = (
        torch.autograd.grad(scan(**tensors, return_last_state=True)[chosen].sum(), u)
        for scan in (partial(selective_scan, backend="torch"), selective_scan_loop)
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("backend", ["definition", "torch", usable("native")])
def test_autocast_does_not_lower_the_precision(backend):
    tensors = {name: tensor.float() for name, tensor in scan_inputs(length=30).items()}
    wanted = results(selective_scan, tensors, delta_softplus=True, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results(selective_scan, tensors, delta_softplus=True, backend=backend)
    assert_close(found, wanted, 1e-7)
