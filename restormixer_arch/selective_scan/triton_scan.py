"""Run the selective scan on a GPU by this package's Triton kernels, if they can be used here.

Triton comes with every CUDA build of torch, so no CUDA compiler and no other package is needed; a C compiler, gcc or
clang, builds its launchers. The kernels read tokens in all four directions by index: nothing is flipped, transposed or
copied, except a stream whose channels are not dense or whose pixels are not evenly spaced in memory. Results are
bitwise identical from run to run.

Memory: the state of every T-th token is kept for the backward pass in float32, 4 N / T bytes per token, channel and
direction (T = 4: 16 bytes with N = 16). With ``keep_states=False`` nothing is kept, and the backward pass scans
forward again to compute the states, for one scan at a time.

If ``TRITON_INTERPRET=1`` is set before Triton is imported, the kernels run on CPU tensors, very slowly, for tests.

Shape letters: B batch, H x W image, K scan directions, D channels, N states, L = H W tokens, G groups of channels.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from restormixer_arch.selective_scan.definition import selective_scan_2d_loop
from restormixer_arch.selective_scan.operator import keep_states_by_default, scan_2d
from restormixer_arch.selective_scan.probe import cache_result, difference, results

MINIMUM = (3, 3)  # for tuples as values in a kernel
NO_CONSTANT_WEIGHTS = "it takes no constant B or C, (D, N)"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
LOG2E = 1.4426950408889634


class Config(NamedTuple):
    """How the work is divided. The registers of a program grow with ``rows * channels``."""

    rows: int  # T, tokens in registers at a time; need not be a power of two
    tiles: int  # largest TILES; a chunk has TILES * T tokens
    channels: int  # BD, channels of a program, a power of two
    warps: int
    loads: int  # U, loads in flight in the carry phase


# Chosen by the register use of the code for compute capabilities 8.0, 9.0 and 12.0; not yet timed on a GPU.
CONFIG = Config(rows=4, tiles=16, channels=64, warps=1, loads=8)
PROGRAMS = 1024  # a launch with fewer programs gets shorter chunks
MAX_CHUNKS = 4096  # the carry phase processes them one after the other
WIDE_OFFSETS = 2**31  # an image of this many elements or more needs 64-bit offsets


def package_reason() -> str | None:
    """Return why Triton cannot be used on any device of this machine, or None if it can."""
    try:
        import triton
    except Exception as error:  # noqa: BLE001 - a broken binary package may fail in any way, and is reported
        return f"triton cannot be imported: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
    found = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:2])
    if found < MINIMUM:
        return f"triton {triton.__version__} is too old, {'.'.join(map(str, MINIMUM))} is needed"
    return None


def interpreted() -> bool:
    """Return whether kernels run on the CPU, in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unusable_reason(device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> str | None:
    """Return why the kernels cannot run on ``device`` (default: torch's current CUDA device), or None if they can."""
    if device is not None and device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return f"it needs a CUDA tensor, this one is on {device}"
    reason = package_reason()
    if reason is not None:
        return reason
    if device is not None and device.type == "cpu":
        return None
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    index = torch.cuda.current_device() if device is None or device.index is None else device.index
    return probe(torch.device("cuda", index), dtype if dtype in DTYPES else torch.float32)


def _tiny_scan(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return inputs of a scan in two directions, with several chunks and a channel block that is not full."""
    draw = torch.Generator("cpu").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device="cpu")

    size, directions, channels, states = (1, 3, 7), 2, 80, 2
    inputs = {"x": normal(*size, channels).to(dtype), "delta": (normal(*size, directions, channels) - 2).to(dtype)}
    inputs["A"] = -normal(directions, channels, states).exp()
    inputs |= {name: normal(*size, directions, states).to(dtype) for name in ("B", "C")}
    return inputs | {name: normal(directions, channels) for name in ("D", "delta_bias")}


@cache_result
def probe(device: torch.device, dtype: torch.dtype) -> str | None:
    """Run the kernels once on ``device``; return None if they match the definition, else the reason."""
    names = ("column", "row_reverse")

    def exact() -> dict[str, Tensor]:
        return {name: tensor.double() for name, tensor in _tiny_scan(dtype).items()}

    def scan(**tensors: Tensor) -> Tensor:
        return scan_2d(**tensors, directions=names, backend="triton", keep_states=True)

    return difference(
        "the Triton kernel",
        TOLERANCES[dtype],
        lambda: results(selective_scan_2d_loop, exact(), torch.device("cpu"), directions=names),
        lambda: results(scan, _tiny_scan(dtype), device),
    )


def _tiles(batch: int, tokens: int, blocks: int, config: Config) -> int:
    """Return the tiles of a chunk: few enough to fill a GPU with programs, many enough for a short carry phase."""
    tiles = config.tiles
    while tiles > 2 and batch * blocks * -(-tokens // (config.rows * tiles)) < PROGRAMS:
        tiles //= 2
    while -(-tokens // (config.rows * tiles)) > MAX_CHUNKS:
        tiles *= 2
    return tiles


def kept_states(x: Tensor, A: Tensor) -> Tensor:
    """Return uninitialized memory for the state before every T-th token, (B, K, ceil(L / T), N, D), float32."""
    count, channels, states = A.shape
    rows = -(-(x.shape[1] * x.shape[2]) // CONFIG.rows)
    return x.new_empty(x.shape[0], count, rows, states, channels, dtype=torch.float32)


def _even(tensor: Tensor) -> Tensor:
    """Return (B, H, W, ...) with pixels evenly spaced and the last axis dense; copy it only if necessary."""
    height, width = tensor.shape[1:3]
    even = height == 1 or width == 1 or tensor.stride(1) == width * tensor.stride(2)
    return tensor if even and tensor.stride(-1) == 1 else tensor.contiguous()


def _strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of image and pixel, and of direction if there is one."""
    pixel = tensor.stride(1 if tensor.shape[2] == 1 else 2)
    return tensor.stride(0), pixel, *((tensor.stride(3),) if tensor.dim() == 5 else ())


class _Scan:
    """One scan of a batch of images: its inputs in the form that the kernels accept, and the launches.

    Args:
        tensors: x (B, H, W, D), delta (B, H, W, K, D), A (K, D, N), B, C (B, H, W, K, N), D, delta_bias (K, D).
        orders: scan orders of the K directions, values of ``ORDERS``.
        softplus: whether dt is softplus(delta + delta_bias); if not, it is delta + delta_bias.
    """

    def __init__(self, tensors: Sequence[Tensor], orders: Sequence[int], softplus: bool) -> None:
        x, delta, A, B, C, D, delta_bias = tensors
        for name, tensor in {"x": x, "delta": delta, "B": B, "C": C}.items():
            if tensor.dtype not in DTYPES:
                raise TypeError(f"{name} must be of dtype {' or '.join(map(str, DTYPES))}, got {tensor.dtype}")
        self.x, self.delta, self.B, self.C = map(_even, (x, delta, B, C))
        self.A2 = (A.float() * LOG2E).transpose(1, 2).contiguous()  # (K, N, D)
        self.bias, self.skips = delta_bias.float().contiguous(), D.float().sum(0)  # the sum of all directions' skips
        self.orders = orders
        (self.batch, self.height, self.width, self.channels), self.count = x.shape, len(orders)
        self.states, self.length = A.shape[2], self.height * self.width
        self.config = CONFIG
        self.blocks = -(-self.channels // self.config.channels)
        self.tiles = _tiles(self.batch, self.length, self.blocks, self.config)
        self.chunks = -(-self.length // (self.config.rows * self.tiles))
        self.sizes = (self.height, self.width, self.length, self.chunks, self.channels, self.tiles)
        self.common = {"K": self.count, "N": self.states, "BD": self.config.channels, "num_warps": self.config.warps}
        self.softplus = softplus

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.x.new_empty(shape, dtype=dtype)

    def walk(self, *others: Tensor) -> dict[str, Any]:
        """Return the constants of the kernels that iterate over tokens."""
        streams = (self.x, self.delta, self.B, self.C, *others)
        wide = any(abs(_strides(tensor)[1]) * self.length >= WIDE_OFFSETS for tensor in streams)
        return self.common | {"T": self.config.rows, "SOFTPLUS": self.softplus, "WIDE": wide}

    def carried(self, values: Tensor, weights: Tensor, initial: Tensor, *, reverse: bool) -> Tensor:
        """Return the state or, if ``reverse``, the adjoint that leaves each chunk, (B, K, chunks, N, D)."""
        from restormixer_arch.selective_scan import triton_kernels as kernels

        ends = self.new(self.batch, self.count, self.chunks, self.states, self.channels)
        sums = self.new(self.batch, self.count, self.chunks, self.channels)
        packed = sum(order << (2 * k) for k, order in enumerate(self.orders))
        kernels.ends_kernel[(self.batch * self.count * self.chunks, self.blocks)](
            values, self.delta, self.A2, weights, self.bias, ends, sums, *self.sizes, packed,
            *_strides(values), *_strides(self.delta), *_strides(weights), weights.stride(4),
            REVERSE=reverse, **self.walk(values),
        )  # fmt: skip
        kernels.carry_kernel[(self.batch * self.count * self.states, self.blocks)](
            ends, sums, self.A2, initial, self.chunks, self.channels, U=self.config.loads, REVERSE=reverse,
            **self.common,
        )  # fmt: skip
        return ends

    def forward(self, *, keep: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Return y (B, H, W, D), states before every T-th token if ``keep``, else scratch, last states (B, K, N, D)."""
        from restormixer_arch.selective_scan import triton_kernels as kernels

        nothing = self.x.new_zeros(self.batch, self.count, self.states, self.channels, dtype=torch.float32)
        ends = self.carried(self.x, self.B, nothing, reverse=False)
        rows = -(-self.length // self.config.rows) if keep else self.chunks
        starts = self.new(self.batch, self.count, rows, self.states, self.channels)
        y = self.new(*self.x.shape, dtype=dtype)
        total = y if self.count == 1 else self.new(*self.x.shape)
        for k, order in enumerate(self.orders):
            kernels.apply_kernel[(self.batch * self.chunks, self.blocks)](
                self.x, self.delta, self.A2, self.B, self.C, self.bias, self.skips, ends, starts, total, y,
                *self.sizes, k, *_strides(self.x), *_strides(self.delta),
                *_strides(self.B), self.B.stride(4), *_strides(self.C), self.C.stride(4), *_strides(y),
                ORDER=order, FIRST=k == 0, LAST=k == self.count - 1, KEEP=keep, **self.walk(y),
            )  # fmt: skip
        return y, starts, ends[:, :, -1]

    def backward(self, grad_y: Tensor, states: Tensor, grad_last: Tensor | None) -> tuple[Tensor, ...]:
        """Return the gradients of the seven inputs: x and delta in their dtypes, the others in float32.

        Args:
            grad_y: gradient of y (B, H, W, D).
            states: states kept by :meth:`forward`.
            grad_last: gradient of the last states (B, K, N, D), or None for zeros.
        """
        from restormixer_arch.selective_scan import triton_kernels as kernels

        grad_y = _even(grad_y)
        shape = (self.batch, self.count, self.states, self.channels)
        initial = self.x.new_zeros(shape, dtype=torch.float32) if grad_last is None else grad_last.contiguous()
        adjoints = self.carried(grad_y, self.C, initial, reverse=True)
        adjoints[:, :, 0] = initial  # slot c + 1 enters chunk c; what leaves chunk 0 is not needed
        grad_a = self.new(self.batch, self.count, self.chunks, self.states, self.channels)
        grad_bias = self.new(self.batch, self.count, self.chunks, self.channels)
        grad_skips = self.new(self.batch, self.chunks, self.channels)
        grad_x = self.new(*self.x.shape, dtype=self.x.dtype)
        total = grad_x if self.count == 1 else self.new(*self.x.shape)
        grad_delta = self.new(*self.delta.shape, dtype=self.delta.dtype)
        grad_b, grad_c = (self.new(self.blocks, *tensor.shape) for tensor in (self.B, self.C))
        for k, order in enumerate(self.orders):
            kernels.gradient_kernel[(self.batch * self.chunks, self.blocks)](
                self.x, self.delta, self.A2, self.B, self.C, self.bias, self.skips, grad_y, states, adjoints, total,
                grad_x, grad_delta, grad_b, grad_c, grad_a, grad_bias, grad_skips, *self.sizes, k,
                *_strides(self.x), *_strides(self.delta), *_strides(self.B), self.B.stride(4),
                *_strides(self.C), self.C.stride(4), *_strides(grad_y), *_strides(grad_x), *_strides(grad_delta),
                grad_b.stride(0), *_strides(grad_b[0]),
                ORDER=order, FIRST=k == 0, LAST=k == self.count - 1, **self.walk(grad_y, grad_x, grad_delta),
            )  # fmt: skip
        grad_skips = grad_skips.sum((0, 1)).expand(self.count, -1)
        grad_b, grad_c = (grad[0] if self.blocks == 1 else grad.sum(0) for grad in (grad_b, grad_c))
        grad_a, grad_bias = grad_a.sum((0, 2)).transpose(1, 2), grad_bias.sum((0, 2))
        return grad_x, grad_delta, grad_a, grad_b, grad_c, grad_skips, grad_bias


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Make ``device`` the current one, since Triton launches there and not on the tensors' device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def scan_2d_forward(*arguments: Any) -> tuple[Tensor, Tensor | None]:
    """See :mod:`restormixer_arch.selective_scan.operator`."""
    *inputs, directions, keep = arguments
    with _on(inputs[0].device):
        y, starts, _ = _Scan(inputs, directions, True).forward(keep=keep, dtype=inputs[0].dtype)
    return y, starts if keep else None


def scan_2d_backward(grad_y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """See :mod:`restormixer_arch.selective_scan.operator`."""
    *inputs, states, directions = arguments
    with _on(inputs[0].device):
        scan = _Scan(inputs, directions, True)
        if states.numel() == 0:
            states = scan.forward(keep=True, dtype=torch.float32)[1]
        gradients = scan.backward(grad_y, states, None)
        return tuple(grad.to(tensor.dtype) for grad, tensor in zip(gradients, inputs, strict=True))


class _OneWay(torch.autograd.Function):
    """The scan of images in one direction, "row", that also returns the last state."""

    @staticmethod
    def forward(ctx: Any, softplus: bool, keep: bool, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        with _on(inputs[0].device):
            y, starts, last = _Scan(inputs, (0,), softplus).forward(keep=keep, dtype=torch.float32)
        ctx.save_for_backward(*inputs, starts if keep else starts.new_empty(0))
        ctx.softplus = softplus
        return y, last[:, 0].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, states = ctx.saved_tensors
        with _on(inputs[0].device):
            scan = _Scan(inputs, (0,), ctx.softplus)
            if states.numel() == 0:
                states = scan.forward(keep=True, dtype=torch.float32)[1]
            gradients = scan.backward(grad_y, states, grad_last.unsqueeze(1))
        return None, None, *(grad.to(tensor.dtype) for grad, tensor in zip(gradients, inputs, strict=True))


def selective_scan_triton(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute the same as :func:`~restormixer_arch.selective_scan.definition.selective_scan_loop`.

    Each group is scanned as an image of one row. Streams whose channels are not dense, as in (B, D, L), are copied to
    (B, L, D).

    Raises:
        TypeError: if u is float64.
        ValueError: if B or C is constant, (D, N).
    """
    if 2 in (B.dim(), C.dim()):
        raise ValueError(f"the Triton kernel: {NO_CONSTANT_WEIGHTS}; use backend='torch'")
    B, C = (w.unsqueeze(1) if w.dim() == 3 else w for w in (B, C))
    groups, none = B.shape[1], A.new_zeros(A.shape[0])
    D, delta_bias = (none if t is None else t for t in (D, delta_bias))
    keep = keep_states_by_default() and torch.is_grad_enabled()
    found = []
    for g in range(groups):
        own = slice(g * u.shape[1] // groups, (g + 1) * u.shape[1] // groups)
        image, steps = (t[:, own].transpose(1, 2).unsqueeze(1) for t in (u, delta))  # (B, 1, L, D / G)
        weights = (w[:, g].transpose(1, 2)[:, None, :, None] for w in (B, C))  # (B, 1, L, 1, N)
        parameters = (t[own].unsqueeze(0) for t in (D, delta_bias))
        inputs = (image, steps.unsqueeze(3), A[own].unsqueeze(0), *weights, *parameters)
        found.append(_OneWay.apply(delta_softplus, keep, *inputs))
    y = torch.cat([y.squeeze(1).transpose(1, 2) for y, _ in found], dim=1)  # (B, D, L)
    y = (y if z is None else y * F.silu(z.float())).to(u.dtype)
    state = torch.cat([last.transpose(1, 2) for _, last in found], dim=1)  # (B, D, N)
    return (y, state) if return_last_state else y
