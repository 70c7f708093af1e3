"""The images of a folder, as a dataset reads them; errors name the image.

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
    """Return the folder that an option names. Raises UserError, with similar names, if there is none."""
    folder = user_path(root)
    if not str(root):  # which would be the working directory
        raise UserError(f"{option}: expected the name of a folder, got an empty string")
    if not folder.is_dir():
        reason = "is a file, a folder was expected" if folder.is_file() else not_found(folder)
        raise UserError(f"{option}: {str(root)!r} {reason}")
    return folder


def without_suffix(name: str) -> str:
    """Return a name without its image extension; any other dot belongs to the name."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in IMAGE_SUFFIXES else name


def decode_image(content: bytes, source: str) -> np.ndarray:
    """Decode to float32 BGR (H, W, 3) in [0, 1]; gray gets three channels, alpha is dropped, 16 bits become 8.

    Args:
        content: of an image file.
        source: name of the image for messages.

    Raises:
        UserError: OpenCV cannot decode it, or it has too many pixels.
    """
    return decode_color(content, source).astype(np.float32) / 255


def image_names(root: Path, recursive: bool, skipped: Container[Path] = ()) -> tuple[list[str], int]:
    """Return the names of the images in a folder, sorted, and the number of its linked sub-folders, which are not read.

    Args:
        root: the folder.
        recursive: include sub-folders, but hidden ones; names then start with the sub-folder.
        skipped: resolved sub-folders that are left out.
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
        root: the folder.
        option: the option that names it, for messages.
        recursive: include sub-folders; names then start with the sub-folder. Linked ones are left out with a note.

    Raises:
        UserError: the folder does not exist or has no image in it.
    """

    def __init__(self, root: str | Path, option: str, recursive: bool = False) -> None:
        self.root, self.option = existing_folder(root, option), option
        self.names, linked = image_names(self.root, recursive)
        left_out = f"{linked} linked sub-folders, which 'recursive: true' does not read" if recursive and linked else ""
        if not self.names:
            deeper = 0 if recursive else len(image_names(self.root, True)[0])
            hint = f"; {deeper} in its sub-folders, which 'recursive: true' reads" if deeper else ""
            hint += f"; it has {left_out}" if left_out else ""
            raise UserError(f"{option}: {str(root)!r} contains no images ({' '.join(IMAGE_SUFFIXES)}){hint}")
        if left_out:
            note(f"{option}: {str(root)!r}: left out {left_out}")

    def locate(self, name: str) -> str:
        """Return the path of an image, after which BasicSR names results."""
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
