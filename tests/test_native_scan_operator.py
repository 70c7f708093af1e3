"""The native scan in torch: threads, processes, its operators, and error messages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from native_scan_cases import (
    DIRECTIONS,
    HERE,
    KERNEL,
    assert_close,
    inputs_1d,
    inputs_2d,
    leaves,
    needs_kernel,
    scan_1d,
    scan_2d,
)
from torch.utils.flop_counter import FlopCounterMode

from restormixer_arch.errors import UserError
from restormixer_arch.native import library as native_library
from restormixer_arch.selective_scan import selective_scan_2d

pytestmark = needs_kernel


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


def test_number_of_threads_changes_only_rounding(threads):
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


def test_concurrent_calls_from_python_threads_are_correct(threads):
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
def test_scan_works_after_fork(threads):
    """The child process lacks the parent's OpenMP threads; it must neither wait for them nor lose the result."""
    threads(2)
    args = inputs_1d(1, 32, 1000, states=32)  # enough work for two threads, but too little for torch's own
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


def test_results_without_the_openmp_runtime_are_the_same(threads, monkeypatch):
    """Without torch's OpenMP runtime, the kernel starts threads itself."""
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
def test_opcheck_of_the_forward_pass(name):
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


def test_gradients_without_saved_states_are_the_same():
    """If a direct call does not save states, the backward pass repeats the forward pass."""
    for name, (*args, _) in _op_arguments().items():
        operator = getattr(torch.ops.restormixer, name).default
        tensors = [t for t in args if isinstance(t, torch.Tensor)]
        kept, repeated = (torch.autograd.grad(operator(*args, keep)[0].sum(), tensors) for keep in (True, False))
        assert all(torch.equal(a, b) for a, b in zip(kept, repeated, strict=True))


def test_gradient_of_c_is_zero_if_only_the_last_state_is_used():
    args = inputs_1d(z=False)
    tensors = leaves(args.values())
    args = dict(zip(args, tensors, strict=True))
    _, state = scan_1d(**args, delta_softplus=True, return_last_state=True)
    grad_c = torch.autograd.grad(state.sum(), tensors)[list(args).index("C")]
    assert torch.equal(grad_c, torch.zeros_like(grad_c))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in jvp
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_forward_mode_derivatives_raise_instead_of_being_zero(backend):
    x, *others = inputs_2d(1, 2, 3, 4, 2, 1)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative: use backend='definition'"):
        torch.func.jvp(lambda x: selective_scan_2d(x, *others, DIRECTIONS[:1], backend=backend), (x,), (x,))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, in jvp
def test_forward_mode_derivatives_of_the_1d_scan_raise():
    u, *others = inputs_1d(1, 4, 5, 3, z=False).values()
    with pytest.raises(NotImplementedError, match="no forward-mode derivative: use backend='definition'"):
        torch.func.jvp(lambda u: scan_1d(u, *others[:-1], delta_bias=others[-1]), (u,), (u,))


def test_second_derivative_raises():
    u, *rest = leaves(inputs_1d(1, 4, 5, 3, z=False).values())
    y = scan_1d(u, *rest[:-1], delta_bias=rest[-1])
    (grad,) = torch.autograd.grad(y.sum(), u, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative.*backend='definition'"):
        grad.sum().backward()


def test_flops_are_counted():
    """7 operations per state and 6 per channel, for each token and direction."""
    args = inputs_2d(1, 3, 4, 5, 2, 2)
    with FlopCounterMode(display=False) as counter:
        scan_2d(*args, ("row", "column"))
    assert counter.get_total_flops() == 12 * 2 * 5 * (7 * 2 + 6)
    with FlopCounterMode(display=False) as counter:
        scan_1d(**inputs_1d(3, 5, 4, 2, z=False))
    assert counter.get_total_flops() == 12 * 5 * (7 * 2 + 6)


@pytest.mark.slow
def test_compile_and_export_match_eager_mode():
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


# ------------------------------------------------------------------ user errors


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
def test_invalid_arguments_1d(change, error, message):
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
def test_invalid_arguments_2d(place, value, message):
    args = [*inputs_2d(), DIRECTIONS]
    args[place] = value
    with pytest.raises(ValueError, match=message):
        scan_2d(*args)


def test_operator_rejects_unknown_direction_numbers():
    *args, _, backend, keep = _op_arguments()["scan_2d"]
    with pytest.raises(ValueError, match=r"got \[1, 9\]"):
        torch.ops.restormixer.scan_2d.default(*args, [1, 9], backend, keep)


def test_missing_kernel_is_reported_with_the_fix(monkeypatch):
    monkeypatch.setattr(native_library, "REASON", "the native kernel was not built: run pip")
    assert native_library.unusable_reason() == "the native kernel was not built: run pip"
    with pytest.raises(UserError, match="cannot be used: the native kernel was not built: run pip"):
        scan_1d(**inputs_1d())
    with pytest.raises(UserError, match="run pip"):
        scan_2d(*inputs_2d(), DIRECTIONS)


def test_library_of_another_version_is_rejected(tmp_path, monkeypatch):
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    source = tmp_path / "old.c"
    source.write_text("int restormixer_abi(void) { return -1; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "_kernel.so", source], check=True)
    library, isa, reason = native_library.load(tmp_path)
    assert library is None and isa == "" and "_kernel.so belongs to another version" in reason
    source.write_text(f"int restormixer_abi(void) {{ return {native_library.ABI}; }}\n")  # no other function
    (tmp_path / "other").mkdir()
    subprocess.run([compiler, "-shared", "-fPIC", "-o", tmp_path / "other/_kernel.so", source], check=True)
    assert "_kernel.so cannot be loaded" in native_library.load(tmp_path / "other")[2]


def test_broken_or_missing_library_is_rejected(tmp_path):
    assert "was not built" in native_library.load(tmp_path)[2]
    (tmp_path / "_kernel.so").write_bytes(b"no library")
    assert "_kernel.so cannot be loaded" in native_library.load(tmp_path)[2]


def _in_a_fresh_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_environment_variable_forces_an_instruction_set():
    code = "from restormixer_arch.native import library as native_library; print(native_library.INSTRUCTION_SET)"
    assert _in_a_fresh_process(code, RESTORMIXER_ISA="plain").stdout.strip() == "plain"
    wrong = _in_a_fresh_process(code, RESTORMIXER_ISA="avx1024", RESTORMIXER_REQUIRE_NATIVE="1")
    assert wrong.returncode == 1 and "UserError: RESTORMIXER_REQUIRE_NATIVE=1, but" in wrong.stderr
    assert "got 'avx1024'" in wrong.stderr


# ------------------------------------------------------------------ the C programs with sanitizers


@pytest.mark.slow
@pytest.mark.timeout(600)  # the sanitizers make compilers slow
@pytest.mark.parametrize("flags", [(), ("-DSCAN_SCALAR",)], ids=["vectors", "scalar"])
@pytest.mark.parametrize("name", ["check_kernel", "check_blocks"])
def test_c_programs_pass_with_sanitizers(tmp_path, flags, name):
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
