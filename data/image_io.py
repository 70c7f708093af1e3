"""Images in folders, with errors that say which image is bad.

Decoded images are float32 BGR (H, W, 3) in [0, 1], as BasicSR's image functions take them.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from restormixer_arch.errors import UserError, not_found

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def checked_folder(root: str | Path, option: str) -> Path:
    """Return the folder that an option names. Raises UserError: there is none; similar names are offered."""
    folder = Path(root).expanduser()
    if not folder.is_dir():
        reason = "is a file, a folder was expected" if folder.is_file() else not_found(folder)
        raise UserError(f"{option}: {str(root)!r} {reason}")
    return folder


def without_suffix(name: str) -> str:
    """Return a name without the extension of an image; any other dot belongs to the name."""
    stem, dot, suffix = name.rpartition(".")
    return stem if dot + suffix.lower() in IMAGE_SUFFIXES else name


def decode_image(content: bytes, source: str) -> np.ndarray:
    """Decode to float32 BGR (H, W, 3) in [0, 1]; gray gets three channels, alpha is dropped, 16 bits become 8.

    Raises:
        UserError: ``source``, which names the image in the message, is not one that OpenCV reads.
    """
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"{source}: cannot be decoded as an image ({len(content)} bytes)")
    return image.astype(np.float32) / 255


class FolderImages:
    """The images of a folder, told by their extension; everything else in it is ignored.

    Args:
        root: the folder.
        option: the option that names it, for messages.
        recursive: also those in its sub-folders; their names then start with the sub-folder.

    Raises:
        UserError: there is no such folder, or no image in it.
    """

    def __init__(self, root: str | Path, option: str, recursive: bool = False) -> None:
        self.root, self.option = checked_folder(root, option), option
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
        """Return the path that BasicSR's results are named after."""
        return str(self.root / name)

    def describe(self, name: str) -> str:
        return self.locate(name)

    def read(self, name: str) -> np.ndarray:
        """Return the image. Raises UserError: it cannot be read or decoded."""
        try:
            content = (self.root / name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.describe(name)}: cannot be read ({error.strerror})") from error
        return decode_image(content, self.describe(name))
