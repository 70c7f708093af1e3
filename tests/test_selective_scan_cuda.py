"""The CUDA backend, with substitutes for mamba-ssm's kernel that run on the CPU."""

import re
import sys
from functools import partial
from types import ModuleType

import pytest
import torch
from scan_cases import scan_inputs
from torch.utils.checkpoint import checkpoint

from restormixer_arch.selective_scan import cuda, probe
from restormixer_arch.selective_scan.definition import selective_scan_2d_loop, selective_scan_loop

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def kernel(monkeypatch):
    """Install a function as mamba-ssm's ``selective_scan_fn``; clear the cache of the probe before and after."""

    def install(function):
        module = ModuleType(cuda.INTERFACE)
        module.selective_scan_fn = function
        monkeypatch.setitem(sys.modules, cuda.INTERFACE, module)
        for parent in ("mamba_ssm", "mamba_ssm.ops"):
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))

    probe = cuda.probe
    probe.cache_clear()
    yield install
    probe.cache_clear()


def strict_kernel(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
    """The definition, with the requirements of mamba-ssm's kernel on dtypes and strides."""
    for tensor in (u, delta, z, *(w for w in (B, C) if w.dim() > 2)):
        assert tensor is None or (tensor.dtype == u.dtype and tensor.stride(-1) == 1)
    for tensor in (A, D, delta_bias, *(w for w in (B, C) if w.dim() == 2)):
        assert tensor is None or tensor.dtype == torch.float32
    return selective_scan_loop(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def test_probe_in_a_checkpointed_block_does_not_disturb_it():
    """Checkpointing counts the tensors that autograd saves, and the probe runs only in the first forward pass."""
    probed = []

    def scan(x):
        return x.sin() * x

    def block(x):
        if not probed:
            inputs = {"x": torch.rand(3)}
            both = partial(probe.results, scan, inputs, torch.device("cpu"))
            probed.append(probe.difference("kernel", 1e-6, both, both))
        return scan(x)

    x = torch.rand(4, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    assert probed == [None]
    torch.testing.assert_close(x.grad, (x.cos() * x + x.sin()).detach())


def test_correct_kernel_is_probed_once_per_device(kernel):
    calls = []
    kernel(lambda *args, **options: calls.append(1) or strict_kernel(*args, **options))
    assert cuda.probe(CPU) is None and cuda.probe(CPU) is None
    assert len(calls) == 1


def unbuilt(*_, **__):
    raise RuntimeError("selective_scan_cuda is not available\nsecond line")


def wrong_numbers(*args, **options):
    out, state = strict_kernel(*args, **options)
    return out * 1.01, state


def wrong_gradient(u, *args, **options):
    return strict_kernel(u + 0.1 * (u - u.detach()), *args, **options)


def nan_state(*args, **options):
    out, state = strict_kernel(*args, **options)
    return out, state * float("nan")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (unbuilt, "does not run: RuntimeError: selective_scan_cuda is not available$"),
        (lambda u: u, "does not run: TypeError: "),
        (lambda *args, **options: args, "does not run: (TypeError|ValueError): "),
        (wrong_numbers, "wrong numbers: output is off by 0.0"),
        (wrong_gradient, "wrong numbers: gradient of u is off by "),
        (nan_state, "wrong numbers: last state is off by nan"),
    ],
)
def test_wrong_kernel_fails_the_probe(kernel, function, reason):
    kernel(function)
    assert re.search(reason, cuda.probe(CPU))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "ImportError: libcudart.so.12"),
        ("raise OSError('undefined symbol')", "OSError: undefined symbol"),
        ("", "AttributeError: module .* has no attribute 'selective_scan_fn'"),
    ],
)
def test_broken_package_fails_the_probe(kernel, source, reason, tmp_path, monkeypatch):
    folder = tmp_path / "mamba_ssm" / "ops"
    folder.mkdir(parents=True)
    (tmp_path / "mamba_ssm" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "selective_scan_interface.py").write_text(source)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    found = cuda.probe(CPU)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
        del sys.modules[name]  # monkeypatch would restore it
    assert re.search(f"does not run: {reason}", found)


def test_only_cuda_devices_are_probed(kernel, monkeypatch):
    assert cuda.unusable_reason(CPU) == "mamba-ssm's kernel needs a CUDA tensor, this one is on cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.unusable_reason(GPU) == "torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(cuda, "probe", lambda device: f"probed {device}")
    assert [cuda.unusable_reason(d) for d in (None, torch.device("cuda"), GPU)] == [
        "probed cuda:3",
        "probed cuda:3",
        "probed cuda:0",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_gets_the_dtypes_and_strides_that_it_requires(kernel, dtype):
    kernel(strict_kernel)
    torch.manual_seed(0)
    tensors = {name: tensor.bfloat16().double() for name, tensor in scan_inputs().items()}  # exact in either dtype
    tensors = {name: t.transpose(0, -1).contiguous().transpose(0, -1) for name, t in tensors.items()}
    tensors["u"] = tensors["u"].to(dtype)
    tensors["C"] = tensors["A"].clone()  # constant weights are always float32
    tensors["A"].requires_grad_()
    out, state = cuda.selective_scan_cuda(**tensors, return_last_state=True)
    wanted = selective_scan_loop(**tensors)
    assert out.dtype == dtype and out.requires_grad and not state.requires_grad
    torch.testing.assert_close(out, wanted)
    with pytest.raises(TypeError, match="float32, float16 and bfloat16, got torch.float64"):
        cuda.selective_scan_cuda(**{name: tensor.double() for name, tensor in tensors.items()})


def test_unaligned_rows_are_copied():
    tensor = torch.zeros(2, 3, 8)
    assert cuda._for_kernel(tensor, torch.float32) is tensor
    odd = torch.zeros(2, 3, 5)  # contiguous: the kernel accepts rows of any length
    assert cuda._for_kernel(odd, torch.float32) is odd
    wide, shifted, narrow = (
        torch.zeros(2, 3, 12)[..., :8],
        torch.zeros(49)[1:].view(2, 3, 8),
        torch.zeros(2, 3, 9)[..., :8],
    )
    assert cuda._for_kernel(wide, torch.float32) is wide
    for view in (shifted, narrow):
        copy = cuda._for_kernel(view, torch.float32)
        assert copy.data_ptr() != view.data_ptr() and copy.is_contiguous() and copy.data_ptr() % 16 == 0


def test_directions_reach_the_kernel_as_groups(kernel):
    kernel(strict_kernel)
    torch.manual_seed(0)
    shape, directions = (2, 3, 4), ("column", "row_reverse", "column_reverse")
    tensors = [torch.randn(*shape, 5), torch.randn(*shape, 3, 5), -torch.rand(3, 5, 2), torch.randn(*shape, 3, 2)]
    tensors += [torch.randn(*shape, 3, 2), torch.randn(3, 5), torch.randn(3, 5)]
    found = cuda.selective_scan_2d_cuda(*tensors, directions)
    torch.testing.assert_close(found, selective_scan_2d_loop(*tensors, directions))
