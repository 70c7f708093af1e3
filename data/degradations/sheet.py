"""Create a sheet of all degradations of one photograph (``basicsr degrade sheet``), and measure their speed."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from restormixer_arch.data.degradations.compose import DEGRADATIONS, add_composition, draw_composition
from restormixer_arch.data.degradations.labels import CDD11, CLEAN, parse_label
from restormixer_arch.data.images.folder import decode_image
from restormixer_arch.data.images.opencv import encode
from restormixer_arch.errors import UserError
from restormixer_arch.output import atomic_paths, print_result

LABELS = (CLEAN, *CDD11, "blur", "defocus", "noise", "poisson", "camera", "jpeg", "down", "blur_noise_jpeg", "blind")
COLUMNS = 6
CELL = (240, 320)  # height and width of an image in pixels
CAPTION = 26  # height of the caption below it in pixels
STRENGTH = 0.7  # strength of single degradations; compositions are weaker to keep the scene recognizable
SCALE = 4  # scale of "down", whose result is enlarged by repeating pixels
QUALITY = 85  # JPEG quality of a sheet


def make_sheet(photo: np.ndarray, labels: Sequence[str] = LABELS, seed: int = 0) -> np.ndarray:
    """Return a sheet with a captioned image for each label, uint8 RGB (H, W, 3).

    Args:
        photo: photograph, float32 RGB (H, W, 3) in [0, 1]; its center is shown.
        labels: labels to show.
        seed: random seed; each label draws its own parameters from it.
    """
    clean = fill(photo, CELL)
    rows = []
    for start in range(0, len(labels), COLUMNS):
        cells = [_cell(clean, label, seed) for label in labels[start : start + COLUMNS]]
        cells += [np.full_like(cells[0], 255)] * (COLUMNS - len(cells) if start else 0)
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)


def fill(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the center of a photograph resized to cover ``size`` (height, width), by area averaging or bilinearly."""
    height, width = size
    factor = max(height / photo.shape[0], width / photo.shape[1])
    sides = max(round(photo.shape[1] * factor), width), max(round(photo.shape[0] * factor), height)
    resized = cv2.resize(photo, sides, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    top, left = (resized.shape[0] - height) // 2, (resized.shape[1] - width) // 2
    return np.clip(resized[top : top + height, left : left + width], 0, 1)


def _cell(clean: np.ndarray, label: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, zlib.crc32(label.encode())])
    strength = STRENGTH if "_" not in label else STRENGTH * 0.75
    image = add_composition(clean, draw_composition(rng, label, strength, SCALE if label == "down" else 1))
    image = cv2.resize(image, CELL[::-1], interpolation=cv2.INTER_NEAREST)
    caption = np.full((CAPTION, CELL[1], 3), 255, np.uint8)
    cv2.putText(caption, label, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate((np.round(image * 255).astype(np.uint8), caption))


def write_sheet(photo: Path, out: Path, seed: int = 0, *, overwrite: bool = False) -> None:
    """Write the sheet of a photograph.

    Args:
        photo: file of the photograph.
        out: output file, PNG or JPEG.
        seed: random seed.
        overwrite: whether to replace an existing file.

    Raises:
        UserError: if the photograph cannot be read, or ``out`` exists, is the photograph, has another extension, or
            cannot be written.
    """
    try:
        content = photo.read_bytes()
    except OSError as error:
        raise UserError(f"{photo}: cannot be read ({error.strerror})") from error
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"{out}: must end in .png or .jpg")
    if out.exists() and out.samefile(photo):
        raise UserError(f"--out: {str(out)!r} is the photograph; choose another file")
    if out.exists() and not overwrite:
        raise UserError(f"--out: {str(out)!r} already exists; choose another file, or use --overwrite")
    sheet = make_sheet(np.ascontiguousarray(decode_image(content, str(photo))[..., ::-1]), seed=seed)
    flags = () if out.suffix.lower() == ".png" else (cv2.IMWRITE_JPEG_QUALITY, QUALITY)
    try:
        content = encode(out.suffix.lower(), sheet[..., ::-1], flags)
        with atomic_paths([out]) as [part]:
            part.write_bytes(content)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error


def speeds(size: int, seconds: float) -> dict[str, float]:
    """Measure the images per second of each label on one thread, including the drawing of parameters.

    The labels are all single degradations and the two triples of CDD-11.

    Args:
        size: side of the square RGB images in pixels; if it is odd, labels that downsample use one pixel less.
        seconds: duration of each measurement in seconds, greater than 0.
    """
    image = np.random.default_rng(0).uniform(0, 1, (size, size, 3)).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), 3)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        labels = (*DEGRADATIONS, "low_haze_rain", "low_haze_snow")
        return {label: _speed(image, label, seconds) for label in labels}
    finally:
        cv2.setNumThreads(threads)


def _speed(image: np.ndarray, label: str, seconds: float) -> float:
    rng = np.random.default_rng(0)
    if {"down", "blind"} & set(parse_label(label)):
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
    add_composition(image, draw_composition(rng, label, scale=2))  # the first call builds tables
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        add_composition(image, draw_composition(rng, label, scale=2))
        done += 1
    return done / (time.perf_counter() - start)


def report_speeds(size: int, seconds: float) -> None:
    """Print the speed of each degradation. See :func:`speeds` for the arguments."""
    print_result(f"images/s of {size}x{size} RGB on one thread")
    for label, speed in speeds(size, seconds).items():
        print_result(f"  {label:<14} {speed:7.0f}")
