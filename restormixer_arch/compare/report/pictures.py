"""Choose the images of ``report.html``, compute their error maps, and encode them for the page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image

from restormixer_arch.compare.columns import show_metric
from restormixer_arch.compare.results import Comparison, DataSet, Picture
from restormixer_arch.compare.tables import INPUT
from restormixer_arch.errors import UserError

TRUTH = "truth"
EACH = 6  # number of worst images of a dataset, and of best ones
SIDE = 800  # longest side of an image in the page, in pixels
CHARACTERS = 24_000_000  # limit for all images of a page, unless one alone exceeds it
ERROR_COLORS, LEVELS = "inferno", 64
ZOOM = 3.0
PERCENTILE = 99.5  # percentile of the errors from which on the color is the brightest


@dataclass(frozen=True)
class Tile:
    """An image in the page: the input, a competitor's output, or the ground truth.

    Attributes:
        name: name of the competitor, or ``input`` or ``truth``.
        source, error: data URIs of the image and of its error map; no map without ground truth and for the GT itself.
        values: (metric, value) pairs as text.
    """

    name: str
    source: str
    error: str | None
    values: list[tuple[str, str]]


@dataclass(frozen=True)
class ShownImage:
    """An image of a dataset with all its tiles.

    Attributes:
        name: name of the image.
        lead: lead of the first competitor, as text.
        size: (width, height) of the tiles in pixels.
        scale: scale of the tiles relative to the original, at most 1.
        brightest: error that has the brightest color, for values in [0, 1]; None without ground truth.
        corner: (left, top) of the region to show first, as fractions of width and height.
        tiles: tiles of the input, the competitors and the ground truth.
    """

    name: str
    lead: str
    size: tuple[int, int]
    scale: float
    brightest: float | None
    corner: tuple[float, float]
    tiles: list[Tile]

    @property
    def characters(self) -> int:
        return sum(len(tile.source) + len(tile.error or "") for tile in self.tiles)


@dataclass(frozen=True)
class Gallery:
    """The images of a dataset that are shown: the worst ones, worst first, and the best ones, best first."""

    dataset: DataSet
    worst: list[ShownImage]
    best: list[ShownImage]


def galleries(comparison: Comparison, folder: Path) -> list[Gallery]:
    """Choose and read images, alternating between datasets and between worst and best, until the page is full.

    Raises:
        UserError: if an image cannot be read.
    """
    made = [Gallery(dataset, [], []) for dataset in comparison.datasets]
    queue = zip_longest(*(_alternate(gallery, *extremes(comparison, gallery.dataset)) for gallery in made))
    characters = 0
    for place, picture in filter(None, chain.from_iterable(queue)):
        shown = read(comparison, picture, folder)
        characters += shown.characters
        if CHARACTERS < characters != shown.characters:  # the first one is always shown
            break
        place.append(shown)
    return made


def _alternate(
    gallery: Gallery, worst: list[Picture], best: list[Picture]
) -> Iterator[tuple[list[ShownImage], Picture]]:
    """Yield each image after the list that it is added to, worst and best alternately."""
    for bad, good in zip_longest(worst, best):
        yield gallery.worst, bad
        if good is not None:
            yield gallery.best, good


def extremes(comparison: Comparison, dataset: DataSet) -> tuple[list[Picture], list[Picture]]:
    """Return the images for which the first competitor is furthest behind, and those for which it is furthest ahead.

    Its lead is by the first metric over the best of the others, or over the input if there are no others. With few
    images, each is in exactly one of the two lists.
    """

    first, metric = comparison.competitors[0].name, next(iter(comparison.metrics))

    def key(picture: Picture) -> float:
        lead = lead_of(comparison, picture)[0]
        if not math.isnan(lead):
            return lead
        return -math.inf if math.isnan(picture.values[metric][first]) else math.inf  # it failed, or the others did

    ordered = sorted(dataset.pictures, key=key)
    worst = min(EACH, (len(ordered) + 1) // 2)
    best = min(EACH, len(ordered) // 2)
    return ordered[:worst], ordered[::-1][:best]


def lead_of(comparison: Comparison, picture: Picture) -> tuple[float, str, float]:
    """Return the first competitor's lead over the best of the others, and that competitor's name and value."""
    name, metric = next(iter(comparison.metrics.items()))
    sign = 1 if metric.better == "higher" else -1
    first, *others = comparison.competitors
    rivals = {other.name: picture.values[name][other.name] for other in others} or {INPUT: picture.input_values[name]}
    known = {rival: value for rival, value in rivals.items() if not math.isnan(value)} or rivals
    rival = max(known, key=lambda rival: sign * known[rival])
    own, value = picture.values[name][first.name], known[rival]
    return (0.0 if own == value else sign * (own - value)), rival, value  # 0 also if both are infinite


def read(comparison: Comparison, picture: Picture, folder: Path) -> ShownImage:
    """Read the images of all competitors and compute their error maps.

    Raises:
        UserError: if an image cannot be read, or differs in size from the others.
    """
    names = [competitor.name for competitor in comparison.competitors]
    truth = None if picture.truth is None else _read(folder / picture.truth)
    images = []
    for place in (picture.input, *(picture.restored[name] for name in names)):
        images.append(_read(folder / place))
        expected = images[0] if truth is None else truth
        if images[-1].shape != expected.shape:
            raise UserError(
                f"{folder / place}: has {_pixels(images[-1])}, "
                f"expected {_pixels(expected)} as the other pictures of {picture.name!r}"
            )
    size, scale = _size(images[0])
    errors = [None] * len(images) if truth is None else [_error(image, truth) for image in images]
    brightest = None if truth is None else max(1 / 255, float(np.percentile(errors[1:], PERCENTILE)))
    maps = [None if error is None else _encode(_color(_resize(error, size), brightest)) for error in errors]
    rows = [list(_values(comparison, picture, name)) for name in (None, *names)]
    sources = [_encode(_resize(image, size)) for image in images]
    tiles = [Tile(*parts) for parts in zip((INPUT, *names), sources, maps, rows, strict=True)]
    if truth is not None:
        tiles.append(Tile(TRUTH, _encode(_resize(truth, size)), None, []))
    corner = _find_difference(images[1:] if len(names) > 1 else images)
    return ShownImage(picture.name, _format_lead(comparison, picture), size, scale, brightest, corner, tiles)


def error_colors(count: int = 9) -> list[str]:
    """Return the colors of the error maps from no error to the brightest one, as CSS."""
    return ["#" + color[:3].tobytes().hex() for color in colormaps[ERROR_COLORS](np.linspace(0, 1, count), bytes=True)]


def _read(path: Path) -> np.ndarray:
    """Read an image as uint8 RGB (H, W, 3)."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UserError(f"{path}: this picture of the comparison cannot be read: {error}") from error


def _error(image: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the mean of |image - truth| over the channels, (H, W), for values in [0, 1]."""
    return np.abs(image.astype(np.float32) - truth.astype(np.float32)).mean(axis=2) / 255


def _color(error: np.ndarray, brightest: float) -> np.ndarray:
    """Color an error map as uint8 RGB (H, W, 3), with few colors, which compress well."""
    levels = np.clip(error / brightest * (LEVELS - 1), 0, LEVELS - 1).round() / (LEVELS - 1)
    return colormaps[ERROR_COLORS](levels, bytes=True)[..., :3]


def _find_difference(images: list[np.ndarray]) -> tuple[float, float]:
    """Return (left, top), as fractions, of the region of the zoom box's size in which the images differ most."""
    spread = np.ptp([image.sum(axis=2, dtype=np.int32) for image in images], axis=0).astype(np.int64)  # (H, W)
    height, width = (max(1, round(side / ZOOM)) for side in spread.shape)
    total = np.pad(spread.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    boxes = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(boxes.argmax(), boxes.shape)
    return float(left / spread.shape[1]), float(top / spread.shape[0])


def _size(image: np.ndarray) -> tuple[tuple[int, int], float]:
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(width, height))
    return (max(1, round(width * scale)), max(1, round(height * scale))), scale


def _resize(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an array (H, W, 3) or (H, W) to (width, height) by averaging pixels."""
    picture = Image.fromarray(array)
    return array if picture.size == size else np.asarray(picture.resize(size, Image.Resampling.BOX))


def _encode(image: np.ndarray) -> str:
    """Encode an image as a data URI of lossless WebP."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "WEBP", lossless=True, method=2)  # higher ones save 2% in four times the time
    return "data:image/webp;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _values(comparison: Comparison, picture: Picture, name: str | None) -> Iterator[tuple[str, str]]:
    """Yield each metric and its value as text, for a competitor, or for the input if ``name`` is None."""
    for metric, measure in comparison.metrics.items():
        value = picture.input_values[metric] if name is None else picture.values[metric][name]
        yield metric, show_metric(measure, value)


def _format_lead(comparison: Comparison, picture: Picture) -> str:
    name, metric = next(iter(comparison.metrics.items()))
    first, (lead, rival, value) = comparison.competitors[0].name, lead_of(comparison, picture)
    values = f"{name} {show_metric(metric, picture.values[name][first])} against {show_metric(metric, value)}"
    relation = (
        "ahead of" if lead > 0 else "behind" if lead < 0 else "level with" if lead == 0 else "not comparable with"
    )
    return f"{first} {relation} {rival}: {values}"


def _pixels(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]} pixels"
