"""Inputs, results and comparison that are shared by the tests of the selective scan."""

import pytest
import torch

from restormixer_arch.selective_scan import available_backends


def usable(backend):
    """Return the backend as a test parameter that is skipped, with the reason, if it cannot run."""
    reason = available_backends()[backend]
    return pytest.param(backend, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))


def scan_inputs(batch=2, groups=2, width=3, states=4, length=9, *, constant="", without=(), dtype=torch.float64):
    """Return all inputs of a scan with D = groups * width channels, A in [-2, -0.2], time steps near softplus(-1)."""
    channels = groups * width
    tensors = {"u": torch.randn(batch, channels, length, dtype=dtype)}
    tensors["delta"] = torch.randn(batch, channels, length, dtype=dtype)
    tensors["A"] = -0.2 - 1.8 * torch.rand(channels, states, dtype=dtype)
    for name in ("B", "C"):
        shape = (channels, states) if name in constant else (batch, groups, states, length)
        tensors[name] = torch.randn(shape, dtype=dtype)
    tensors["D"] = torch.randn(channels, dtype=dtype)
    tensors["z"] = torch.randn(batch, channels, length, dtype=dtype)
    tensors["delta_bias"] = torch.randn(channels, dtype=dtype) - 1
    return {name: tensor for name, tensor in tensors.items() if name not in without}


def results(scan, tensors, **options):
    """Return by name the output, the last state if any, and all gradients of a fixed weighted sum of these."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    found = scan(**leaves, **options)
    found = dict(zip(("out", "last state"), found if isinstance(found, tuple) else (found,), strict=False))
    weights = {name: torch.arange(t.numel()).view_as(t).cos() for name, t in found.items()}
    loss = sum((t.double() * weights[name]).sum() for name, t in found.items())
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {name: t.detach() for name, t in found.items()} | dict(zip(leaves, gradients, strict=True))


def assert_close(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name, expected in wanted.items():
        assert found[name].shape == expected.shape, name
        error = (found[name].double() - expected.double()).abs().max().item()
        limit = tolerance * expected.double().abs().max().item()
        assert error <= limit, f"{name} is off by {error:.3g}, {limit:.3g} are allowed"
