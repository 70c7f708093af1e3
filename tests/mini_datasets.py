"""Miniature copies of the public datasets, in the layouts they are distributed in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from restormixer_arch import cli
from restormixer_arch.data.degradations.labels import CDD11
from restormixer_arch.data.lmdb_io import LmdbImages


def picture(seed: int, size: tuple[int, int] = (32, 40)) -> np.ndarray:
    """Return a smooth image with some noise, BGR uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 200, (size[0] // 8 + 2, size[1] // 8 + 2, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).astype(int)
    return np.clip(smooth + rng.integers(-4, 5, smooth.shape), 0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def pairs(root: Path, gt: str, lq: str, names: Iterable[tuple[str, str]], size=(32, 40)) -> None:
    """Write (clean name, degraded name) pairs; the degraded image is darker."""
    for number, (clean, degraded) in enumerate(names):
        image = picture(number, size)
        save(root / gt / clean, image)
        save(root / lq / degraded, image // 2)


def derain(root: Path) -> None:
    for part, count in (("train/Rain13K", 6), ("test/Rain100L", 2), ("test/Test1200", 2), ("test/Test100", 1)):
        names = [(f"{n}.png", f"{n}.jpg" if n % 2 else f"{n}.png") for n in range(count)]
        pairs(root, f"{part}/target", f"{part}/input", names)
    pairs(root, "Rain100H/norain", "Rain100H/rain", [(f"norain-{n:03d}.png", f"rain-{n:03d}.png") for n in (1, 2)])
    many = [("901.jpg", f"901_{n}.jpg") for n in range(1, 4)] + [("902.jpg", f"902_{n}.jpg") for n in range(1, 4)]
    top = "rainy_image_dataset/testing"
    for clean, degraded in many:
        image = picture(int(clean[:3]))
        save(root / top / "ground_truth" / clean, image)
        save(root / top / "rainy_image" / degraded, image // 2)


def desnow(root: Path) -> None:
    names = [(f"beautiful_smile_{n:05d}.jpg",) * 2 for n in range(5)]
    for folder, count in (("Snow100K-training/all", 5), *((f"Snow100K-testset/Snow100K-{size}", 1) for size in "SML")):
        pairs(root, f"{folder}/gt", f"{folder}/synthetic", names[:count])
        pairs(root, f"{folder}/gt", f"{folder}/mask", names[:count])
    tiffs = [(f"{n}.tif",) * 2 for n in range(1, 5)]
    pairs(root, "CSD/Train/Gt", "CSD/Train/Snow", tiffs)
    pairs(root, "CSD/Test/Gt", "CSD/Test/Snow", tiffs[:2])
    pairs(root, "SRRS/train2500/Gt", "SRRS/train2500/Snow", [(f"{n}.jpg",) * 2 for n in range(3)])
    pairs(root, "SRRS/test2000/Gt", "SRRS/test2000/Snow", [("7.jpg",) * 2])


def deblur(root: Path) -> None:
    for part, sequences in (("train", ("GOPR0372_07_00", "GOPR0372_07_01")), ("test", ("GOPR0384_11_00",))):
        for sequence in sequences:
            folder = f"GOPRO_Large/{part}/{sequence}"
            pairs(root, f"{folder}/sharp", f"{folder}/blur", [(f"{n:06d}.png",) * 2 for n in (47, 48)], (48, 80))
            pairs(root, f"{folder}/sharp", f"{folder}/blur_gamma", [("000047.png",) * 2], (48, 80))
    top = root / "HIDE_dataset"
    for kind, number in (("test/test-close-ups", 1), ("test/test-long-shot", 2), ("train", 3)):
        pairs(top, "GT", kind, [(f"{number}fromGOPR0950.png",) * 2])


def sr(root: Path) -> None:
    for number in (1, 2):
        save(root / f"DIV2K/DIV2K_train_HR/{number:04d}.png", picture(number, (75, 97)))
        save(root / f"Flickr2K/Flickr2K_HR/{number:06d}.png", picture(number + 10, (60, 72)))
    save(root / "DIV2K/DIV2K_valid_HR/0801.png", picture(801, (61, 73)))
    save(root / "benchmark/Set5/HR/baby.png", picture(5, (51, 64)))
    save(root / "benchmark/B100/HR/101085.png", picture(100, (48, 60)))
    save(root / "Set14/baboon.png", picture(14, (50, 50)))
    save(root / "Urban100/img_001.png", picture(1, (50, 61)))
    save(root / "Manga109/HR/AisazuNihaIrarenai.png", picture(109, (60, 49)))


def mixed(root: Path) -> None:
    for part, count in (("train", 3), ("test", 1)):
        for number in range(1, count + 1):
            clean = picture(number, (36, 48))
            save(root / f"CDD-11_{part}/clear/{number:05d}.png", clean)
            for strength, label in enumerate(CDD11, start=2):
                save(root / f"CDD-11_{part}/{label}/{number:05d}.png", clean // strength)


MINIATURES = {"derain": derain, "desnow": desnow, "deblur": deblur, "sr": sr, "mixed": mixed}


def run_prepare(*arguments: str) -> int:
    return cli.main(["prepare", *arguments])


def prepare_errors(capsys) -> list[str]:
    """Return the errors that the command printed, without their prefix."""
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("basicsr: error: ") for line in lines if "error: " in line]


def stored_images(path: Path) -> dict[str, np.ndarray]:
    """Return name -> BGR uint8 image (H, W, 3) of an LMDB."""
    reader = LmdbImages(path, "test")
    return {name: (reader.read(name) * 255).round().astype(np.uint8) for name in reader.names}
