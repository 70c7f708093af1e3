"""Pairs where several degraded images, of a folder each, share a clean one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from restormixer_arch.data.images.folder import without_suffix
from restormixer_arch.errors import UserError, did_you_mean


class Images(Protocol):
    """A folder or an LMDB: the option that names it, where it is, and the names in it."""

    option: str
    root: object
    names: list[str]


def shared_pairs(gt: Images, lq: Images, names: Sequence[str], may_be_part: bool = False) -> list[tuple[str, str]]:
    """Return (clean, degraded) names; ``low_haze/00001`` belongs to ``00001``, and extensions may differ.

    Args:
        gt, lq: the sources.
        names: of the clean images to use.
        may_be_part: degraded images may be left over.

    Raises:
        UserError: an image has no partner.
    """
    clean = {without_suffix(name): name for name in names}
    pairs, alone = [], []
    for name in lq.names:
        partner = clean.get(without_suffix(name).rpartition("/")[2])
        if partner is None:
            alone.append(name)
        else:
            pairs.append((partner, name))
    if alone and not may_be_part:
        stem = without_suffix(alone[0]).rpartition("/")[2]
        raise UserError(
            f"{gt.option} {str(gt.root)!r} lacks the partners of {len(alone)} of {len(lq.names)} images in "
            f"{lq.option} {str(lq.root)!r}, the first is that of {alone[0]!r}.{did_you_mean(stem, list(clean)[:1000])}"
        )
    unused = sorted(set(names) - {partner for partner, _ in pairs})
    if unused:
        raise UserError(
            f"{lq.option} {str(lq.root)!r} lacks the partners of {len(unused)} of {len(names)} images in {gt.option} "
            f"{str(gt.root)!r}, the first is {unused[0]!r}"
        )
    return pairs
