"""Read the images of a folder as a dataset does; errors name the image.

Decoded images are float32 BGR (H, W, 3) in [0, 1], as BasicSR's image functions expect them.
"""

from __future__ import annotations

import os
from collections.abc import Container
from pathlib import Path

import numpy as np

from restormixer_arch.data.images import IMAGE_SUFFIXES
from restormixer_arch.data.images.opencv import decode_color
from restormixer_arch.errors import UserError, not_found
from restormixer_arch.output import note, user_path


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


def image_names(root: Path, recursive: bool, skipped: Container[Path] = ()) -> tuple[list[str], int]:
    """Return the sorted names of the images in a folder, and the number of linked subfolders, which are not read.

    Args:
        root: path of the folder.
        recursive: whether to include subfolders, except hidden ones; names then start with the subfolder.
        skipped: resolved paths of subfolders to skip.
    """

    def stop(error: OSError) -> None:
        if error.filename == str(root):
            raise error

    names, linked = [], 0
    for place, folders, files in os.walk(root, onerror=stop):
        below = Path(place)
        linked += sum((below / name).is_symlink() for name in folders)
        inner = [name for name in folders if not name.startswith(".")] if recursive else ()
        folders[:] = [name for name in inner if not skipped or (below / name).resolve() not in skipped]
        names += [(below / name).relative_to(root).as_posix() for name in files if _is_image(below / name)]
    return sorted(names), linked


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


class FolderImages:
    """The images of a folder, recognized by their extension; other files are ignored.

    Args:
        root: path of the folder.
        option: name of the option that specifies it, for messages.
        recursive: whether to include subfolders; names then start with the subfolder. Linked ones are skipped with
            a note.

    Raises:
        UserError: if the folder does not exist or contains no images.
    """

    def __init__(self, root: str | Path, option: str, recursive: bool = False) -> None:
        self.root, self.option = existing_folder(root, option), option
        self.names, linked = image_names(self.root, recursive)
        left_out = f"{linked} linked subfolders, which 'recursive: true' does not read" if recursive and linked else ""
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
