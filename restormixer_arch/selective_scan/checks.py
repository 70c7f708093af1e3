"""Check the inputs of a selective scan; the shape letters are those of the package's docstrings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from restormixer_arch.errors import did_you_mean
from restormixer_arch.selective_scan.definition import DIRECTIONS


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _check_kinds(tensors: Mapping[str, Tensor]) -> None:
    """Raise unless all tensors are real, floating-point, non-empty and on one device."""
    main = next(iter(tensors))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be real and floating-point, got {tensor.dtype}")
        if tensor.device != tensors[main].device:
            raise ValueError(f"{name} must be on the device of {main}, {tensors[main].device}, got {tensor.device}")
        if tensor.numel() == 0:
            raise ValueError(f"{name} must not be empty, got shape {_shape(tensor)}")


def _check_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    for name, (letters, shape) in wanted.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            raise ValueError(f"{name} must be {letters} = {shape}, got {_shape(tensors[name])}")


def check_scan(tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`ValueError` or :class:`TypeError` for the first invalid input of ``selective_scan``."""
    _check_kinds(tensors)
    u, A = tensors["u"], tensors["A"]
    if u.dim() != 3:
        raise ValueError(f"u must be (B, D, L), got shape {_shape(u)}")
    if A.dim() != 2:
        raise ValueError(f"A must be (D, N), got shape {_shape(A)}")
    (batch, channels, length), states = u.shape, A.shape[1]
    sequence, channel = ("(B, D, L)", (batch, channels, length)), ("(D,)", (channels,))
    wanted = {"delta": sequence, "z": sequence, "A": ("(D, N)", (channels, states)), "D": channel}
    wanted["delta_bias"] = channel
    groups = set()
    for name in ("B", "C"):
        rank, count = tensors[name].dim(), 1
        if rank == 4:
            count = tensors[name].shape[1]
            if channels % count:
                raise ValueError(f"the groups of {name} must divide the {channels} channels of u, got {count}")
        forms = {
            2: ("(D, N)", (channels, states)),
            3: ("(B, N, L)", (batch, states, length)),
            4: ("(B, G, N, L)", (batch, count, states, length)),
        }
        if rank not in forms:
            raise ValueError(f"{name} must be (D, N), (B, N, L) or (B, G, N, L), got shape {_shape(tensors[name])}")
        wanted[name] = forms[rank]
        if rank > 2:
            groups.add(count)
    _check_shapes(tensors, wanted)
    if len(groups) > 1:
        shapes = f"{_shape(tensors['B'])} and {_shape(tensors['C'])}"
        raise ValueError(f"B and C must have the same number of groups, got {shapes}")


def check_scan_2d(tensors: Mapping[str, Tensor], directions: Sequence[str]) -> None:
    """Raise :class:`ValueError` or :class:`TypeError` for the first invalid input of ``selective_scan_2d``."""
    for name in directions:
        if name not in DIRECTIONS:
            hint = did_you_mean(name, DIRECTIONS)
            raise ValueError(f"a direction must be one of {', '.join(DIRECTIONS)}, got {name!r}.{hint}")
    if not directions or len(set(directions)) != len(directions):
        raise ValueError(f"directions must be one or more different names, got {tuple(directions)}")
    _check_kinds(tensors)
    x, A = tensors["x"], tensors["A"]
    if x.dim() != 4:
        raise ValueError(f"x must be (B, H, W, D), got shape {_shape(x)}")
    if A.dim() != 3:
        raise ValueError(f"A must be (K, D, N), got shape {_shape(A)}")
    (batch, height, width, channels), states, count = x.shape, A.shape[2], len(directions)
    image, weights = (batch, height, width, count), ("(B, H, W, K, N)", (batch, height, width, count, states))
    _check_shapes(
        tensors,
        {
            "delta": ("(B, H, W, K, D)", (*image, channels)),
            "A": ("(K, D, N)", (count, channels, states)),
            "B": weights,
            "C": weights,
            "D": ("(K, D)", (count, channels)),
            "delta_bias": ("(K, D)", (count, channels)),
        },
    )
