"""What the torch scan keeps for its backward pass, and how it divides the tokens into segments."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scan_cases import scan_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from restormixer_arch import selective_scan as package
from restormixer_arch.selective_scan import layouts, segment, selective_scan, selective_scan_2d, torch_scan
from restormixer_arch.selective_scan.definition import selective_scan_loop


def saved_bytes(scan, tensors):
    """Return the number of bytes kept for the backward pass, without the inputs."""
    inputs = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = scan(**tensors, delta_softplus=True)
    assert out.requires_grad
    return sum(size for address, size in kept.items() if address not in inputs)


@pytest.mark.parametrize("states", [4, 64])
def test_memory_does_not_grow_with_the_number_of_states(states, monkeypatch):
    monkeypatch.setattr(segment, "CPU_SEGMENT", 1)  # the shortest segments, which keep the most
    tensors = scan_inputs(states=states, length=512, without=("z",), dtype=torch.float32)
    for tensor in tensors.values():
        tensor.requires_grad_()
    small = tensors["A"].nbytes + tensors["u"][..., :states].nbytes * 2
    limit = tensors["u"].nbytes + small
    assert saved_bytes(partial(selective_scan, backend="torch"), tensors) <= limit
    assert saved_bytes(selective_scan_loop, tensors) > states * limit


def test_nothing_is_kept_without_gradients(monkeypatch):
    kept, run = [], torch_scan.run_tokens
    monkeypatch.setattr(torch_scan, "run_tokens", lambda inputs, *, keep: kept.append(keep) or run(inputs, keep=keep))
    shape = (1, 2, 3)
    tensors = [torch.randn(*shape, 4), torch.randn(*shape, 1, 4), -torch.rand(1, 4, 2)]
    tensors += [torch.randn(*shape, 1, 2), torch.randn(*shape, 1, 2), torch.randn(1, 4), torch.randn(1, 4)]
    selective_scan_2d(*tensors, ("row",), backend="torch")
    tensors[-1].requires_grad_()
    assert selective_scan_2d(*tensors, ("row",), backend="torch").requires_grad
    with torch.no_grad():
        assert not selective_scan_2d(*tensors, ("row",), backend="torch").requires_grad
    assert kept == [False, True, False]


@given(st.integers(1, 5000), st.integers(1, 64), st.integers(1, 10**6), st.sampled_from(["cpu", "mps"]))
def test_segments_cover_every_token_once(length, states, per_token, device):
    cuts = segment.segments(length, states, per_token, torch.device(device))
    first = 0
    for start, steps, parts in cuts:
        assert start == first and steps >= 1 and parts >= 1
        first += steps * parts
    assert first == length
    assert len(cuts) <= 2 + 2 * length / min(states, length)  # this bounds the number of kept states


def test_second_derivative_is_supported_by_the_definition_only():
    tensors = {name: tensor.requires_grad_() for name, tensor in scan_inputs().items()}
    first = {}
    for backend in ("torch", "definition"):
        out = selective_scan(**tensors, backend=backend)
        (first[backend],) = torch.autograd.grad(out.square().sum(), tensors["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first["torch"].sum().backward()
    first["definition"].sum().backward()
    assert tensors["A"].grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_softplus_is_as_accurate_as_that_of_torch(dtype):
    x = torch.cat([torch.linspace(-80, 120, 100_001, dtype=dtype), torch.tensor([-torch.inf, torch.inf], dtype=dtype)])
    rounding = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(segment._softplus(x).double(), F.softplus(x.double()), rtol=rounding, atol=0)


class NoFloat64(TorchDispatchMode):
    """Fails if an operation returns float64, which MPS devices do not support."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            assert getattr(tensor, "dtype", None) != torch.float64, func
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_mps_device_uses_the_torch_scan_without_float64(dtype):
    """A fake MPS tensor needs torch with MPS support, so the operations are checked on the CPU."""
    for kind in (torch.float32, torch.float16):
        found = package._automatic(torch.device("mps"), {kind}, 16)
        assert found == ("torch", "there is no kernel for mps tensors")
    shapes = [(1, 3, 4, 5), (1, 3, 4, 2, 5), (2, 5, 3), (1, 3, 4, 2, 3), (1, 3, 4, 2, 3), (2, 5), (2, 5)]
    tensors = [torch.randn(shape) for shape in shapes]
    streams = [tensor.to(dtype) if number in (0, 1, 3, 4) else tensor for number, tensor in enumerate(tensors)]
    with NoFloat64():
        y, states = layouts.scan_2d_forward(*streams, [0, 3], True)
        gradients = layouts.scan_2d_backward(y, *streams, states, [0, 3])
    assert y.dtype == dtype and [g.dtype for g in gradients] == [t.dtype for t in streams]
