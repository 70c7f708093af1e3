"""Write a contact sheet, one image of inputs, results and their differences, for ``basicsr restore --sheet``.

It is created from the files at the end of the run, so it also shows results that existed before.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from restormixer_arch.data.images.picture import Picture, read_picture
from restormixer_arch.errors import UserError
from restormixer_arch.inference.files import read_result
from restormixer_arch.inference.jobs import Job, Jobs, is_within, matches_pattern, path_key, split_pattern
from restormixer_arch.inference.shards import Shard
from restormixer_arch.output import atomic_paths, note, printable

MAX_IMAGES = 24  # maximum number of images on a sheet
NAMED = 8  # maximum number of images that the line at the bottom names
WIDTH, HEIGHT = 256, 192  # pixels of a thumbnail
GAP, LINE, FONT_SIZE = 8, 24, 14
GAIN = 4  # factor that amplifies the difference
COLUMNS = ("input", "restored", f"difference x{GAIN}")
PAPER, INK, SQUARES = (255, 255, 255), (0, 0, 0), (170, 210)  # the squares show where an image is transparent
SQUARE = 8  # pixels
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
QUALITY = 90  # JPEG quality


def check_sheet(path: Path, jobs: Jobs, inputs: Sequence[str], shard: Shard, *, overwrite: bool) -> Path:
    """Return the path of the sheet, such as ``sheet.1-of-4.png`` with several shards. Call it before the work begins.

    Raises:
        UserError: if a sheet cannot or should not be written there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--sheet: {path} must end in {', '.join(SUFFIXES)}")
    if shard.count > 1:
        path = path.with_stem(f"{path.stem}.{shard.index}-of-{shard.count}")
    place, out = path.resolve(), jobs.out.resolve()
    if not place.parent.is_dir() and path_key(place.parent) != path_key(out):
        raise UserError(f"--sheet: there is no folder {str(path.parent)!r}")
    key, name = path_key(place), path_key(path.name)
    files = (file for job in jobs for file in (*job.outputs, job.source) if path_key(file.name) == name)
    if any(path_key(file.resolve()) == key for file in files):
        raise UserError(f"--sheet: {path} is a file of this run; choose another name")
    for text in inputs:
        folder, pattern = split_pattern(text)
        if not is_within(place, folder) or (is_within(place, out) and is_within(out, folder)):
            continue
        if not pattern:
            raise UserError(
                f"--sheet: {path} is in an input folder, so the next run would restore it; put it into {jobs.out}"
            )
        if matches_pattern(place.parts[len(folder.parts) :], pattern):
            raise UserError(
                f"--sheet: {path} matches {text!r}, so the next run would restore it; put it into {jobs.out}"
            )
    _check_new(path, overwrite)
    return path


def _check_new(path: Path, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"--sheet: {path} already exists; choose another name, or use --overwrite")


def write_sheet(path: Path, jobs: Jobs, *, overwrite: bool, max_pixels: int | None = None) -> None:
    """Write the sheet of a run, or print a note if there is nothing to show. The sheet names files that it omits.

    Args:
        path: output file, PNG or JPEG.
        jobs: jobs of the run; at most :data:`MAX_IMAGES` images are shown, evenly from first to last, and no videos.
        overwrite: whether to replace an existing file.
        max_pixels: maximum number of pixels of an input image; None for the usual limit.

    Raises:
        UserError: if the file exists and must not be replaced, or cannot be written.
    """
    pictures = [place for place, job in enumerate(jobs) if not job.is_video]
    chosen = {pictures[round(step)] for step in np.linspace(0, len(pictures) - 1, min(MAX_IMAGES, len(pictures)))}
    rows, absent = [], []
    for place in sorted(chosen):
        try:
            rows.append(_row(jobs[place], jobs.out, max_pixels))
        except UserError:  # it failed, and the run has reported it
            absent.append(place)
    if not rows:
        note(f"--sheet: no picture to show, {path} is not written", any_process=True)  # each shard has its own sheet
        return
    missing = [place for place in range(len(jobs)) if place not in chosen or place in absent]
    sheet = _join(rows, _names_of(missing, jobs))
    _check_new(path, overwrite)
    try:
        with atomic_paths([path]) as [part]:
            sheet.save(part, SUFFIXES[path.suffix.lower()], quality=QUALITY)
    except OSError as error:
        raise UserError(f"--sheet: {path} cannot be written ({error.strerror or error})") from error


def _names_of(places: Sequence[int], jobs: Jobs) -> str:
    if not places:
        return ""
    names = [_name(jobs[place], jobs.out) for place in places[:NAMED]]
    return f"{len(places)} of {len(jobs)} not shown: {', '.join(names)}{', ...' if len(places) > NAMED else ''}"


def _name(job: Job, out: Path) -> str:
    return printable(job.target.relative_to(out).as_posix(), None).replace("\n", "\\n")


def _row(job: Job, out: Path, max_pixels: int | None) -> Image.Image:
    """Return input, result and difference side by side, with the name below."""
    before, after = read_picture(job.source, max_pixels), read_result(job.target, max_pixels)
    old, new = _to_rgb8(before), _to_rgb8(after)
    if old.shape != new.shape:
        old = cv2.resize(old, new.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    difference = cv2.convertScaleAbs(_small(cv2.absdiff(old, new)), alpha=GAIN)
    row = Image.new("RGB", (3 * WIDTH + 2 * GAP, HEIGHT + LINE), PAPER)
    for column, image in enumerate((_small(old), _small(new), difference)):
        left = column * (WIDTH + GAP)
        row.paste(Image.fromarray(image), (left + (WIDTH - image.shape[1]) // 2, (HEIGHT - image.shape[0]) // 2))
    height, width = before.pixels.shape[:2]
    size = f"  {width} x {height}" + ("" if before.pixels.shape[:2] == after.pixels.shape[:2] else " enlarged")
    _write(row, (0, HEIGHT + 3), _name(job, out), row.width, size)
    return row


def _to_rgb8(picture: Picture) -> np.ndarray:
    """Return 8-bit RGB (H, W, 3), blended over a checkerboard where the image is transparent."""
    planes = picture.planes if picture.planes.dtype == np.uint8 else (picture.planes // 257).astype(np.uint8)
    channels = picture.pixels.shape[2]
    pixels = np.repeat(planes[..., :channels], 3 // channels, axis=2)
    if picture.alpha is None:
        return np.ascontiguousarray(pixels)
    rows, columns = np.indices(pixels.shape[:2], sparse=True)
    side = max(1, round(SQUARE * max(pixels.shape[0] / HEIGHT, pixels.shape[1] / WIDTH)))
    squares = np.where((rows // side + columns // side) % 2, *SQUARES)[..., None]
    share = planes[..., channels:].astype(np.float32) / 255
    return np.rint(squares + (pixels - squares) * share).astype(np.uint8)


def _small(image: np.ndarray) -> np.ndarray:
    """Resize an image to a thumbnail; small images are enlarged by an integer factor by repeating pixels."""
    height, width = image.shape[:2]
    factor = min(WIDTH / width, HEIGHT / height)
    if factor >= 1:
        return np.repeat(np.repeat(image, int(factor), axis=0), int(factor), axis=1)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _join(rows: Sequence[Image.Image], last_line: str) -> Image.Image:
    """Stack rows under a line of headings and above ``last_line``, in two columns if there are more than four."""
    columns = 2 if len(rows) > 4 else 1
    lines = -(-len(rows) // columns)
    width, height = rows[0].size
    step = width + 3 * GAP
    sheet = Image.new(
        "RGB", (columns * step - GAP, GAP + LINE + lines * (height + GAP) + (LINE if last_line else 0)), PAPER
    )
    for column in range(columns):
        for place, heading in enumerate(COLUMNS):
            _write(sheet, (GAP + column * step + place * (WIDTH + GAP), GAP), heading, WIDTH)
    for place, row in enumerate(rows):
        line, column = divmod(place, columns)
        sheet.paste(row, (GAP + column * step, GAP + LINE + line * (height + GAP)))
    _write(sheet, (GAP, sheet.height - LINE), last_line, sheet.width - 2 * GAP)
    return sheet


def _write(image: Image.Image, place: tuple[int, int], text: str, width: int, ending: str = "") -> None:
    """Draw a text and its ending in one line; the middle of the text is omitted if it is too long."""
    draw, font = ImageDraw.Draw(image), _font()
    shown, kept = text, len(text)
    while kept > 2 and draw.textlength(shown + ending, font) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    draw.text(place, shown + ending, INK, font)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return DejaVu Sans, which is part of matplotlib and supports most alphabets, or else Pillow's default font."""
    found = importlib.util.find_spec("matplotlib")
    file = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found and found.origin else None
    return ImageFont.truetype(str(file), FONT_SIZE) if file and file.is_file() else ImageFont.load_default(FONT_SIZE)
