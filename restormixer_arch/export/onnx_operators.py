"""Implement the scan and the attention windows with standard ONNX operators.

ONNX has no selective scan, and its Scan would process the tokens one by one: 16384 steps for the first scan of a
256x256 image, each with a few microseconds of work. Here chunks of tokens are processed one after the other, and the
S * T tokens of a chunk are divided into S parts of T tokens that advance in parallel. A chunk needs three Scans: over T
from zero states, for the final state of each part; over S, for the initial state of each part; and over T again, from
these initial states, for the outputs. Nothing is divided by a decay.

Shape letters: B batch, H x W image, L tokens, K scan directions, D channels, N states, R rank of dt, w window side,
G windows in the batch, E any number of channels.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import onnxscript
import torch
from onnxscript import BOOL, FLOAT, INT64, graph, script
from onnxscript import opset18 as op

from restormixer_arch.export.exportable import DIRECTIONS, FROM_WINDOWS, TO_WINDOWS
from restormixer_arch.selective_scan.definition import ORDERS

OPSET = 18
NAMES = {number: name for name, number in ORDERS.items()}
STEPS = 32  # T
MAX_PARALLEL_VALUES = 32768  # upper limit of S * K * N * D: one step of all parts fits in the second-level cache
PARTS = (2, 16)  # smallest and largest S
FLOATS = FLOAT[...]  # onnxscript reads annotations as ONNX types


@script(onnxscript.values.Opset("restormixer", 1), default_opset=op)
def scan_of_chunks(
    x: FLOATS, ranks: FLOATS, B: FLOATS, C: FLOATS, dt_proj: FLOATS, dt_bias: FLOATS, A: FLOATS, empty: FLOATS
) -> FLOATS:
    """(chunks, K, S, T, B, D), (chunks, K, S * T * B, R), (chunks, T, N, K, S, B, 1), (chunks, T, K, S, B, 1, N),
    (K, R, D), (K, 1, D), (N, K, S, B, D), (N, K, B, D) -> (chunks, K, S, T, B, D)

    The states (N, K, S, B, D) start with N so that a product with a decay rate runs over many consecutive numbers.
    """

    @graph()
    def scan_chunk(number: INT64, going: BOOL, before: FLOATS):
        x_c = op.Gather(x, number, axis=0)
        # dt = softplus(v) = log(1 + exp(v)), from operators that onnxruntime vectorizes, unlike its Softplus
        v = op.Add(op.MatMul(op.Gather(ranks, number, axis=0), dt_proj), dt_bias)
        z = op.Exp(op.Neg(op.Abs(v)))
        w = op.Add(z, 1.0)
        lost = op.Sub(z, op.Sub(w, 1.0))  # rounding error of the sum: all of z if z is small
        softplus = op.Add(op.Max(v, 0.0), op.Add(op.Log(w), op.Div(lost, w)))
        in_parts = op.Reshape(softplus, op.Shape(x_c))
        dt_u = op.Transpose(op.Mul(in_parts, x_c), perm=[2, 0, 1, 3, 4])
        dt = op.Transpose(in_parts, perm=[2, 0, 1, 3, 4])  # (T, K, S, B, D)
        decays = op.Exp(op.Mul(A, op.Unsqueeze(dt, [1])))  # (T, N, K, S, B, D)
        entering = op.Mul(op.Gather(B, number, axis=0), op.Unsqueeze(dt_u, [1]))

        @graph()
        def advance(state: FLOATS, decay: FLOATS, entering_t: FLOATS):
            after = op.Add(op.Mul(decay, state), entering_t)
            return op.Identity(after)

        ends = op.Scan(op.Expand(0.0, op.Shape(A)), decays, entering, body=advance, num_scan_inputs=2)
        of_parts = op.Exp(op.Mul(A, op.ReduceSum(dt, [0], keepdims=0)))

        @graph()
        def join(entry: FLOATS, decay_p: FLOATS, end_p: FLOATS):
            following = op.Add(op.Mul(decay_p, entry), end_p)
            kept = op.Identity(entry)
            return following, kept

        # A Scan must know the number of dimensions of its results, which a Loop's state does not provide.
        entry_of_chunk = op.Reshape(before, op.Shape(op.Gather(A, 0, axis=2)))  # (N, K, B, D)
        last, entries = op.Scan(
            entry_of_chunk, of_parts, ends, body=join, num_scan_inputs=2, scan_input_axes=[2, 2], scan_output_axes=[2]
        )

        @graph()
        def put_out(state_2: FLOATS, decay_2: FLOATS, entering_2: FLOATS, C_t: FLOATS):
            after_2 = op.Add(op.Mul(decay_2, state_2), entering_2)
            out = op.MatMul(C_t, op.Transpose(after_2, perm=[1, 2, 3, 0, 4]))  # (K, S, B, 1, D)
            return after_2, out

        C_c = op.Gather(C, number, axis=0)
        ends_2, out_c = op.Scan(entries, decays, entering, C_c, body=put_out, num_scan_inputs=3)
        y_c = op.Transpose(op.Squeeze(out_c, [4]), perm=[1, 2, 0, 3, 4])
        on = op.Identity(going)
        return on, last, y_c

    # OpenVINO supports no Scan within a Scan; a Scan within a Loop may use only its own inputs.
    end, y = op.Loop(op.Squeeze(op.Shape(x, start=0, end=1)), op.Cast(1, to=9), empty, body=scan_chunk)
    return y


def scan_directions(x: Any, projected: Any, dt_proj: Any, dt_bias: Any, A: Any, orders: Sequence[int]) -> Any:
    """Translate ``restormixer::directions``: the sum of one scan per direction, without the skips, in float32."""
    given, shapes = x, (dt_proj.shape, A.shape)
    x, projected, dt_proj, dt_bias, A = (op.Cast(t, to=FLOAT.dtype) for t in (x, projected, dt_proj, dt_bias, A))
    names = [NAMES[number] for number in orders]
    count, channels, states, rank = len(names), given.shape[3], shapes[1][1], shapes[0][1]
    parts = PARTS[0]
    while parts < PARTS[1] and 2 * parts * count * channels * states <= MAX_PARALLEL_VALUES:
        parts *= 2
    batch, height, width = (op.Shape(x, start=axis, end=axis + 1) for axis in range(3))
    length = op.Mul(height, width)
    missing = op.Mod(op.Neg(length), _ints(parts * STEPS))

    def in_chunks(images: Sequence[Any], lanes: int) -> Any:
        """K images (B, H, W, E) -> (chunks, K, S, T, B, E), in their directions' orders, zero-padded to full chunks"""
        zeros = op.ConstantOfShape(op.Concat(missing, batch, _ints(lanes), axis=0))
        shape = op.Concat(_ints(-1, 1, parts, STEPS), batch, _ints(lanes), axis=0)
        tokens = [_tokens(image, name, batch, lanes) for image, name in zip(images, names, strict=True)]
        chunks = [op.Reshape(op.Concat(one, zeros, axis=0), shape) for one in tokens]
        return op.Concat(*chunks, axis=1) if count > 1 else chunks[0]

    each = rank + 2 * states
    stacked = in_chunks([_part(projected, 3, k * each, each) for k in range(count)], each)
    ranks, B, C = (_part(stacked, 5, *span) for span in ((0, rank), (rank, states), (rank + states, states)))
    A = op.Unsqueeze(op.Transpose(A, perm=[1, 0, 2]), _ints(2, 3))  # (N, K, 1, 1, D)
    y = scan_of_chunks(
        in_chunks([x] * count, channels),
        op.Reshape(ranks, _ints(0, count, -1, rank)),
        op.Unsqueeze(op.Transpose(B, perm=[0, 3, 5, 1, 2, 4]), _ints(6)),
        op.Unsqueeze(op.Transpose(C, perm=[0, 3, 1, 2, 4, 5]), _ints(5)),
        dt_proj,
        op.Unsqueeze(dt_bias, _ints(1)),
        op.Expand(A, op.Concat(_ints(states, count, parts), batch, _ints(channels), axis=0)),
        op.ConstantOfShape(op.Concat(_ints(states, count), batch, _ints(channels), axis=0)),
    )
    images = []
    for k, name in enumerate(names):
        tokens = op.Reshape(op.Gather(y, _int(k), axis=1), op.Concat(_ints(-1), batch, _ints(channels), axis=0))
        tokens = op.Slice(tokens, _ints(0), length, _ints(0))
        images.append(_image(tokens, name, height, width, batch, channels))
    return op.CastLike(op.Sum(*images), given)


def to_windows(x: Any, side: int) -> Any:
    """Translate ``restormixer::to_windows``: (B, H, W, C) -> (G, w * w, C), zero-padded to complete windows."""
    channels = x.shape[3]
    size, counts = _window_counts(x, side)
    missing = op.Sub(op.Mul(counts, _ints(side)), size)
    padded = op.Pad(x, op.Concat(_ints(0, 0, 0, 0, 0), missing, _ints(0), axis=0))
    rows, columns = op.Slice(counts, _ints(0), _ints(1)), op.Slice(counts, _ints(1), _ints(2))
    tiles = op.Reshape(padded, op.Concat(_ints(-1), rows, _ints(side), columns, _ints(side, channels), axis=0))
    return op.Reshape(op.Transpose(tiles, perm=[0, 1, 3, 2, 4, 5]), _ints(-1, side * side, channels))


def from_windows(windows: Any, like: Any, side: int) -> Any:
    """Translate ``restormixer::from_windows``: (G, w * w, C) -> (B, H, W, C), without the padding."""
    channels = like.shape[3]
    size, counts = _window_counts(like, side)
    tiles = op.Reshape(windows, op.Concat(_ints(-1), counts, _ints(side, side, channels), axis=0))
    tiles = op.Transpose(tiles, perm=[0, 1, 3, 2, 4, 5])
    whole = op.Concat(_ints(-1), op.Mul(counts, _ints(side)), _ints(channels), axis=0)
    return op.Slice(op.Reshape(tiles, whole), _ints(0, 0), size, _ints(1, 2))


def gelu(x: Any, approximate: str = "none") -> Any:
    """Translate ``aten::gelu`` into the form that onnxruntime replaces by a single kernel."""

    def like(value: float) -> Any:
        return op.CastLike(op.Constant(value_float=value), x)

    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, like(math.sqrt(2)))), like(1.0))), like(0.5))


TRANSLATIONS = {
    DIRECTIONS: scan_directions,
    TO_WINDOWS: to_windows,
    FROM_WINDOWS: from_windows,
    torch.ops.aten.gelu.default: gelu,
}


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _int(value: int) -> Any:
    return op.Constant(value_int=value)


def _part(x: Any, axis: int, first: int, size: int) -> Any:
    return op.Slice(x, _ints(first), _ints(first + size), _ints(axis))


def _reverse(tokens: Any) -> Any:
    """Reverse the order of tokens (L, ...)."""
    return op.Slice(tokens, _ints(-1), _ints(-sys.maxsize), _ints(0), _ints(-1))


def _tokens(image: Any, direction: str, batch: Any, lanes: int) -> Any:
    """(B, H, W, E) -> (L, B, E), in the order in which ``direction`` visits the image."""
    axes = [2, 1, 0, 3] if direction.startswith("column") else [1, 2, 0, 3]
    tokens = op.Reshape(op.Transpose(image, perm=axes), op.Concat(_ints(-1), batch, _ints(lanes), axis=0))
    return _reverse(tokens) if direction.endswith("_reverse") else tokens


def _image(tokens: Any, direction: str, height: Any, width: Any, batch: Any, lanes: int) -> Any:
    """(L, B, E) -> (B, H, W, E), the inverse of :func:`_tokens`."""
    if direction.endswith("_reverse"):
        tokens = _reverse(tokens)
    by_columns = direction.startswith("column")
    sides = (width, height) if by_columns else (height, width)
    image = op.Reshape(tokens, op.Concat(*sides, batch, _ints(lanes), axis=0))
    return op.Transpose(image, perm=[2, 1, 0, 3] if by_columns else [2, 0, 1, 3])


def _window_counts(x: Any, side: int) -> tuple[Any, Any]:
    """Return H and W, and the numbers of windows that cover them, two numbers each."""
    size = op.Shape(x, start=1, end=3)
    return size, op.Div(op.Add(size, _ints(side - 1)), _ints(side))
