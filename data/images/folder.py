"""Read the images of a folder as a dataset does; errors name the image.

Decoded images are float32 BGR (H, W, 3) in [0, 1], as BasicSR's image functions expect them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container
from pathlib import Path

import numpy as np

from restormixer_arch.data.images import IMAGE_SUFFIXES
from restormixer_arch.data.images.opencv import decode_color
from restormixer_arch.data.images.skipped import count_unreadable, describe_skipped, is_file
from restormixer_arch.errors import UserError, not_found
from restormixer_arch.output import note, user_path

LINKED = "linked subfolders, which 'recursive: true' does not read"


def existing_folder(root: str | Path, option: str) -> Path:
    """Return the folder that an option names. Raises UserError, with similar names, if it does not exist."""
    folder = user_path(root)
    if not str(root):  # would mean the working directory
        raise UserError(f"{option}: expected the name of a folder, got an empty string")
    if not folder.is_dir():
        reason = "is a file, a folder was expected" if folder.is_file() else not_found(folder)
        raise UserError(f"{option}: {str(root)!r} {reason}")
    return folder


def without_suffix(name: str) -> str:
    """Return a name without its image extension; other dots are part of the name."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in IMAGE_SUFFIXES else name


def decode_image(content: bytes, source: str) -> np.ndarray:
    """Decode to float32 BGR (H, W, 3) in [0, 1]; gray is expanded to three channels, alpha dropped, 16 bits become 8.

    Args:
        content: encoded image file.
        source: name of the image in error messages.

    Raises:
        UserError: if OpenCV cannot decode it, or it has too many pixels.
    """
    return decode_color(content, source).astype(np.float32) / 255


def image_names(root: Path, recursive: bool, skipped: Container[Path] = ()) -> tuple[list[str], Counter[str]]:
    """Return the sorted names of the images in a folder, and the numbers of what else seems to be one or to hold some.

    Args:
        root: path of the folder.
        recursive: whether to include subfolders, except hidden and linked ones; names then start with the subfolder.
        skipped: resolved paths of subfolders to skip.

    Raises:
        OSError: if the folder cannot be read.
    """
    names, left_out = [], Counter[str]()

    def count(error: OSError) -> None:
        if error.filename == str(root):
            raise error
        count_unreadable(error, left_out)

    for place, folders, files in os.walk(root, onerror=count):
        below = Path(place)
        inner = [name for name in folders if not name.startswith(".")] if recursive else []
        folders[:] = [name for name in inner if not skipped or (below / name).resolve() not in skipped]
        left_out[LINKED] += sum((below / name).is_symlink() for name in folders)
        names += [(below / name).relative_to(root).as_posix() for name in files if _is_image(below / name, left_out)]
    return sorted(names), left_out


def _is_image(path: Path, left_out: Counter[str]) -> bool:
    """Return whether a path is an image by its name; count broken links and the like in ``left_out``."""
    named = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    return named and is_file(path, IMAGE_SUFFIXES, left_out)


class FolderImages:
    """The images of a folder, recognized by their extension; other files are ignored.

    Args:
        root: path of the folder.
        option: name of the option that specifies it, for messages.
        recursive: whether to include subfolders; names then start with the subfolder.

    A note counts linked subfolders, subfolders that cannot be read, broken links and pipes.

    Raises:
        UserError: if the folder does not exist, cannot be read or contains no images.
    """

    def __init__(self, root: str | Path, option: str, recursive: bool = False) -> None:
        self.root, self.option = existing_folder(root, option), option
        try:
            self.names, skipped = image_names(self.root, recursive)
        except OSError as error:
            raise UserError(f"{option}: {str(root)!r} cannot be read ({error.strerror})") from error
        left_out = describe_skipped(skipped)
        if not self.names:
            deeper = 0 if recursive else len(image_names(self.root, True)[0])
            hint = f"; {deeper} in its subfolders, which 'recursive: true' reads" if deeper else ""
            hint += f"; it has {left_out}" if left_out else ""
            raise UserError(f"{option}: {str(root)!r} contains no images ({' '.join(IMAGE_SUFFIXES)}){hint}")
        if left_out:
            note(f"{option}: {str(root)!r}: left out {left_out}")

    def locate(self, name: str) -> str:
        """Return the path of an image, from which BasicSR derives the names of results."""
        return str(self.root / name)

    def describe(self, name: str) -> str:
        return self.locate(name)

    def read(self, name: str) -> np.ndarray:
        """Read an image. Raises UserError if it cannot be read or decoded."""
        try:
            content = (self.root / name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.describe(name)}: cannot be read ({error.strerror})") from error
        return decode_image(content, self.describe(name))
