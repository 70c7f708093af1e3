"""Find the images of the public datasets under a folder, and pair them by the rules of :mod:`.layouts`."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from restormixer_arch.data.images import IMAGE_SUFFIXES
from restormixer_arch.data.images.folder import image_names
from restormixer_arch.data.lmdb_io import key_problem
from restormixer_arch.data.pairing import similar_name_hint
from restormixer_arch.data.preparation.layouts import Layout, Part, PublicSet
from restormixer_arch.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Unit:
    """A clean image and its degraded images.

    Args:
        name: name of the clean image in the output.
        gt: file of the clean image.
        degraded: (kind, name, path) of each degraded image; the kind is that of its LMDB or folder, such as ``lq``.
    """

    name: str
    gt: Path
    degraded: tuple[tuple[str, str, Path], ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.gt, *(path for _, _, path in self.degraded))


@dataclass
class Found:
    """The images that were found for a part of a set.

    Args:
        public, part: the set and its part.
        units: units sorted by name.
        folders: clean and degraded folders of the units.
        ignored: files in these folders that are not images.
        deeper: folder -> number of images in its subfolders, which are skipped; only for folders that the user named.
    """

    public: PublicSet
    part: Part
    units: list[Unit]
    folders: list[Path] = field(default_factory=list)
    ignored: list[Path] = field(default_factory=list)
    deeper: dict[Path, int] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        return f"{self.public.name} {self.part.name}"

    @property
    def formatted_count(self) -> str:
        """The number of pairs, or of clean images if there are no pairs, as text."""
        pairs = sum(len(unit.degraded) for unit in self.units)
        return f"{pairs} pairs" if pairs else f"{len(self.units)} images"


@dataclass
class _Images:
    """The images of a folder by name without extension, and its other files."""

    by_stem: dict[str, Path]
    ignored: list[Path]


def find_part(root: Path, public: PublicSet, part: Part) -> Found | None:
    """Find the images of a part. Return None if there are none.

    Raises:
        UserError: if the partner of a folder or an image is missing, or two images have the same name.
    """
    found, taken = Found(public, part, []), set()
    for layout in part.layouts:
        for gt, labelled, prefix in _folders(root, layout):
            folders = tuple(folder.resolve() for folder in (gt, *labelled.values()))
            if folders in taken:  # found by another layout, if the root is the set's own folder
                continue
            taken.add(folders)
            images = {folder: _images(folder) for folder in (gt, *labelled.values())}
            found.units += _units(layout, gt, labelled, prefix, images)
            found.folders += images
            found.ignored += [path for content in images.values() for path in content.ignored]
        if found.units and not part.gathered:
            break
    if not found.units:
        _check_missing_partner(root, part)
        return None
    found.units.sort(key=lambda unit: unit.name)
    found.folders, found.ignored = list(dict.fromkeys(found.folders)), list(dict.fromkeys(found.ignored))
    _check_names(found)
    return found


def pair_folders(public: PublicSet, part: Part, layout: Layout, gt: Path, labelled: dict[str, Path]) -> Found:
    """Return the pairs of a clean folder and the degraded folder of each label, wherever they are.

    Raises:
        UserError: if there is no image, an image has no partner, or two have the same name.
    """
    images = {folder: _images(folder) for folder in (gt, *labelled.values())}
    if not images[gt].by_stem:
        raise _no_image(gt)
    units = sorted(_units(layout, gt, labelled, "", images), key=lambda unit: unit.name)
    ignored = [path for content in images.values() for path in content.ignored]
    deeper = {folder: count for folder in images if (count := _count_deeper(folder, list(images)))}
    found = Found(public, part, units, list(images), ignored, deeper)
    _check_names(found)
    return found


def _count_deeper(folder: Path, named: Sequence[Path] = ()) -> int:
    """Return how many images are in a folder's subfolders, except in the folders ``named``."""
    names, _ = image_names(folder, True, [path.resolve() for path in named])
    return sum("/" in name and not any(part.startswith(".") for part in name.split("/")) for name in names)


def _no_image(folder: Path) -> UserError:
    deeper = _count_deeper(folder)
    hint = f"; {deeper} images are in its subfolders, which are not read; give one of them instead" if deeper else ""
    return UserError(f"{folder}: contains no images ({' '.join(IMAGE_SUFFIXES)}){hint}")


def images_in(folder: Path) -> dict[str, Path]:
    """Return the images of a folder by name without extension. Raises UserError if two have the same name."""
    return _images(folder).by_stem


def expected_layouts(public: PublicSet) -> str:
    """Describe the folders in which the parts of a set are expected, by the most common layout of each part."""
    texts = []
    for part in public.parts:
        layout = part.layouts[0]
        lq = next(iter(layout.labelled.values()), None)
        texts.append(f"{lq} and {layout.gt}" if lq else layout.gt)
    return ", ".join(texts)


def _folders(root: Path, layout: Layout) -> Iterator[tuple[Path, dict[str, Path], str]]:
    """Yield (clean folder, label -> degraded folder, prefix of names) for everything that matches a layout."""
    if not layout.labelled:
        for gt, prefix in _matching(root, layout.gt):
            if _images(gt).by_stem:
                yield gt, {}, prefix
        return
    gts = {prefix: gt for gt, prefix in _matching(root, layout.gt)}
    labelled: dict[str, dict[str, Path]] = {}
    for label, pattern in layout.labelled.items():
        for folder, prefix in _matching(root, pattern):
            labelled.setdefault(prefix, {})[label] = folder
    for prefix, folders in labelled.items():
        if prefix in gts:
            yield gts[prefix], folders, prefix
    alone = labelled.keys() ^ gts.keys()
    if alone and labelled.keys() & gts.keys():  # one of several sequences lacks a folder
        prefix = sorted(alone)[0]
        folder = gts.get(prefix) or next(iter(labelled[prefix].values()))
        raise UserError(f"{folder}: its partner folder is missing ({layout.gt} and {_first(layout)} belong together)")


def _first(layout: Layout) -> str:
    return next(iter(layout.labelled.values()))


def _check_missing_partner(root: Path, part: Part) -> None:
    """Raise UserError if one folder of a layout exists and its partner is missing."""
    for layout in part.layouts:
        if not layout.labelled:
            continue
        lq = [folder for pattern in layout.labelled.values() for folder, _ in _matching(root, pattern)]
        gt = [folder for folder, _ in _matching(root, layout.gt)]
        there, wanted = (lq, layout.gt) if lq else (gt, _first(layout))
        # A clean folder alone does not indicate this part if it is the set's own folder or is shared by several parts.
        if bool(lq) == bool(gt) or (gt and (layout.gt_is_larger or "/" not in layout.gt)):
            continue
        near = [folder.name for folder in there[0].parent.iterdir() if folder.is_dir() and folder != there[0]]
        hint = did_you_mean(wanted.rpartition("/")[2], near)
        raise UserError(f"{there[0]}: its partner folder {wanted!r} is missing in {str(root)!r}.{hint}")


def _matching(root: Path, pattern: str) -> list[tuple[Path, str]]:
    """Return (folder, prefix) of the folders that match a pattern, ignoring case; ``root`` may be the set's own folder.

    The prefix contains the name of each folder that a ``*`` matches, followed by ``_``.
    """
    found, names = [(root, "")], pattern.split("/")
    own_name = Path(os.path.abspath(root)).name.lower()  # also for "."
    if names[0].lower() == own_name and own_name not in _subfolders(root):
        names = names[1:]
    for name in names:
        deeper = []
        for folder, prefix in found:
            inside = _subfolders(folder)
            if name == "*":
                deeper += [(path, f"{prefix}{path.name}_") for path in inside.values()]
                for path in inside.values():
                    _check_name(path)
            elif name.lower() in inside:
                deeper.append((inside[name.lower()], prefix))
        found = deeper
    return found


@functools.lru_cache(maxsize=4096)
def _subfolders(folder: Path) -> dict[str, Path]:
    return {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."}


@functools.lru_cache(maxsize=256)
def _images(folder: Path) -> _Images:
    by_stem: dict[str, Path] = {}
    ignored = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            ignored.append(path)
            continue
        _check_name(path)
        if path.stem in by_stem:
            raise UserError(f"{path}: has the same name as {by_stem[path.stem].name} except for the extension")
        else:
            by_stem[path.stem] = path
    return _Images(by_stem, ignored)


def _check_name(path: Path) -> None:
    """Raise UserError if a file name cannot be used as a key in a list of names."""
    if problem := key_problem(path.name):
        raise UserError(f"{path.parent}: the name {path.name!r} {problem}; rename it")


def clear_folder_cache() -> None:
    """Clear the cached contents of folders, which may have changed since they were read."""
    _subfolders.cache_clear()
    _images.cache_clear()


def _units(layout: Layout, gt: Path, labelled: dict[str, Path], prefix: str, images: dict[Path, _Images]) -> list[Unit]:
    clean = images[gt].by_stem
    if not labelled:
        return [Unit(stored_name(prefix + stem), path) for stem, path in clean.items()]
    if set(labelled) != set(layout.labelled):
        absent = sorted(set(layout.labelled) - set(labelled))
        raise UserError(f"{gt.parent}: lacks the folders {', '.join(absent)} next to {gt.name!r}")
    groups: dict[str, list[tuple[str, str, Path]]] = {}
    shared = len(labelled) > 1
    used = set()
    for label, folder in labelled.items():
        degraded = images[folder].by_stem
        if not degraded:
            raise _no_image(folder)
        wanted = {layout.rule(stem): stem for stem in degraded}
        for stem, path in degraded.items():
            partner = layout.rule(stem)
            if partner not in clean:
                hint = similar_name_hint(partner, clean)
                raise UserError(f"{path}: has no clean partner {partner!r} in {gt}.{hint}")
            used.add(partner)
            name = stored_name(prefix + stem)
            group = partner if shared else stem
            groups.setdefault(group, []).append(("lq", f"{label}/{name}" if label else name, path))
        alone = sorted(clean.keys() - wanted.keys())
        if alone and not layout.gt_is_larger:
            raise UserError(f"{clean[alone[0]]}: has no degraded partner in {folder} ({len(alone)} such images)")
    by_group = {group: clean[group if shared else layout.rule(group)] for group in groups}
    return [Unit(stored_name(prefix + group), by_group[group], tuple(members)) for group, members in groups.items()]


def stored_name(stem: str) -> str:
    """Return a name with dots replaced by ``_``, since BasicSR's readers end it at its first dot."""
    return stem.replace(".", "_")


def _check_names(found: Found) -> None:
    names = Counter((kind, name) for unit in found.units for kind, name, _ in unit.degraded)
    names.update(("gt", unit.name) for unit in found.units)
    (kind, name), times = names.most_common(1)[0]
    if times > 1:
        raise UserError(f"{found.folders[0]}: {times} images of {found.shown} are named {name!r} ({kind})")
