"""Pairs of images in folders and LMDBs, and the options of datasets that read them."""

import cv2
import numpy as np
import pytest
import torch

from restormixer_arch.basicsr_adapter import compat

compat.apply()

from restormixer_arch.data.lmdb_io import write_lmdb  # noqa: E402
from restormixer_arch.data.paired_dataset import PairedRestorationDataset  # noqa: E402
from restormixer_arch.errors import UserError  # noqa: E402


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blown_up(image, scale):
    return image.repeat(scale, 0).repeat(scale, 1)


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def make_folders(root, names=("a.png", "b.png"), size=(12, 10), scale=1, lq_name=lambda name: name):
    """Write pairs whose clean image is the degraded one with pixels repeated ``scale`` times, and return options."""
    for index, name in enumerate(names):
        lq = noise(*size, seed=index)
        write(root / "lq" / lq_name(name), lq)
        write(root / "gt" / name, blown_up(lq, scale))
    return options(root / "gt", root / "lq", scale=scale)


def make_lmdbs(root, names=("a", "b"), size=(12, 10)):
    images = [(name, noise(*size, seed=index)) for index, name in enumerate(names)]
    write_lmdb(root / "gt.lmdb", images)
    write_lmdb(root / "lq.lmdb", [(name, 255 - image) for name, image in images])
    return options(root / "gt.lmdb", root / "lq.lmdb", io_backend={"type": "lmdb"})


def options(gt, lq, **more):
    shared = {"dataroot_gt": str(gt), "dataroot_lq": str(lq), "io_backend": {"type": "disk"}, "phase": "val"}
    return {"name": "pairs", "type": "PairedRestorationDataset", "scale": 1, **shared, **more}


def for_training(opt, gt_size, use_hflip=True, use_rot=True):
    return {**opt, "phase": "train", "gt_size": gt_size, "use_hflip": use_hflip, "use_rot": use_rot}


def refusal(opt):
    """Return the one-line message of the UserError that the options raise."""
    with pytest.raises(UserError) as caught:
        PairedRestorationDataset(opt)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same_items(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if torch.is_tensor(value) else value == second[key], key
