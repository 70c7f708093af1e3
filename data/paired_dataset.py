"""Pairs of a degraded and a clean image, from folders or LMDBs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import count
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, Protocol

import cv2
import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.config.rules import crop_problem, database_problem
from restormixer_arch.data.images.folder import FolderImages, without_suffix
from restormixer_arch.data.lmdb_io import LmdbImages, read_names
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.output import user_path

compat.apply()  # basicsr can be imported from here on

from basicsr.data.transforms import augment, paired_random_crop  # noqa: E402
from basicsr.utils import bgr2ycbcr, img2tensor  # noqa: E402
from basicsr.utils.registry import DATASET_REGISTRY  # noqa: E402
from torchvision.transforms.functional import normalize  # noqa: E402

BACKENDS = ("disk", "lmdb")
HINTED = 1000  # names that are searched for a close match


@DATASET_REGISTRY.register()
class PairedRestorationDataset(Dataset):
    """Pairs for training and validation; takes the options of BasicSR's PairedImageDataset and gives the same.

    What differs from it:

    - Pairs are sorted by name, so that their order is the same on every file system; ``recursive: true`` reads
      sub-folders too. Files that are no images are ignored. A partner may have another image extension.
    - Names are compared when the data set is built, and sizes when a pair is read; a message names the image.
    - Training images smaller than ``gt_size`` are mirrored at their right and lower edges until they are that large.
    - It can be sent to worker processes after use, and two of them can read the same LMDB.
    - ``meta_info_file`` also works with LMDBs. ``opt`` is read and never changed.

    Args:
        opt: options:
            dataroot_gt, dataroot_lq: folders or LMDBs of the clean and of the degraded images.
            io_backend: ``{type: disk}`` or ``{type: lmdb}``.
            phase: ``train``, ``val`` or ``test``; set by BasicSR.
            scale: size of the clean image in degraded ones; set by BasicSR.
            gt_size: side of the square training crops, in pixels of the clean image, a multiple of ``scale``.
            use_hflip, use_rot: mirror, or turn by quarters, at random in training.
            filename_tmpl: name of the degraded image, ``{}`` standing for the clean one's without extension.
            meta_info_file: file that lists the clean images to use, one a line.
            recursive: read sub-folders too.
            shared_gt: degraded images are named ``<label>/<name>``, and those of one name share a clean image.
            color: ``y`` for the luma of BT.601 (studio range) instead of RGB.
            mean, std: per channel, subtracted and divided by.

    Item:
        ``lq`` (C, h, w) and ``gt`` (C, scale * h, scale * w): float32 tensors, RGB, in [0, 1] before mean and std;
        ``lq_path`` and ``gt_path``: file paths, or keys of the LMDBs. Where two images have one name, also
        ``result_name``, which names the result, see :func:`result_names`.
        With ``shared_gt`` the name in ``lq_path`` ends in the label, ``low/00001_low``: results are named after it.

    Raises:
        UserError: an option is missing or wrong, pairs do not match, an image cannot be read or has a wrong size.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        self.opt = dict(opt)
        _check_options(self.opt)
        self.scale, self.training = self.opt["scale"], self.opt["phase"] == "train"
        self._gt, self._lq = (open_source(self.opt, key) for key in ("dataroot_gt", "dataroot_lq"))
        template, listing = self.opt.get("filename_tmpl") or "{}", self.opt.get("meta_info_file")
        names = _read_listing(self._gt, user_path(listing)) if listing else self._gt.names
        if self.opt.get("shared_gt"):
            self.pairs = shared_pairs(self._gt, self._lq, names, may_be_part=bool(listing))
        else:
            self.pairs = pair_names(self._gt, self._lq, names, template, may_be_part=bool(listing))
        paths = [self._result_path(lq_name) for _, lq_name in self.pairs]
        names = result_names(paths, user_path(self.opt["dataroot_lq"]))
        self._names = None if names == [without_suffix(PurePath(path).name) for path in paths] else names

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        gt_name, lq_name = self.pairs[index]
        gt, lq = self._gt.read(gt_name), self._lq.read(lq_name)
        gt = self._matching(gt, lq, gt_name, lq_name)
        if self.training:
            gt, lq = self._vary(gt, lq)
        if self.opt.get("color") == "y":
            gt, lq = (bgr2ycbcr(image, y_only=True)[..., None] for image in (gt, lq))
        gt, lq = img2tensor([gt, lq], bgr2rgb=True, float32=True)
        if self.opt.get("mean") is not None:
            gt, lq = (normalize(image, self.opt["mean"], self.opt["std"]) for image in (gt, lq))
        return {"lq": lq, "gt": gt, **self._places(index)}

    def _places(self, index: int) -> dict[str, str]:
        gt_name, lq_name = self.pairs[index]
        places = {"lq_path": self._result_path(lq_name), "gt_path": self._gt.locate(gt_name)}
        return places if self._names is None else {**places, "result_name": self._names[index]}

    def _result_path(self, name: str) -> str:
        """Return where a degraded image is; results are named after the last part, which must differ between labels."""
        place = PurePath(self._lq.locate(name))
        if not self.opt.get("shared_gt"):
            return str(place)
        suffix = place.name[len(without_suffix(place.name)) :]
        return str(place.with_name(f"{without_suffix(place.name)}_{place.parent.name}{suffix}"))

    def _matching(self, gt: np.ndarray, lq: np.ndarray, gt_name: str, lq_name: str) -> np.ndarray:
        """Return the clean image in the size that belongs to the degraded one.

        Test sets for super-resolution have clean images that are up to ``scale - 1`` pixels larger: as BasicSR does,
        these pixels are cut off in validation.
        """
        height, width = self.scale * lq.shape[0], self.scale * lq.shape[1]
        over = gt.shape[0] - height, gt.shape[1] - width
        if max(over) > (0 if self.training else self.scale - 1) or min(over) < 0:
            raise UserError(
                f"{self._gt.describe(gt_name)} is {gt.shape[0]}x{gt.shape[1]} (height x width), expected "
                f"{height}x{width}: {self.scale} times {lq.shape[0]}x{lq.shape[1]} of {self._lq.describe(lq_name)}"
            )
        return gt[:height, :width]

    def _vary(self, gt: np.ndarray, lq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pair cropped, mirrored and turned at random, both alike."""
        size = self.opt["gt_size"]
        gt, lq = enlarge(gt, size), enlarge(lq, size // self.scale)
        gt, lq = paired_random_crop(gt, lq, size, self.scale)
        return tuple(augment([gt, lq], self.opt["use_hflip"], self.opt["use_rot"]))


def result_names(paths: Sequence[str], root: str | Path) -> list[str]:
    """Return a file name without extension for each image: its own, or with folders and extension where it must be.

    ``a/x.png`` and ``b/x.png`` become ``a_x`` and ``b_x``, ``a.jpg`` and ``a.png`` become ``a_jpg`` and ``a_png``.
    Names that are still the same, as of ``a/x.png`` and ``a_x.png`` beside ``x.png``, are numbered.
    """
    places = [PurePath(path) for path in paths]
    places = [place.relative_to(root) if place.is_relative_to(root) else place for place in places]
    names = [without_suffix(place.name) for place in places]
    with_folders = ["_".join(place.with_name(name).parts) for place, name in zip(places, names, strict=True)]
    whole = ["_".join(place.parts).replace(".", "_") for place in places]
    for longer in (with_folders, whole):
        counts = Counter(names)
        names = [name if counts[name] == 1 else other for name, other in zip(names, longer, strict=True)]
    counts, taken = Counter(names), set(names)
    for place, name in enumerate(names):
        if counts[name] > 1:
            names[place] = next(new for number in count(1) if (new := f"{name}_{number}") not in taken)
            taken.add(names[place])
    return names


def enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """Mirror an image (H, W, C) at its right and lower edges until both sides are at least ``size``.

    The edge pixels are repeated (abc|cba), since only then do a clean image and its degraded one at another scale
    stay in register.
    """
    down, right = max(size - image.shape[0], 0), max(size - image.shape[1], 0)
    if not (down or right):
        return image
    return cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REFLECT)


def pair_names(
    gt: FolderImages | LmdbImages,
    lq: FolderImages | LmdbImages,
    names: Sequence[str],
    template: str = "{}",
    may_be_part: bool = False,
) -> list[tuple[str, str]]:
    """Return (clean, degraded) names: the same extension if there is such a file, else any image extension.

    Args:
        gt, lq: the sources; their options and roots stand in messages.
        names: of the clean images to pair.
        template: of the degraded name.
        may_be_part: degraded images may be left over.

    Raises:
        UserError: an image of one source has no partner in the other.
    """
    left = dict.fromkeys(lq.names)
    by_stem: dict[str, list[str]] = {}
    for name in lq.names:
        by_stem.setdefault(without_suffix(name), []).append(name)
    exact = {name: wanted for name in names if (wanted := _partner(name, template)) in left}
    taken = set(exact.values())  # an exact name pairs first, so that a.jpg leaves a.png to its own partner
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
        raise UserError(
            f"{lq.option} {str(lq.root)!r} lacks the partners of {len(alone)} of {len(names)} images in {gt.option} "
            f"{str(gt.root)!r}, the first is {alone[0]!r}.{_hint(alone[0], left)}"
        )
    if left and not may_be_part:
        raise UserError(
            f"{gt.option} {str(gt.root)!r} lacks the partners of {len(left)} of {len(lq.names)} images in "
            f"{lq.option} {str(lq.root)!r}, the first is that of {next(iter(left))!r}"
        )
    return pairs


def _partner(name: str, template: str) -> str:
    folder, slash, file = name.rpartition("/")
    stem = without_suffix(file)
    return folder + slash + template.replace("{}", stem) + file[len(stem) :]


def _hint(name: str, choices: Mapping[str, None] | Sequence[str]) -> str:
    return did_you_mean(name, list(choices)[:HINTED])


def _read_listing(gt: FolderImages | LmdbImages, listing: Path) -> list[str]:
    """Return those clean images that the file lists, sorted."""
    if not listing.is_file():
        raise UserError(f"meta_info_file: {str(listing)!r} is not a file")
    names = set(read_names(listing))
    if isinstance(gt, LmdbImages):
        names = {without_suffix(name) for name in names}
    unknown = sorted(names - set(gt.names))
    if unknown:
        raise UserError(
            f"meta_info_file {str(listing)!r} lists {len(unknown)} images that {gt.option} {str(gt.root)!r} lacks, "
            f"the first is {unknown[0]!r}.{_hint(unknown[0], gt.names)}"
        )
    return sorted(names)


def open_source(opt: Mapping[str, Any], key: str) -> FolderImages | LmdbImages:
    """Return the images of the folder or LMDB that an option of a data set names. Raises UserError: see the two."""
    root = opt[key]
    if opt["io_backend"]["type"] == "lmdb":
        return LmdbImages(root, key)
    if problem := database_problem(Path(root), "disk"):
        raise UserError(f"{key}: {problem}")
    return FolderImages(root, key, bool(opt.get("recursive")))


def check_shared_options(opt: Mapping[str, Any], kind: str, own: Sequence[str]) -> None:
    """Check the options that the data sets of this package share.

    Args:
        opt: the options.
        kind: the class of the data set, for messages.
        own: further options that it needs.

    Raises:
        UserError: one is missing, or a root, ``io_backend``, ``phase`` or ``scale`` has another value.
    """
    needed = [*own, "io_backend", "phase", "scale"]
    if opt.get("phase") == "train":
        needed += ["gt_size", "use_hflip", "use_rot"]
    for key in needed:
        if opt.get(key) is None:
            raise UserError(f"{key} is missing in the options of {kind} {opt.get('name', '')!r}")
    if not isinstance(opt["io_backend"], Mapping):
        raise UserError(f"io_backend is {opt['io_backend']!r}, expected a table such as {{type: disk}}")
    backend = opt["io_backend"].get("type")
    if backend not in BACKENDS:
        raise UserError(f"io_backend.type is {backend!r}, expected {' or '.join(BACKENDS)}.{_hint(backend, BACKENDS)}")
    if opt["phase"] not in ("train", "val", "test"):
        raise UserError(f"phase is {opt['phase']!r}, expected train, val or test")
    if not isinstance(opt["scale"], Integral) or opt["scale"] < 1:
        raise UserError(f"scale is {opt['scale']!r}, expected a whole number from 1")
    for key in ("dataroot_gt", "dataroot_lq", "meta_info_file", "compositions"):
        if opt.get(key) is not None and not isinstance(opt[key], str | os.PathLike):
            raise UserError(f"{key} is {opt[key]!r}, expected the name of a file or folder")


def check_crop(opt: Mapping[str, Any]) -> None:
    """Raise UserError: ``gt_size`` is no multiple of the scale."""
    size = opt["gt_size"]
    if not isinstance(size, Integral):
        raise UserError(f"gt_size: got {size!r}, expected a whole number of pixels")
    if problem := crop_problem(size, opt["scale"]):
        raise UserError(f"gt_size: {problem}")


def as_numbers(value: Any) -> list[Any]:
    """Return the numbers of a list, a tuple or an array; none if it is something else."""
    try:
        values = list(value)
    except TypeError:
        return []
    return values if all(isinstance(number, Real) for number in values) else []


def _check_options(opt: Mapping[str, Any]) -> None:
    check_shared_options(opt, "PairedRestorationDataset", ["dataroot_gt", "dataroot_lq"])
    if opt["phase"] == "train":
        check_crop(opt)
    template = opt.get("filename_tmpl") or "{}"
    if not isinstance(template, str) or template.count("{}") != 1:
        raise UserError(f"filename_tmpl is {opt['filename_tmpl']!r}, expected one {{}} for the clean image's name")
    if opt.get("color") not in (None, "y"):
        raise UserError(f"color is {opt['color']!r}, expected y or nothing")
    channels = 1 if opt.get("color") == "y" else 3
    if (opt.get("mean") is None) != (opt.get("std") is None):
        raise UserError(f"mean is {opt.get('mean')} and std is {opt.get('std')}, expected both or neither")
    for key in ("mean", "std"):
        if opt.get(key) is None:
            continue
        values = as_numbers(opt[key])
        if len(values) != channels or (key == "std" and not all(values)):
            raise UserError(f"{key} is {opt[key]!r}, expected {channels} values" + (" that are not 0" * (key == "std")))


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
