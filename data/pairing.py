"""Pair degraded and clean images by name, and choose file names for results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path, PurePath
from typing import TypeAlias

from restormixer_arch.data.images.folder import FolderImages, without_suffix
from restormixer_arch.data.lmdb_io import LmdbImages, read_names
from restormixer_arch.errors import UserError, did_you_mean

Images: TypeAlias = FolderImages | LmdbImages  # a source of images; messages name its option and root

MAX_HINT_NAMES = 1000  # number of names that are searched for a similar one


def pair_names(
    gt: Images,
    lq: Images,
    names: Sequence[str],
    template: str = "{}",
    allow_unpaired: bool = False,
) -> list[tuple[str, str]]:
    """Return pairs of (clean, degraded) names with the same extension if such a file exists, else any image extension.

    Args:
        gt, lq: sources of images; messages name their options and roots.
        names: names of the clean images to pair.
        template: degraded name without extension, where ``{}`` stands for that of the clean image.
        allow_unpaired: whether degraded images may be left over.

    Raises:
        UserError: if an image of one source has no partner in the other.
    """
    left = dict.fromkeys(lq.names)
    by_stem: dict[str, list[str]] = {}
    for name in lq.names:
        by_stem.setdefault(without_suffix(name), []).append(name)
    exact = {name: wanted for name in names if (wanted := _partner(name, template)) in left}
    taken = set(exact.values())  # exact names are paired first, so a.jpg does not take the partner of a.png
    pairs, alone = [], []
    for name in names:
        wanted = _partner(name, template)
        free = [other for other in by_stem.get(without_suffix(wanted), ()) if other in left and other not in taken]
        if name in exact:
            partner = wanted
        elif len(free) == 1:
            partner = free[0]
        else:
            alone.append(wanted)
            continue
        left.pop(partner, None)
        pairs.append((name, partner))
    if alone:
        hint = similar_name_hint(alone[0], left)
        raise UserError(f"{_missing_partner(lq, len(alone), names, gt)}, the first is {alone[0]!r}.{hint}")
    if left and not allow_unpaired:
        raise UserError(f"{_missing_partner(gt, len(left), lq.names, lq)}, the first is that of {next(iter(left))!r}")
    return pairs


def _partner(name: str, template: str) -> str:
    folder, slash, file = name.rpartition("/")
    stem = without_suffix(file)
    return folder + slash + template.replace("{}", stem) + file[len(stem) :]


def _missing_partner(source: Images, count: int, names: Sequence[str], other: Images) -> str:
    """Return the message that ``source`` has no partner for ``count`` of the ``names`` in ``other``."""
    return (
        f"{source.option} {str(source.root)!r} has no partner for {count} of {len(names)} images in {other.option} "
        f"{str(other.root)!r}"
    )


def similar_name_hint(name: str, choices: Mapping[str, None] | Sequence[str]) -> str:
    """Return ``" Did you mean 'x'?"`` if one of the first 1000 names is similar, else ""."""
    return did_you_mean(name, list(choices)[:MAX_HINT_NAMES])


def read_listing(gt: Images, listing: Path) -> list[str]:
    """Return the sorted clean images that a file lists. Raises UserError if it is missing or lists unknown images."""
    if not listing.is_file():
        raise UserError(f"meta_info_file: {str(listing)!r} is not a file")
    names = set(read_names(listing))
    if isinstance(gt, LmdbImages):
        names = {without_suffix(name) for name in names}
    unknown = sorted(names - set(gt.names))
    if unknown:
        raise UserError(
            f"meta_info_file {str(listing)!r} lists {len(unknown)} images that {gt.option} {str(gt.root)!r} lacks, "
            f"the first is {unknown[0]!r}.{similar_name_hint(unknown[0], gt.names)}"
        )
    return sorted(names)


def shared_pairs(gt: Images, lq: Images, names: Sequence[str], allow_unpaired: bool = False) -> list[tuple[str, str]]:
    """Return pairs of (clean, degraded) names, such as ``00001`` and ``low_haze/00001``; extensions may differ.

    Args:
        gt, lq: sources of images.
        names: names of the clean images to use.
        allow_unpaired: whether degraded images may be left over.

    Raises:
        UserError: if an image has no partner.
    """
    clean = {without_suffix(name): name for name in names}
    pairs, alone = [], []
    for name in lq.names:
        partner = clean.get(without_suffix(name).rpartition("/")[2])
        if partner is None:
            alone.append(name)
        else:
            pairs.append((partner, name))
    if alone and not allow_unpaired:
        stem = without_suffix(alone[0]).rpartition("/")[2]
        hint = similar_name_hint(stem, list(clean))
        raise UserError(f"{_missing_partner(gt, len(alone), lq.names, lq)}, the first is that of {alone[0]!r}.{hint}")
    unused = sorted(set(names) - {partner for partner, _ in pairs})
    if unused:
        raise UserError(f"{_missing_partner(lq, len(unused), names, gt)}, the first is {unused[0]!r}")
    return pairs


def result_names(paths: Sequence[str], root: str | Path) -> list[str]:
    """Return a unique file name without extension for each image, with its folders and extension only if necessary.

    ``a/x.png`` and ``b/x.png`` become ``a_x`` and ``b_x``, ``a.jpg`` and ``a.png`` become ``a_jpg`` and ``a_png``.
    Names that differ only in case count as the same, because some file systems do not distinguish them.
    Names that are still the same, such as those of ``a/x.png`` and ``a_x.png`` next to ``x.png``, are numbered.
    """
    places = [PurePath(path) for path in paths]
    places = [place.relative_to(root) if place.is_relative_to(root) else place for place in places]
    names = [without_suffix(place.name) for place in places]
    with_folders = ["_".join(place.with_name(name).parts) for place, name in zip(places, names, strict=True)]
    whole = ["_".join(place.parts).replace(".", "_") for place in places]
    for longer in (with_folders, whole):
        counts = Counter(map(str.casefold, names))
        names = [name if counts[name.casefold()] == 1 else other for name, other in zip(names, longer, strict=True)]
    counts = Counter(map(str.casefold, names))
    taken = set(counts)
    for place, name in enumerate(names):
        if counts[name.casefold()] > 1:
            names[place] = next(new for number in count(1) if (new := f"{name}_{number}").casefold() not in taken)
            taken.add(names[place].casefold())
    return names
