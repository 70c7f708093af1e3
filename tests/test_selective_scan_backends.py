"""The choice of the backend, why others are not used, and which inputs are rejected."""

import logging

import pytest
import torch
from scan_cases import scan_inputs

from restormixer_arch import selective_scan as package
from restormixer_arch.errors import UserError
from restormixer_arch.native import library as native_library
from restormixer_arch.selective_scan import cuda, selective_scan, triton_scan

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def case():
    return scan_inputs(groups=2, width=2, states=3, length=6, dtype=torch.float32)


@pytest.fixture
def no_native(monkeypatch):
    monkeypatch.setattr(native_library, "REASON", "the native kernel was not built: run pip")


def test_torch_is_used_without_a_kernel_and_the_report_gives_the_reason(no_native):
    reasons = package.available_backends()
    assert list(reasons) == ["definition", "torch", "native", "triton", "cuda"]
    assert reasons["definition"] is None and reasons["torch"] is None
    assert "not built" in reasons["native"]
    assert package.backend_report().startswith("cpu: torch (native: the native kernel was not built")
    with pytest.raises(UserError, match="backend 'native' cannot be used: the native kernel was not built"):
        selective_scan(**case(), backend="native")


@pytest.mark.parametrize(
    ("device", "dtypes", "states", "name", "reason"),
    [
        (CPU, {torch.float32, torch.bfloat16}, 256, "native", ""),
        (CPU, {torch.float32, torch.float64}, 16, "torch", "native: it does not take torch.float64"),
        (CPU, {torch.float16}, 16, "torch", "native: it does not take torch.float16"),
        (CPU, {torch.float32}, 257, "torch", "native: it takes at most 256 states, these are 257"),
        (GPU, {torch.float16}, 16, "triton", ""),
        (
            *(GPU, {torch.float64}, 16, "torch"),
            "triton: it does not take torch.float64; cuda: it does not take torch.float64",
        ),
        (torch.device("mps"), {torch.float32}, 16, "torch", "there is no kernel for mps tensors"),
    ],
)
def test_automatic_choice_of_the_backend(device, dtypes, states, name, reason, monkeypatch):
    monkeypatch.setattr(native_library, "unusable_reason", lambda: None)
    monkeypatch.setattr(triton_scan, "unusable_reason", lambda device=None, dtype=None: None)
    monkeypatch.setattr(cuda, "unusable_reason", lambda device=None: None)
    assert package._automatic(device, dtypes, states) == (name, reason)


@pytest.mark.parametrize("constant", [False, True])
def test_next_backend_for_a_gpu_is_chosen_and_the_reason_is_given(constant, monkeypatch):
    reason = None if constant else "triton 3.0.0 is too old, 3.3 is needed"
    monkeypatch.setattr(triton_scan, "unusable_reason", lambda device=None, dtype=None: reason)
    monkeypatch.setattr(cuda, "unusable_reason", lambda device=None: None)
    skipped = f"triton: {reason or triton_scan.NO_CONSTANT_WEIGHTS}"
    assert package._automatic(GPU, (torch.float32,), 16, constant) == ("cuda", skipped)
    monkeypatch.setattr(cuda, "unusable_reason", lambda device=None: "no")
    assert package._automatic(GPU, (torch.float32,), 16, constant) == ("torch", f"{skipped}; cuda: no")


def test_native_kernel_is_not_used_if_a_parameter_is_float64(monkeypatch):
    monkeypatch.setattr(native_library, "unusable_reason", lambda: None)
    single, double = torch.zeros(1), torch.zeros(1, dtype=torch.float64)
    for other, name in ((single, "native"), (double, "torch")):
        assert package._choose("auto", single, [single, other], 1, needs_state_grad=False) == name


def test_cuda_kernel_is_not_used_if_the_last_state_needs_a_gradient(monkeypatch):
    monkeypatch.setattr(package, "_automatic", lambda *_: ("cuda", ""))
    for needs_state_grad, name in ((False, "cuda"), (True, "torch")):
        assert package._choose("auto", torch.zeros(1), [], 1, needs_state_grad=needs_state_grad) == name


def test_each_backend_is_logged_once(caplog, monkeypatch):
    monkeypatch.setattr(package, "_announced", set())
    caplog.set_level(logging.INFO, logger="restormixer_arch")
    for backend in ("torch", "torch", "definition", "torch"):
        selective_scan(**case(), backend=backend)
    messages = ["selective scan: backend torch for cpu", "selective scan: backend definition for cpu"]
    assert [record.getMessage() for record in caplog.records] == messages


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("u", lambda t: t[0], ValueError, r"u must be \(B, D, L\), got shape \(4, 6\)"),
        ("u", lambda t: t[..., :0], ValueError, r"u must not be empty, got shape \(2, 4, 0\)"),
        ("delta", lambda t: t[:1], ValueError, r"delta must be \(B, D, L\) = \(2, 4, 6\), got \(1, 4, 6\)"),
        ("z", lambda t: t[..., 1:], ValueError, r"z must be \(B, D, L\) = \(2, 4, 6\), got \(2, 4, 5\)"),
        ("A", lambda t: t[0], ValueError, r"A must be \(D, N\), got shape \(3,\)"),
        ("A", lambda t: t[:3], ValueError, r"A must be \(D, N\) = \(4, 3\), got \(3, 3\)"),
        ("A", lambda t: t + 0j, TypeError, "A must be real and floating-point, got torch.complex64"),
        ("B", lambda t: t[0, 0, 0], ValueError, r"B must be .* or \(B, G, N, L\), got shape \(6,\)"),
        ("B", lambda t: t[0, 0], ValueError, r"B must be \(D, N\) = \(4, 3\), got \(3, 6\)"),
        ("B", lambda t: t[:, 0, :2], ValueError, r"B must be \(B, N, L\) = \(2, 3, 6\), got \(2, 2, 6\)"),
        ("B", lambda t: t[:, :1], ValueError, r"same number of groups, got \(2, 1, 3, 6\) and \(2, 2, 3, 6\)"),
        ("C", lambda t: t.repeat(1, 2, 1, 1)[:, :3], ValueError, "groups of C must divide the 4 channels of u, got 3"),
        ("D", lambda t: t[:2], ValueError, r"D must be \(D,\) = \(4,\), got \(2,\)"),
        ("delta_bias", lambda t: t[None], ValueError, r"delta_bias must be \(D,\) = \(4,\), got \(1, 4\)"),
        ("delta_bias", lambda t: t.long(), TypeError, "delta_bias must be real and floating-point, got torch.int64"),
        ("C", lambda t: t.to("meta"), ValueError, "C must be on the device of u, cpu, got meta"),
    ],
)
def test_invalid_inputs_are_rejected(name, value, error, message):
    tensors = case()
    tensors[name] = value(tensors[name])
    with pytest.raises(error, match=message):
        selective_scan(**tensors)


def test_unknown_and_unusable_backends_are_rejected():
    with pytest.raises(
        UserError, match="one of auto, definition, torch, native, triton, cuda, got 'touch'. Did you mean 'torch'"
    ):
        selective_scan(**case(), backend="touch")
    with pytest.raises(UserError, match="'cuda' cannot be used: mamba-ssm's kernel needs a CUDA tensor, .* on cpu"):
        selective_scan(**case(), backend="cuda")
    with pytest.raises(UserError, match="'native' cannot be used: it needs a CPU tensor, this one is on meta"):
        selective_scan(**{name: t.to("meta") for name, t in case().items()}, backend="native")
