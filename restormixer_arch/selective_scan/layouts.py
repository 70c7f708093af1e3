"""Run the torch backend on mamba-ssm's layout and on images, which are converted to a tokens-first layout and back.

Letters: B batch, D channels, L tokens, N states, G groups that share B and C, E = D / G, H x W image, K directions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from restormixer_arch.selective_scan import torch_scan
from restormixer_arch.selective_scan.definition import DIRECTIONS, state_dtype
from restormixer_arch.selective_scan.segment import Inputs, segments


def selective_scan_torch(
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

    The result is differentiable once.
    """
    B, C = (w.unsqueeze(1) if w.dim() == 3 else w for w in (B, C))
    groups = next((w.shape[1] for w in (B, C) if w.dim() == 4), 1)

    def tokens_first(t: Tensor) -> Tensor:
        """(B, D, L) -> (L, B, G, E)"""
        return t.unflatten(1, (groups, -1)).permute(3, 0, 1, 2)

    def states_first(t: Tensor) -> Tensor:
        """(D, N) -> (G, N, E)"""
        return t.unflatten(0, (groups, -1)).transpose(1, 2)

    y, state = torch_scan.scan_tokens(
        tokens_first(u),
        tokens_first(delta),
        states_first(A),
        *(states_first(w) if w.dim() == 2 else w.permute(3, 0, 1, 2) for w in (B, C)),
        *(None if t is None else t.unflatten(0, (groups, -1)) for t in (D, delta_bias)),
        delta_softplus,
    )
    y = y.permute(1, 2, 3, 0).flatten(1, 2)  # (L, B, G, E) -> (B, D, L)
    if z is not None:
        y = y * F.silu(z.to(y.dtype))
    y = y.to(u.dtype)
    if return_last_state:
        return y, state.transpose(-1, -2).flatten(1, 2)  # (B, G, N, E) -> (B, D, N)
    return y


def tokens_of(image: Tensor, direction: str) -> Tensor:
    """(B, H, W, E) -> (L, B, E), in the order in which ``direction`` visits the image."""
    axes = (2, 1, 0, 3) if direction.startswith("column") else (1, 2, 0, 3)
    tokens = image.permute(axes).flatten(0, 1)
    return tokens.flip(0) if direction.endswith("_reverse") else tokens


def image_of(tokens: Tensor, direction: str, height: int, width: int) -> Tensor:
    """(L, B, E) -> (B, H, W, E), the inverse of :func:`tokens_of`."""
    if direction.endswith("_reverse"):
        tokens = tokens.flip(0)
    if direction.startswith("column"):
        return tokens.unflatten(0, (width, height)).permute(2, 1, 0, 3)
    return tokens.unflatten(0, (height, width)).permute(2, 0, 1, 3)


def tokens_by_direction(images: Tensor, directions: tuple[str, ...]) -> Tensor:
    """(B, H, W, K, E) -> (L, B, K, E), the k-th image in the order of the k-th direction."""
    tokens = [tokens_of(images[:, :, :, k], direction) for k, direction in enumerate(directions)]
    return torch.stack(tokens, dim=2) if len(tokens) > 1 else tokens[0].unsqueeze(2)  # no copy for a single one


def sum_of_images(tokens: Tensor, directions: tuple[str, ...], height: int, width: int) -> Tensor:
    """Convert the tokens of every direction to an image and sum these. (L, B, K, E) -> (B, H, W, E)"""
    first, *others = (image_of(tokens[:, :, k], name, height, width) for k, name in enumerate(directions))
    for image in others:
        first = first + image
    return first


def images_of(tokens: Tensor, directions: tuple[str, ...], height: int, width: int) -> Tensor:
    """(L, B, K, E) -> (B, H, W, K, E), the inverse of :func:`tokens_by_direction`."""
    return torch.stack([image_of(tokens[:, :, k], name, height, width) for k, name in enumerate(directions)], dim=3)


def _scan_2d_inputs(tensors: Sequence[Tensor], names: tuple[str, ...]) -> Inputs:
    """Convert the seven inputs of ``restormixer::scan_2d`` to the tokens-first layout; the directions are groups."""
    x, delta, A, B, C, D, delta_bias = tensors
    dtype = state_dtype(x)
    images = x.unsqueeze(3).expand(-1, -1, -1, len(names), -1)  # (B, H, W, K, D)
    u, dt, B, C = (tokens_by_direction(t, names) for t in (images, delta, B, C))
    A = A.transpose(1, 2).to(dtype).contiguous()  # (K, N, D)
    return Inputs(u, dt, A, B, C, D.to(dtype), delta_bias.to(dtype), True)


def kept_states(x: Tensor, A: Tensor) -> Tensor:
    """Return uninitialized memory for one state per segment of tokens: flat, in the dtype of the state."""
    (batch, height, width, _), per_state = x.shape, A.numel()
    count = len(segments(int(height * width), int(A.shape[2]), int(batch * per_state), x.device))
    return x.new_empty(count * batch * per_state, dtype=state_dtype(x))


def scan_2d_forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    directions: Sequence[int],
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """See :mod:`restormixer_arch.selective_scan.operator`."""
    names = tuple(DIRECTIONS[number] for number in directions)
    with torch.autocast(x.device.type, enabled=False):
        inputs = _scan_2d_inputs((x, delta, A, B, C, D, delta_bias), names)
        y, _, starts = torch_scan.run_tokens(inputs, keep=keep)
        return sum_of_images(y, names, *x.shape[1:3]).to(x.dtype), None if starts is None else starts.flatten()


def scan_2d_backward(
    grad_y: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    delta_bias: Tensor,
    states: Tensor,
    directions: Sequence[int],
) -> tuple[Tensor, ...]:
    """See :mod:`restormixer_arch.selective_scan.operator`."""
    names, size = tuple(DIRECTIONS[number] for number in directions), x.shape[1:3]
    tensors = (x, delta, A, B, C, D, delta_bias)
    with torch.autocast(x.device.type, enabled=False):
        inputs = _scan_2d_inputs(tensors, names)
        state_shape = (x.shape[0], *inputs.A.shape)  # (B, K, N, D)
        starts = states.view(-1, *state_shape) if states.numel() else torch_scan.run_tokens(inputs, keep=True)[2]
        # The output is a sum over directions, so each direction gets the same gradient.
        grad = tokens_by_direction(grad_y.unsqueeze(3).expand(-1, -1, -1, len(names), -1), names)
        no_state = inputs.A.new_zeros(state_shape)
        grad_u, grad_dt, grad_a, grad_b, grad_c, *grad_rest = torch_scan.token_gradients(inputs, starts, grad, no_state)
        grad_delta, grad_b, grad_c = (images_of(t, names, *size) for t in (grad_dt, grad_b, grad_c))
        gradients = (sum_of_images(grad_u, names, *size), grad_delta, grad_a.transpose(1, 2), grad_b, grad_c)
        return tuple(g.to(t.dtype) for g, t in zip((*gradients, *grad_rest), tensors, strict=True))
