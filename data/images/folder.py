"""The images of a folder as a dataset reads them, with errors that name the image.

Decoded images are float32 BGR (H, W, 3) in [0, 1], as BasicSR's image functions expect them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from restormixer_arch.data.images import IMAGE_SUFFIXES
from restormixer_arch.data.images.opencv import decode_color
from restormixer_arch.errors import UserError, not_found
from restormixer_arch.output import user_path


def existing_folder(root: str | Path, option: str) -> Path:
    """Return the folder that an option names. Raises UserError, with similar names, if there is none."""
    folder = user_path(root)
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


class FolderImages:
    """The images of a folder, recognized by their extension; other files are ignored.

    Args:
        root: the folder.
        option: the option that names it, for messages.
        recursive: include sub-folders; names then start with the sub-folder.

    Raises:
        UserError: the folder does not exist or has no image in it.
    """

    def __init__(self, root: str | Path, option: str, recursive: bool = False) -> None:
        self.root, self.option = existing_folder(root, option), option
        self.names = sorted(self._names(recursive))
        if not self.names:
            deeper = 0 if recursive else len(self._names(True))
            hint = f"; {deeper} in its sub-folders, which 'recursive: true' reads" if deeper else ""
            raise UserError(f"{option}: {str(root)!r} has no image in it ({' '.join(IMAGE_SUFFIXES)}){hint}")

    def _names(self, recursive: bool) -> list[str]:
        found = self.root.rglob("*") if recursive else self.root.iterdir()
        return [
            path.relative_to(self.root).as_posix()
            for path in found
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
        ]

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
