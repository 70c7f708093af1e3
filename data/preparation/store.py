"""Store prepared images in LMDBs in BasicSR's format or in folders, and read them for comparison."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import lmdb
import numpy as np

from restormixer_arch.data.images import IMAGE_SUFFIXES
from restormixer_arch.data.images.folder import without_suffix
from restormixer_arch.data.images.opencv import decode_color
from restormixer_arch.data.lmdb_io import LmdbImages, check_database, required_bytes, writing
from restormixer_arch.data.preparation.sub_images import PNG_LEVEL, Entry
from restormixer_arch.errors import UserError
from restormixer_arch.output import atomic_paths

INITIAL_MAP_BYTES = 2**26  # initial map size of an LMDB in bytes; half of it is the reserve when the map grows


class LmdbStore:
    """An LMDB that is written in batches; a batch is on disk when :meth:`put` returns.

    Args:
        path: folder of the LMDB, whose name need not end in ``.lmdb`` while it is unfinished.
    """

    suffix = ".lmdb"

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path, self._lines = path, {}
        with writing(path):
            self._environment = lmdb.open(str(path), map_size=INITIAL_MAP_BYTES, lock=False)

    @staticmethod
    def can_resume(path: Path) -> bool:
        """Return whether there is an undamaged LMDB to resume."""
        try:
            check_database(path)
        except (OSError, UserError):
            return False
        return True

    def put(self, entries: Iterable[Entry]) -> None:
        """Write entries in one transaction, replacing those with the same keys."""
        entries = list(entries)
        info, page = self._environment.info(), self._environment.stat()["psize"]
        space = required_bytes([len(entry.content) for entry in entries], page)
        needed = info["last_pgno"] * page + space + INITIAL_MAP_BYTES // 2
        with writing(self.path):
            if needed > info["map_size"]:
                self._environment.set_mapsize(max(2 * info["map_size"], needed))
            with self._environment.begin(write=True) as transaction:
                for entry in entries:
                    transaction.put(entry.key.encode(), entry.content)

    def close(self, lines: Iterable[str]) -> None:
        """Write ``meta_info.txt``, with a line for each image, and close the LMDB."""
        self._environment.close()
        (self.path / "meta_info.txt").write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")

    def close_unfinished(self) -> None:
        """Close the LMDB and keep what was written."""
        self._environment.close()


class FolderStore:
    """A folder of images."""

    suffix = ""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path

    @staticmethod
    def can_resume(path: Path) -> bool:
        """Return whether there is a folder to resume."""
        return path.is_dir()

    def put(self, entries: Iterable[Entry]) -> None:
        """Write entries as files, each under a temporary name first."""
        for entry in entries:
            target = self.path / f"{entry.key}{entry.suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_paths([target]) as [part]:
                part.write_bytes(entry.content)

    def close(self, lines: Iterable[str]) -> None:
        """Remove files without a line: their sources were removed or changed before the work was resumed."""
        kept = {unicodedata.normalize("NFC", line.rpartition(" (")[0]) for line in lines}
        for file in [file for file in self.path.rglob("*") if file.is_file()]:
            name = file.relative_to(self.path).as_posix()
            if unicodedata.normalize("NFC", name) not in kept:  # some file systems decompose accented letters
                file.unlink()

    def close_unfinished(self) -> None:
        """Do nothing: no file is open."""


class FolderReader:
    """The images of a folder and its subfolders by name without extension, like :class:`LmdbImages`."""

    def __init__(self, path: Path) -> None:
        files = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != ".")
        self._files = {file.relative_to(path).with_suffix("").as_posix(): file for file in files}
        self.names = sorted(self._files)

    def content(self, name: str) -> bytes | None:
        """Return the encoded image, None if it is missing."""
        file = self._files.get(name)
        return file.read_bytes() if file else None


STORES = {"lmdb": LmdbStore, "folder": FolderStore}
Store = LmdbStore | FolderStore


def meta_line(entry: Entry, level: int = PNG_LEVEL) -> str:
    """Return an image's line in ``meta_info.txt``: name, (height,width,channels), compression level."""
    height, width = entry.size
    return f"{entry.key}{entry.suffix} ({height},{width},3) {level}"


def image_key(line: str) -> str:
    """Return the key in a line from :func:`meta_line`."""
    return without_suffix(line.rpartition(" (")[0])


def place(out: Path, name: str, kind: str, form: str) -> Path:
    """Return the path of a part's LMDB or folder for a kind of images, ``out / <part>_<kind>[.lmdb]``."""
    return out / f"{name}_{kind}{STORES[form].suffix}"


def open_reader(path: Path, form: str) -> LmdbImages | FolderReader:
    """Return a reader for a prepared LMDB or folder. Raises UserError if it is missing or not a BasicSR LMDB."""
    if not path.is_dir():
        raise UserError(f"{path}: is not there; nothing was prepared, or with another --out, --format or --scale")
    return LmdbImages(path, str(path.parent)) if form == "lmdb" else FolderReader(path)


def difference(reader: LmdbImages | FolderReader, entry: Entry) -> str:
    """Describe how a stored image differs from the one that its source yields, "" if it does not."""
    stored = reader.content(entry.key)
    if stored is None:
        return "is missing"
    if stored == entry.content or np.array_equal(_decode(stored), _decode(entry.content)):
        return ""
    return "differs from its source"


def remove(path: Path) -> None:
    """Remove a folder and its contents, if it exists."""
    shutil.rmtree(path, ignore_errors=True)


def _decode(content: bytes) -> np.ndarray | None:
    try:
        return decode_color(content, "an image")
    except UserError:
        return None
