"""The scan and the attention's windows in standard ONNX operators.

ONNX knows no selective scan, and its Scan would visit the tokens one by one: 16384 steps for the first scan of a
256x256 picture, each of a few microseconds of work. Here the L tokens are cut into S parts of T tokens that advance
side by side. Three Scans: over T from empty states, for what each part ends with; over S, for the state that enters
each part; over T again, from these states, for the outputs. T + S + T steps, and no decay is ever divided by.

Shape letters: B batch, H x W image, L = S * T tokens, K scan directions, D channels, N states, w window side.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import onnxscript
from onnxscript import FLOAT, graph, script
from onnxscript import opset18 as op

from restormixer_arch.export.operators import FROM_WINDOWS, SCAN, TO_WINDOWS
from restormixer_arch.selective_scan.definition import ORDERS

OPSET = 18
NAMES = {number: name for name, number in ORDERS.items()}
FLOATS = FLOAT[...]  # onnxscript reads annotations as ONNX types


@script(onnxscript.values.Opset("restormixer", 1), default_opset=op)
def scan_of_parts(u: FLOATS, dt: FLOATS, A: FLOATS, B: FLOATS, C: FLOATS) -> FLOATS:
    """(T, S, B, K, 1, D) twice, (K, N, D), (T, S, B, K, N, 1) and (T, S, B, K, 1, N) -> (T, S, B, K, 1, D)"""
    dt_u = op.Mul(dt, u)
    empty = op.Mul(op.Mul(op.Gather(dt_u, 0, axis=0), op.Gather(B, 0, axis=0)), 0.0)  # (S, B, K, N, D)

    @graph()
    def advance(state: FLOATS, dt_t: FLOATS, dt_u_t: FLOATS, B_t: FLOATS):
        after = op.Add(op.Mul(op.Exp(op.Mul(dt_t, A)), state), op.Mul(dt_u_t, B_t))
        return op.Identity(after)

    ends = op.Scan(empty, dt, dt_u, B, body=advance, num_scan_inputs=3)
    decays = op.Exp(op.Mul(op.ReduceSum(dt, [0], keepdims=0), A))  # of whole parts

    @graph()
    def join(entry: FLOATS, decay: FLOATS, end: FLOATS):
        following = op.Add(op.Mul(decay, entry), end)
        entered = op.Identity(entry)
        return following, entered

    last, entries = op.Scan(op.Gather(empty, 0, axis=0), decays, ends, body=join, num_scan_inputs=2)

    @graph()
    def put_out(state: FLOATS, dt_t: FLOATS, dt_u_t: FLOATS, B_t: FLOATS, C_t: FLOATS):
        after = op.Add(op.Mul(op.Exp(op.Mul(dt_t, A)), state), op.Mul(dt_u_t, B_t))
        out = op.MatMul(C_t, after)
        return after, out

    ends_again, y = op.Scan(entries, dt, dt_u, B, C, body=put_out, num_scan_inputs=4)
    return y


def scan_2d(
    x: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    delta_bias: Any,
    directions: Sequence[int],
    backend: str,
    keep_states: bool,
) -> tuple[Any, Any]:
    """``restormixer::scan_2d`` for a batch of known size; the states that training keeps are left out."""
    names = [NAMES[number] for number in directions]
    batch, channels, states = x.shape[0], x.shape[3], A.shape[2]
    height, width = op.Shape(x, start=1, end=2), op.Shape(x, start=2, end=3)

    def parts(image_of: Callable[[int], Any], lanes: int, shape: tuple[int, ...]) -> Any:
        """K images (B, H, W, E) -> (T, S, B, K, E), as ``shape`` after the T and S"""
        tokens = [_tokens(image_of(k), name, batch, lanes) for k, name in enumerate(names)]
        joined = op.Concat(*[op.Unsqueeze(one, _ints(2)) for one in tokens], axis=2)  # (L, B, K, E)
        cut = op.Reshape(joined, op.Concat(height, width, _ints(batch, *shape), axis=0))
        return op.Transpose(cut, perm=[1, 0, *range(2, 3 + len(shape))])

    def of(tensor: Any) -> Callable[[int], Any]:
        return lambda k: op.Gather(tensor, _int(k), axis=3)

    count = len(names)
    dt = op.Softplus(op.Add(delta, delta_bias))  # torch's is linear above 20, where the difference is below 3e-9
    y = scan_of_parts(
        parts(lambda k: x, channels, (count, 1, channels)),
        parts(of(dt), channels, (count, 1, channels)),
        op.Transpose(A, perm=[0, 2, 1]),
        parts(of(B), states, (count, states, 1)),
        parts(of(C), states, (count, 1, states)),
    )
    y = op.Reshape(op.Transpose(y, perm=[1, 0, 2, 3, 4, 5]), _ints(-1, batch, count, channels))  # (L, B, K, D)
    total = op.Mul(x, op.ReduceSum(D, _ints(0), keepdims=0))
    for k, name in enumerate(names):
        image = _image(op.Gather(y, _int(k), axis=2), name, height, width, _ints(batch, channels))
        total = op.Add(total, image)
    return total, op.Identity(x)


def to_windows(x: Any, side: int) -> Any:
    """``restormixer::to_windows``: (B, H, W, C) -> (G, w * w, C), padded with zeros to whole windows"""
    channels = x.shape[3]
    size, counts = _window_counts(x, side)
    missing = op.Sub(op.Mul(counts, _ints(side)), size)
    padded = op.Pad(x, op.Concat(_ints(0, 0, 0, 0, 0), missing, _ints(0), axis=0))
    rows, columns = op.Slice(counts, _ints(0), _ints(1)), op.Slice(counts, _ints(1), _ints(2))
    tiles = op.Reshape(padded, op.Concat(_ints(-1), rows, _ints(side), columns, _ints(side, channels), axis=0))
    return op.Reshape(op.Transpose(tiles, perm=[0, 1, 3, 2, 4, 5]), _ints(-1, side * side, channels))


def from_windows(windows: Any, like: Any, side: int) -> Any:
    """``restormixer::from_windows``: (G, w * w, C) -> (B, H, W, C), the padding cropped"""
    channels = like.shape[3]
    size, counts = _window_counts(like, side)
    tiles = op.Reshape(windows, op.Concat(_ints(-1), counts, _ints(side, side, channels), axis=0))
    tiles = op.Transpose(tiles, perm=[0, 1, 3, 2, 4, 5])
    whole = op.Concat(_ints(-1), op.Mul(counts, _ints(side)), _ints(channels), axis=0)
    return op.Slice(op.Reshape(tiles, whole), _ints(0, 0), size, _ints(1, 2))


TRANSLATIONS = {SCAN: scan_2d, TO_WINDOWS: to_windows, FROM_WINDOWS: from_windows}


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _int(value: int) -> Any:
    return op.Constant(value_int=value)


def _reverse(tokens: Any) -> Any:
    """(L, ...) from the last to the first"""
    return op.Slice(tokens, _ints(-1), _ints(-sys.maxsize), _ints(0), _ints(-1))


def _tokens(image: Any, direction: str, batch: int, lanes: int) -> Any:
    """(B, H, W, E) -> (L, B, E), in the order in which ``direction`` visits the image"""
    axes = [2, 1, 0, 3] if direction.startswith("column") else [1, 2, 0, 3]
    tokens = op.Reshape(op.Transpose(image, perm=axes), _ints(-1, batch, lanes))
    return _reverse(tokens) if direction.endswith("_reverse") else tokens


def _image(tokens: Any, direction: str, height: Any, width: Any, rest: Any) -> Any:
    """(L, B, E) -> (B, H, W, E), the reverse of :func:`_tokens`"""
    if direction.endswith("_reverse"):
        tokens = _reverse(tokens)
    if direction.startswith("column"):
        return op.Transpose(op.Reshape(tokens, op.Concat(width, height, rest, axis=0)), perm=[2, 1, 0, 3])
    return op.Transpose(op.Reshape(tokens, op.Concat(height, width, rest, axis=0)), perm=[2, 0, 1, 3])


def _window_counts(x: Any, side: int) -> tuple[Any, Any]:
    """The size H and W, and the counts of windows that cover it, two numbers each."""
    size = op.Shape(x, start=1, end=3)
    return size, op.Div(op.Add(size, _ints(side - 1)), _ints(side))
