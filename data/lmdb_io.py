"""Read and write images in LMDBs of BasicSR's format.

An LMDB is a folder ``x.lmdb`` with ``data.mdb``, which contains an encoded image for each key, and ``meta_info.txt``,
which has a line ``name.png (height,width,channels) compression`` for each image; the key is the name without its
extension.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np

from restormixer_arch.config.rules import database_problem
from restormixer_arch.data.images.folder import FolderImages, decode_image, existing_folder, without_suffix
from restormixer_arch.data.images.opencv import encode
from restormixer_arch.errors import UserError
from restormixer_arch.output import atomic_folder

CONTROL_CHARACTERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # control characters and line breaks
FULL_DISK_BYTES = 2**20  # a disk with less free space is full
SHAPE = re.compile(r"\((\d+),\s*(\d+),\s*\d+\)(?:\s+\d+)?\Z")  # shape and compression in a meta_info.txt


class LmdbImages:
    """The images of an LMDB in BasicSR's format; ``names`` are its keys.

    The environment is shared by all readers of the same file, since LMDB cannot open a file twice in a process. It is
    closed with its last reader and is not pickled with a reader. It is read-only and uses no locks, so a forked process
    can still read from it.

    Args:
        root: folder of the LMDB, which must end in ``.lmdb``.
        option: name of the option that contains ``root``, for messages.

    Raises:
        UserError: if the LMDB is missing, incomplete, truncated or not an LMDB.
    """

    def __init__(self, root: str | Path, option: str) -> None:
        if problem := database_problem(Path(root), "lmdb"):
            raise UserError(f"{option}: {problem}")
        self.root, self.option = existing_folder(root, option), option
        self.names = read_meta_info(self.root / "meta_info.txt")
        self._environment: _Environment | None = _shared_environment(self.root)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None}

    def locate(self, name: str) -> str:
        """Return the key, after which BasicSR names results."""
        return name

    def describe(self, name: str) -> str:
        return f"{self.root}: image {name!r}"

    def read(self, name: str) -> np.ndarray:
        """Return the decoded image. Raises UserError if the key is missing or its bytes cannot be decoded."""
        content = self.content(name)
        if content is None:
            raise UserError(f"{self.describe(name)} is not in the LMDB, though its meta_info.txt lists it")
        return decode_image(content, self.describe(name))

    def content(self, name: str) -> bytes | None:
        """Return the encoded image, or None if the key is missing. Raises UserError if the LMDB cannot be read."""
        if self._environment is None:
            self._environment = _shared_environment(self.root)
        try:
            with self._environment.handle.begin() as transaction:
                return transaction.get(name.encode())
        except lmdb.Error as error:
            raise UserError(f"{self.describe(name)}: cannot be read ({error})") from error


def open_images(root: str, option: str) -> FolderImages | LmdbImages:
    """Return the images of a folder, or of an LMDB if ``root`` ends in ``.lmdb``. Raises UserError if it is invalid."""
    return LmdbImages(root, option) if root.rstrip("/").endswith(".lmdb") else FolderImages(root, option)


def read_meta_info(path: Path) -> list[str]:
    """Return the sorted keys in a ``meta_info.txt``.

    Raises:
        UserError: if the file lists no key or a key twice, or is not text.
    """
    names = [without_suffix(name) for name in read_names(path)]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise UserError(f"{path}: lists {name!r} {times} times")
    return sorted(names)


def read_names(path: Path) -> list[str]:
    """Return the name in each line of a list of images, without shape and compression.

    Names may start with a space; trailing spaces are ignored. Raises UserError if there are none, or it is not text.
    """
    names = [_image_name(line.rstrip()) for line in read_lines(path) if line.strip()]
    if not names:
        raise UserError(f"{path}: lists no image")
    return names


def read_lines(path: Path) -> list[str]:
    """Return the lines of a list of images, without a byte order mark. Raises UserError if it is not readable text."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error


def smallest_side(lines: Iterable[str]) -> int | None:
    """Return the smallest height or width in lines of a list of images, or None if they contain no shapes."""
    shapes = [shape for line in lines if (shape := SHAPE.search(line.rstrip()))]
    return min((int(side) for shape in shapes for side in shape.groups()), default=None)


def _image_name(line: str) -> str:
    """Return the name before shape and compression, either of which may be missing. The name may contain spaces."""
    shape = SHAPE.search(line)
    if shape and line[: shape.start()].strip() and line[shape.start() - 1].isspace():
        return line[: shape.start()].rstrip()
    words = line.rsplit(maxsplit=1)
    return words[0] if len(words) == 2 and words[1].isdecimal() else line


def write_lmdb(root: Path, images: Sequence[tuple[str, np.ndarray]], compression: int = 9) -> None:
    """Write an LMDB in BasicSR's format, without unused pages; the same images result in the same bytes.

    Args:
        root: folder to create, ending in ``.lmdb``.
        images: pairs of a key and a uint8 image, BGR (H, W, 3) or gray (H, W).
        compression: PNG compression level, 0 to 9.

    Raises:
        UserError: if ``root`` exists, a key is repeated or cannot be stored, or the LMDB cannot be written.
    """
    _check_keys(root, [key for key, _ in images])
    flags = (cv2.IMWRITE_PNG_COMPRESSION, compression)
    images = sorted(images, key=itemgetter(0))
    encoded = {key: (np.atleast_3d(image).shape, encode(".png", image, flags)) for key, image in images}
    size = required_bytes([len(content) for _, content in encoded.values()], mmap.PAGESIZE) + 2**20
    with atomic_folder(root) as partial:
        growing = partial / "growing"
        growing.mkdir()
        with writing(root), lmdb.open(str(growing), map_size=size, lock=False) as environment:
            with environment.begin(write=True) as transaction:
                for key, (_, content) in encoded.items():
                    transaction.put(key.encode(), content)
            environment.copy(str(partial), compact=True)
        shutil.rmtree(growing)
        lines = [f"{key}.png ({h},{w},{c}) {compression}\n" for key, ((h, w, c), _) in encoded.items()]
        (partial / "meta_info.txt").write_text("".join(lines), encoding="utf-8")


def required_bytes(lengths: Sequence[int], page: int) -> int:
    """Return an upper bound of the bytes that values of the given lengths need; each may occupy an additional page."""
    return 2 * (sum(lengths) + page * len(lengths))


def _check_keys(root: Path, keys: Sequence[str]) -> None:
    if root.exists():
        raise UserError(f"{root}: already exists; remove it first or choose another folder")
    for key, times in Counter(keys).items():
        if times > 1:
            raise UserError(f"{root}: {times} images would be stored as {key!r}; rename them")
        if problem := key_problem(key):
            raise UserError(f"{root}: the name {key!r} {problem}; rename the image")


def key_problem(name: str) -> str:
    """Return why a name cannot be a key, or "" if it can. It must fit on one line of a UTF-8 text file."""
    try:
        name.encode()
    except UnicodeEncodeError:  # Python decodes other bytes of a file name to lone surrogates
        return "is not UTF-8"
    return "has a control character or a line break in it" if CONTROL_CHARACTERS.search(name) else ""


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Raise a one-line UserError for LMDB errors, such as a full disk."""
    try:
        yield
    except lmdb.Error as error:
        reason, place = str(error).rpartition(": ")[2], root if root.exists() else root.parent
        if shutil.disk_usage(place).free < FULL_DISK_BYTES:  # LMDB reports a partial write as "Input/output error"
            reason = os.strerror(errno.ENOSPC)
        raise UserError(f"{root}: cannot be written ({reason})") from error


class _Environment:
    """An open LMDB that a weak reference can point to."""

    def __init__(self, handle: lmdb.Environment) -> None:
        self.handle = handle


_environments: weakref.WeakValueDictionary[tuple[int, int] | str, _Environment] = weakref.WeakValueDictionary()
_opening = threading.Lock()


def _shared_environment(root: Path) -> _Environment:
    status = (root / "data.mdb").stat()
    # Some network drives on Windows report inode 0 for all files, or the same inode for several files.
    known = status.st_ino and sys.platform != "win32"
    key = (status.st_dev, status.st_ino) if known else os.path.normcase(os.path.realpath(root / "data.mdb"))
    with _opening:
        environment = _environments.get(key)
        if environment is None:
            environment = _environments[key] = _Environment(_open(root))
        return environment


def _open(root: Path) -> lmdb.Environment:
    try:
        handle = lmdb.open(str(root), readonly=True, lock=False, readahead=False)
    except lmdb.Error as error:
        raise UserError(f"{root}: cannot be opened as an LMDB ({error})") from error
    page, pages, size = handle.stat()["psize"], handle.info()["last_pgno"] + 1, (root / "data.mdb").stat().st_size
    if size < pages * page and not _can_be_read(root):
        handle.close()
        raise UserError(f"{root}: data.mdb is truncated: it has {size} of {pages * page} bytes")
    return handle


def check_database(root: Path) -> None:
    """Raise UserError if an LMDB is damaged or truncated, or OSError if it is missing."""
    (root / "data.mdb").stat()
    _open(root).close()


def _can_be_read(root: Path) -> bool:
    """Return whether an LMDB can be read completely, by a subprocess, which is killed if it reads past the file's end.

    An intact file may lack pages at its end, since LMDB need not write pages that it has freed again.
    """
    code = (
        "import lmdb, sys\n"
        "with lmdb.open(sys.argv[1], readonly=True, lock=False).begin(buffers=True) as transaction:\n"
        "    sum(value[-1] for _, value in transaction.cursor() if len(value))\n"
    )
    return subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, check=False).returncode == 0
