"""``restormixer::scan_2d``: the same operator for all backends, with or without the C library."""

import sys
import warnings
from types import ModuleType

import pytest
import torch
from scan_cases import assert_close, results, usable
from test_selective_scan_2d import S3, image_inputs
from test_selective_scan_cuda import strict_kernel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from restormixer_arch import selective_scan as package
from restormixer_arch.errors import UserError
from restormixer_arch.selective_scan import cuda, layouts, selective_scan_2d
from restormixer_arch.selective_scan.definition import selective_scan_2d_loop
from restormixer_arch.selective_scan.operator import ORDERS, scan_2d

SCAN = torch.ops.restormixer.scan_2d.default
BACKWARD = torch.ops.restormixer.scan_2d_backward.default
BACKENDS = ["torch", "cuda", usable("native")]


@pytest.fixture(autouse=True)
def mamba(monkeypatch):
    """Replace mamba-ssm's kernel with the definition."""
    module = ModuleType(cuda.INTERFACE)
    module.selective_scan_fn = strict_kernel
    for name in ("mamba_ssm", "mamba_ssm.ops", cuda.INTERFACE):
        monkeypatch.setitem(sys.modules, name, module)


def single(count=2, **options):
    return image_inputs(count, dtype=torch.float32, **options)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_values_and_gradients_match_the_definition(backend, keep):
    tensors = single(3, height=5, width=7)
    found = results(scan_2d, tensors, directions=S3, backend=backend, keep_states=keep)
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    assert_close(found, results(selective_scan_2d_loop, exact, directions=S3), 2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_streams_match_the_definition(backend, dtype):
    tensors = {name: t.to(dtype) if name in ("x", "delta", "B", "C") else t for name, t in single().items()}
    found = results(scan_2d, tensors, directions=("column", "row"), backend=backend, keep_states=True)
    assert [t.dtype for t in found.values()] == [dtype, *(t.dtype for t in tensors.values())]
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    assert_close(found, results(selective_scan_2d_loop, exact, directions=("column", "row")), 1.2e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    tensors = [t.requires_grad_() for t in single(batch=1, height=2).values()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.library.opcheck(SCAN, (*tensors, [1, 2], backend, True))
        y, states = SCAN(*tensors, [1, 2], backend, True)
        arguments = (torch.ones_like(y), *(t.detach() for t in tensors), states.detach(), [1, 2], backend)
        torch.library.opcheck(BACKWARD, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_and_checkpointed_scans_match_eager(backend):
    tensors = single()

    def scan(**leaves):
        return scan_2d(**leaves, directions=("column", "row"), backend=backend, keep_states=True) * 2

    wanted = results(scan, tensors)
    graphs = []

    def recorded(graph, _):
        graphs.append(graph)
        return graph.forward

    for way in (
        torch.compile(scan, backend=recorded, fullgraph=True),
        torch.compile(scan, backend="aot_eager", fullgraph=True),
        lambda **leaves: checkpoint(lambda: scan(**leaves), use_reentrant=False),
    ):
        assert_close(results(way, tensors), wanted, 1e-6)
    assert [node.target for node in graphs[0].graph.nodes].count(SCAN) == 1


def test_probe_runs_during_tracing_but_not_in_the_graph(monkeypatch):
    probed = []
    monkeypatch.setattr(package, "KERNELS", {"cpu": ("cuda",)})
    monkeypatch.setattr(cuda, "unusable_reason", lambda device: probed.append(cuda.probe(device)) or probed[-1])
    cuda.probe.cache_clear()
    graphs = []

    def recorded(graph, _):
        graphs.append(graph)
        return graph.forward

    tensors = single()
    scan = torch.compile(selective_scan_2d, backend=recorded, fullgraph=True)
    y = scan(**tensors, directions=("row", "column"))
    torch.testing.assert_close(y, selective_scan_2d_loop(**tensors, directions=("row", "column")))
    assert probed == [None]
    (call,) = (node for node in graphs[0].graph.nodes if node.target == SCAN)
    assert call.args[-2:] == ("cuda", False)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_flop_count_is_independent_of_the_backend(backend):
    """7 operations per state and 6 per channel forward, 19 and 15 backward, for each token and direction."""
    tensors = single(batch=1, height=3, width=4, channels=5, states=2)
    for tensor in tensors.values():
        tensor.requires_grad_()
    with FlopCounterMode(display=False) as counter:
        selective_scan_2d(**tensors, directions=("row", "column"), backend=backend).sum().backward()
    assert counter.get_total_flops() == 12 * 2 * 5 * ((7 + 19) * 2 + 6 + 15)


def test_the_operator_needs_no_c_library(monkeypatch):
    for name in ("native.library", "selective_scan.native_scan_1d", "selective_scan.native_scan_2d"):
        monkeypatch.setitem(sys.modules, f"restormixer_arch.{name}", None)
    tensors = single()
    y = SCAN(*tensors.values(), [0, 1], "torch", False)[0]
    torch.testing.assert_close(y, selective_scan_2d_loop(**tensors, directions=("row", "column")))
    meta = [tensor.to("meta") for tensor in tensors.values()]
    assert SCAN(*meta, [0, 1], "torch", True)[0].shape == y.shape


def test_torch_scan_runs_on_the_device_of_its_inputs():
    """On a fake GPU, whose segments differ from the CPU's. The states have the shape that the fake kernel returns."""
    with FakeTensorMode():
        tensors = [torch.empty(t.shape, device="cuda") for t in single(height=300, width=300).values()]
        y, states = layouts.scan_2d_forward(*tensors, [0, 1], True)
        grads = layouts.scan_2d_backward(y, *tensors, states, [0, 1])
        assert {t.device.type for t in (y, states, *grads)} == {"cuda"}
        assert states.shape == layouts.kept_states(tensors[0], tensors[2]).shape


def test_environment_variable_selects_whether_states_are_kept(monkeypatch):
    tensors = {name: tensor.requires_grad_() for name, tensor in single(1).items()}

    def kept():
        return selective_scan_2d(**tensors, directions=("row",), backend="torch").grad_fn.saved_tensors[-1].numel()

    assert kept() > 0
    monkeypatch.setenv("RESTORMIXER_SCAN_STATES", "recompute")
    assert kept() == 0
    monkeypatch.setenv("RESTORMIXER_SCAN_STATES", "forget")
    with pytest.raises(UserError, match="RESTORMIXER_SCAN_STATES must be one of keep, recompute, got 'forget'"):
        kept()


def test_invalid_arguments():
    tensors = list(single().values())
    with pytest.raises(ValueError, match="backend must be one of native, torch, triton, cuda, got 'touch'"):
        SCAN(*tensors, [0, 1], "touch", False)
    with pytest.raises(ValueError, match=r"grad_y must have the shape of x, \(2, 3, 4, 3\), got \(1, 3, 4, 3\)"):
        BACKWARD(tensors[0][:1], *tensors, tensors[0].new_empty(0), [0, 1], "torch")
    with pytest.raises(ValueError, match="the native scan needs CPU tensors, got one on meta"):
        cuda.importlib.import_module("restormixer_arch.selective_scan.native_scan_2d").scan_2d_forward(
            *(tensor.to("meta") for tensor in tensors), [0, 1], False
        )


class Zeros(TorchDispatchMode):
    """Collects the shapes of tensors that are created with zeros."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.zeros.default, torch.ops.aten.zeros_like.default):
            self.shapes.append(tuple(args[0].shape if isinstance(args[0], torch.Tensor) else args[0]))
        return function(*args, **(kwargs or {}))


def test_no_gradient_is_allocated_for_the_kept_states():
    """These states are used only by the backward pass, and on a GPU are as large as all activations."""
    tensors = [tensor.requires_grad_() for tensor in image_inputs(1).values()]
    y, states = SCAN(*tensors, [ORDERS["row"]], "torch", True)
    assert states.numel()
    with Zeros() as zeros:
        y.sum().backward(retain_graph=True)
    assert tuple(states.shape) not in zeros.shapes
    assert all(gradient is None for gradient in torch.autograd.grad(states.sum(), tensors, allow_unused=True))
