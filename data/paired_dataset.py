"""A dataset of pairs of a degraded and a clean image, from folders or LMDBs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.data.dataset_options import as_numbers, check_crop, check_shared_options, open_source
from restormixer_arch.data.images.folder import without_suffix
from restormixer_arch.data.images.opencv import enlarge
from restormixer_arch.data.pairing import pair_names, read_listing, result_names, shared_pairs
from restormixer_arch.errors import UserError
from restormixer_arch.output import user_path

compat.apply()  # basicsr can be imported from here on

from basicsr.data.transforms import augment, paired_random_crop  # noqa: E402
from basicsr.utils import bgr2ycbcr, img2tensor  # noqa: E402
from basicsr.utils.registry import DATASET_REGISTRY  # noqa: E402
from torchvision.transforms.functional import normalize  # noqa: E402


@DATASET_REGISTRY.register()
class PairedRestorationDataset(Dataset):
    """Pairs for training and validation, with the options and items of BasicSR's PairedImageDataset.

    Differences from PairedImageDataset:

    - Pairs are sorted by name, so their order is the same on every file system. ``recursive: true`` includes
      subfolders. Files that are not images are ignored. A partner may have another image extension.
    - Names are compared when the dataset is created, and sizes when a pair is read; error messages name the image.
    - Training images smaller than ``gt_size`` are mirrored at their right and lower edges to reach that size.
    - The dataset can be sent to worker processes after use, and two datasets can read the same LMDB.
    - ``meta_info_file`` also works with LMDBs. ``opt`` is never changed.

    Args:
        opt: options:
            dataroot_gt, dataroot_lq: folders or LMDBs of the clean and the degraded images.
            io_backend: ``{type: disk}`` or ``{type: lmdb}``.
            phase: ``train``, ``val`` or ``test``; set by BasicSR.
            scale: size of the clean image relative to the degraded one; set by BasicSR.
            gt_size: side of the square training crops, in pixels of the clean image, a multiple of ``scale``.
            use_hflip, use_rot: random horizontal flips, and rotations by 90 degrees, in training.
            filename_tmpl: name of the degraded image without extension, where ``{}`` stands for that of the clean one.
            meta_info_file: file that lists the clean images to use, one per line.
            recursive: whether to include subfolders.
            shared_gt: whether degraded images are named ``<label>/<name>`` and share the clean image ``<name>``.
            color: ``y`` for BT.601 luma (studio range) instead of RGB.
            mean, std: mean and standard deviation per channel, for normalization.

    Item:
        ``lq`` (C, h, w) and ``gt`` (C, scale * h, scale * w): float32 tensors, RGB, in [0, 1] before mean and std;
        ``lq_path`` and ``gt_path``: file paths, or keys of the LMDBs. If two images have the same name, also
        ``result_name``: file name of the result, see :func:`result_names`.
        With ``shared_gt``, the name in ``lq_path`` ends in the label, as in ``low/00001_low``, since it names results.

    Raises:
        UserError: if an option is missing or invalid, pairs do not match, or an image is unreadable or has a wrong
            size.
    """

    def __init__(self, opt: Mapping[str, Any]) -> None:
        super().__init__()
        self.opt = dict(opt)
        _check_options(self.opt)
        self.scale, self.training = self.opt["scale"], self.opt["phase"] == "train"
        self._gt, self._lq = (open_source(self.opt, key) for key in ("dataroot_gt", "dataroot_lq"))
        template, listing = self.opt.get("filename_tmpl") or "{}", self.opt.get("meta_info_file")
        names = read_listing(self._gt, user_path(listing)) if listing else self._gt.names
        if self.opt.get("shared_gt"):
            self.pairs = shared_pairs(self._gt, self._lq, names, allow_unpaired=bool(listing))
        else:
            self.pairs = pair_names(self._gt, self._lq, names, template, allow_unpaired=bool(listing))
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
        """Return a degraded image's path; its last part names results, so it must differ between labels."""
        place = PurePath(self._lq.locate(name))
        if not self.opt.get("shared_gt"):
            return str(place)
        suffix = place.name[len(without_suffix(place.name)) :]
        return str(place.with_name(f"{without_suffix(place.name)}_{place.parent.name}{suffix}"))

    def _matching(self, gt: np.ndarray, lq: np.ndarray, gt_name: str, lq_name: str) -> np.ndarray:
        """Return the clean image at ``scale`` times the size of the degraded one. Raises UserError for other sizes.

        Clean images of super-resolution test sets are up to ``scale - 1`` pixels larger; as in BasicSR, these pixels
        are cropped in validation.
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
        """Apply the same random crop, flip and rotation to both images."""
        size = self.opt["gt_size"]
        gt, lq = enlarge(gt, size), enlarge(lq, size // self.scale)
        gt, lq = paired_random_crop(gt, lq, size, self.scale)
        return tuple(augment([gt, lq], self.opt["use_hflip"], self.opt["use_rot"]))


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
