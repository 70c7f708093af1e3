"""The Triton scan in Triton's interpreter, on the CPU. test_triton_scan.py runs this file in a separate process:

    TRITON_INTERPRET=1 pytest tests/triton_cases.py

The interpreter needs about 50 ms per token and direction, so the images are tiny.
"""

import pytest
import torch
from scan_cases import scan_inputs
from test_selective_scan_2d import S3, image_inputs
from torch.utils.checkpoint import checkpoint

from restormixer_arch.selective_scan import DIRECTIONS, selective_scan, selective_scan_2d, triton_scan
from restormixer_arch.selective_scan.definition import selective_scan_2d_loop, selective_scan_loop
from restormixer_arch.selective_scan.triton_scan import Config

TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}
STREAMS = ("x", "delta", "B", "C")


@pytest.fixture(autouse=True)
def small_programs(monkeypatch):
    """Use chunks of two tiles of two tokens, and eight channels per program: tiny images then have several of each."""
    assert triton_scan.interpreted(), __doc__
    torch.manual_seed(0)
    monkeypatch.setattr(triton_scan, "CONFIG", Config(rows=2, tiles=2, channels=8, warps=1, loads=4))


def inputs(count, *sizes, dtype=torch.float32, **options):
    tensors = image_inputs(count, *sizes, dtype=torch.float32, **options)
    return {name: tensor.to(dtype) if name in STREAMS else tensor for name, tensor in tensors.items()}


def results(scan, tensors, **options):
    """Return all results of a scan, and the gradients of a float64 loss that weights each value differently."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    found = scan(**leaves, **options)
    found = found if isinstance(found, tuple) else (found,)
    loss = sum((t.double() * torch.arange(t.numel()).view_as(t).cos()).sum() for t in found)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {f"result {i}": t.detach() for i, t in enumerate(found)} | dict(zip(leaves, gradients, strict=True))


def check(found, wanted, tolerance):
    """Check that the norm of each error is at most ``tolerance`` times the norm of the expected tensor."""
    assert found.keys() == wanted.keys()
    for name, right in wanted.items():
        error, limit = (found[name].double() - right).norm().item(), tolerance * right.double().norm().item()
        assert error <= limit, f"{name} is off by {error:.3g}, {limit:.3g} are allowed"


def check_image(tensors, directions, **options):
    wanted = results(selective_scan_2d_loop, {n: t.double() for n, t in tensors.items()}, directions=directions)
    found = results(selective_scan_2d, tensors, directions=directions, backend="triton", **options)
    dtype = tensors["x"].dtype
    assert [t.dtype for t in found.values()] == [dtype, *(t.dtype for t in tensors.values())]
    check(found, wanted, TOLERANCE[dtype])
    return found


@pytest.mark.parametrize(
    ("directions", "sizes"),  # sizes: batch, height, width, channels, states
    [
        (DIRECTIONS, (2, 2, 3, 3, 1)),
        (S3, (1, 3, 5, 10, 3)),
        (("row",), (1, 5, 4, 8, 4)),
        (("column_reverse",), (1, 1, 9, 3, 2)),
        (("row", "column"), (2, 7, 1, 3, 2)),
        (("row_reverse",), (1, 1, 1, 1, 1)),
    ],
    ids=str,
)
def test_values_and_gradients(directions, sizes):
    check_image(inputs(len(directions), *sizes), directions)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_streams(dtype):
    check_image(inputs(2, 1, 3, 5, 10, 2, dtype=dtype), ("column", "row_reverse"))


@pytest.mark.parametrize("directions", [("column",), ("row", "column_reverse")], ids=str)
def test_recomputed_states_give_identical_and_repeatable_results(directions):
    tensors = inputs(len(directions), 1, 2, 5, 3, 2)
    kept, again, computed = (
        results(selective_scan_2d, tensors, directions=directions, backend="triton", keep_states=keep)
        for keep in (True, True, False)
    )
    for name, tensor in kept.items():
        assert torch.equal(tensor, again[name]) and torch.equal(tensor, computed[name]), name


def test_states_kept_for_the_backward_pass():
    tensors = {name: tensor.requires_grad_() for name, tensor in inputs(1, 1, 2, 3, 3, 2).items()}
    for keep, numbers in ((True, 3 * 2 * 3), (False, 0)):  # every second of six tokens, two states, three channels
        y = selective_scan_2d(**tensors, directions=("row",), backend="triton", keep_states=keep)
        assert y.grad_fn.saved_tensors[-1].numel() == numbers


def test_non_contiguous_inputs():
    """In memory, x has channels first, delta directions first, A is transposed; B and C are slices of one product."""
    tensors = inputs(2, 2, 2, 3, 4, 2)
    product = torch.cat([tensors["B"][..., :1], tensors["B"], tensors["C"]], dim=-1)
    _, tensors["B"], tensors["C"] = product.split([1, 2, 2], dim=-1)
    tensors["x"] = tensors["x"].permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    tensors["delta"] = tensors["delta"].permute(3, 0, 1, 2, 4).contiguous().permute(1, 2, 3, 0, 4)
    tensors["A"] = tensors["A"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(tensors[name].is_contiguous() for name in ("x", "delta", "A", "B", "C"))
    check_image(tensors, ("column", "row_reverse"))


def test_64_bit_offsets(monkeypatch):
    monkeypatch.setattr(triton_scan, "WIDE_OFFSETS", 1)
    check_image(inputs(1, 1, 3, 3, 3, 2), ("column",))


@pytest.mark.parametrize("limit", ["MAX_CHUNKS", "PROGRAMS"])
def test_longer_and_shorter_chunks(limit, monkeypatch):
    monkeypatch.setattr(triton_scan, limit, 1)
    monkeypatch.setattr(triton_scan, "CONFIG", Config(rows=3, tiles=1, channels=4, warps=1, loads=2))
    check_image(inputs(1, 1, 3, 5, 3, 2), ("row_reverse",))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("without", [(), ("D", "z", "delta_bias")], ids=str)
def test_one_dimensional_scan(groups, without):
    tensors = scan_inputs(2, groups, 3, 2, 5, without=without, dtype=torch.float32)
    if without:
        tensors["delta"] = tensors["delta"].abs()
    if groups == 1:
        tensors["B"], tensors["C"] = tensors["B"].squeeze(1), tensors["C"].squeeze(1)
    options = {"delta_softplus": not without, "return_last_state": True}
    wanted = results(selective_scan_loop, {n: t.double() for n, t in tensors.items()}, **options)
    check(results(selective_scan, tensors, backend="triton", **options), wanted, 5e-6)


def test_one_dimensional_scan_in_bfloat16_without_last_state(monkeypatch):
    monkeypatch.setenv("RESTORMIXER_SCAN_STATES", "recompute")
    tensors = {n: t.bfloat16() for n, t in scan_inputs(1, 1, 3, 2, 5, dtype=torch.float32).items()}
    wanted = results(selective_scan_loop, {n: t.double() for n, t in tensors.items()}, delta_softplus=True)
    check(results(selective_scan, tensors, backend="triton", delta_softplus=True), wanted, 1.2e-2)


def test_constant_weights_and_float64_are_rejected():
    with pytest.raises(ValueError, match="it takes no constant B or C"):
        selective_scan(**scan_inputs(constant="B", dtype=torch.float32), backend="triton")
    with pytest.raises(TypeError, match="x must be of dtype .* got torch.float64"):
        selective_scan_2d(**image_inputs(1), directions=("row",), backend="triton")


def test_probe_passes(monkeypatch):
    triton_scan.probe.cache_clear()
    assert triton_scan.probe(torch.device("cpu"), torch.float32) is None


def test_compiled_and_checkpointed_scans_match_eager():
    tensors = inputs(1, 1, 1, 3, 3, 2)

    def scan(**leaves):
        return selective_scan_2d(**leaves, directions=("row",), backend="triton") * 2

    wanted = results(scan, tensors)
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    for way in (compiled, lambda **leaves: checkpoint(lambda: scan(**leaves), use_reentrant=False)):
        found = results(way, tensors)
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_opcheck():
    tensors = [t.requires_grad_() for t in inputs(1, 1, 1, 2, 2, 1).values()]
    operator = torch.ops.restormixer.scan_2d.default
    torch.library.opcheck(operator, (*tensors, [1], "triton", True), test_utils=("test_schema", "test_faketensor"))
    y, states = operator(*tensors, [1], "triton", True)
    arguments = (torch.ones_like(y), *(t.detach() for t in tensors), states.detach(), [1], "triton")
    torch.library.opcheck(torch.ops.restormixer.scan_2d_backward.default, arguments, test_utils=("test_faketensor",))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("directions", "sizes"),
    [(DIRECTIONS, (2, 5, 7, 6, 3)), (S3, (1, 4, 9, 24, 16)), (("row",), (1, 3, 11, 40, 64))],
    ids=str,
)
def test_more_values_and_gradients(directions, sizes, dtype, monkeypatch):
    monkeypatch.setattr(triton_scan, "CONFIG", Config(rows=4, tiles=4, channels=16, warps=1, loads=8))
    check_image(inputs(len(directions), *sizes, dtype=dtype), directions)
