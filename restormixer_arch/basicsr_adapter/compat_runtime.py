"""Mends made by replacing BasicSR's functions after it was imported. This module imports basicsr."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import basicsr.archs
import basicsr.data.prefetch_dataloader
import basicsr.data.transforms
import basicsr.losses
import basicsr.utils.img_util
import basicsr.utils.misc
import cv2
import numpy as np
from basicsr.utils import FileClient, get_time_str

from restormixer_arch.basicsr_adapter.output import note
from restormixer_arch.basicsr_adapter.patch import Patch, always, replace_everywhere
from restormixer_arch.errors import UserError


class NamedBytes(bytes):
    """The bytes of a file that remember where they came from."""

    source: str = "an image"


def named_images() -> None:
    original_get, original_decode = FileClient.get, basicsr.utils.img_util.imfrombytes

    def get(self: FileClient, filepath: str | Path, client_key: str = "default") -> NamedBytes:
        """Read an image's bytes. Raises UserError: it cannot be read, or the LMDB has no such key."""
        source = str(filepath)
        if self.backend == "lmdb":
            database = dict(zip(self.client._client, self.client.db_paths, strict=True)).get(client_key)
            source = f"{database}: image {source!r}"
        try:
            content = original_get(self, filepath, client_key)
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({error.strerror})") from error
        if content is None:
            raise UserError(f"{source}: is not in the LMDB, though its meta_info.txt lists it")
        named = NamedBytes(content)
        named.source = source
        return named

    def imfrombytes(content: bytes, flag: str = "color", float32: bool = False) -> np.ndarray:
        """Decode an image. Raises UserError: the bytes are no image that OpenCV reads."""
        source = getattr(content, "source", NamedBytes.source)
        try:
            image = original_decode(content, flag, float32) if len(content) else None
        except (AttributeError, cv2.error):  # None.astype where decoding fails
            image = None
        if image is None:
            raise UserError(f"{source}: cannot be decoded as an image ({len(content)} bytes)")
        return image

    FileClient.get = get
    replace_everywhere("imfrombytes", original_decode, imfrombytes)


def prefetch_errors() -> None:
    generator = basicsr.data.prefetch_dataloader.PrefetchGenerator

    def run(self: Any) -> None:
        """Fill the queue; put an exception into it as its last item."""
        try:
            for item in self.generator:
                self.queue.put(item)
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits for the queue
            self.queue.put(error)
        else:
            self.queue.put(None)

    def take(self: Any) -> Any:
        item = self.queue.get()
        if isinstance(item, Exception):
            raise item
        if item is None:
            raise StopIteration
        return item

    generator.run, generator.__next__ = run, take


def small_images() -> None:
    original = basicsr.data.transforms.paired_random_crop

    @functools.wraps(original)
    def paired_random_crop(
        img_gts: Any, img_lqs: Any, gt_patch_size: int, scale: int, gt_path: str | None = None
    ) -> Any:
        try:
            return original(img_gts, img_lqs, gt_patch_size, scale, gt_path)
        except ValueError as error:
            reason = str(error).partition(". Please")[0]
            raise UserError(f"{gt_path}: {reason}; lower datasets.train.gt_size or leave the image out") from error

    replace_everywhere("paired_random_crop", original, paired_random_crop)


def refused_values() -> None:
    for module, name in ((basicsr.archs, "build_network"), (basicsr.losses, "build_loss")):
        replace_everywhere(name, getattr(module, name), _refusing(getattr(module, name)))


def _refusing(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def build(opt: dict[str, Any]) -> Any:
        try:
            return original(opt)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{opt['type']} refuses an option: {error}") from error

    return build


def archive() -> None:
    def mkdir_and_rename(path: str) -> None:
        """Make an empty folder; one that is there already is kept under another name."""
        if os.path.exists(path):
            kept = stem = f"{path}_archived_{get_time_str()}"
            count = 1
            while os.path.exists(kept):  # two runs within a second
                count += 1
                kept = f"{stem}_{count}"
            os.rename(path, kept)
            if os.path.basename(os.path.dirname(path)) != "tb_logger":  # the second half of the same run
                note(f"{os.path.relpath(path)} is there from an earlier run, which is kept as {os.path.relpath(kept)}")
        os.makedirs(path)

    replace_everywhere("mkdir_and_rename", basicsr.utils.misc.mkdir_and_rename, mkdir_and_rename)


PATCHES = (
    Patch(
        name="named_images",
        breaks="an unreadable image ends in \"'NoneType' object has no attribute 'astype'\" without its path",
        versions="all",
        why="the path travels with the bytes to where they are decoded; decoding itself is unchanged",
        needed=always,
        mend=named_images,
    ),
    Patch(
        name="prefetch_errors",
        breaks="with prefetch_mode: cpu an error while loading is lost in a thread and training hangs",
        versions="all",
        why="the error is handed to the training loop, which then ends with it",
        needed=always,
        mend=prefetch_errors,
    ),
    Patch(
        name="small_images",
        breaks="an image smaller than gt_size ends the training in a traceback, and the advice is to delete it",
        versions="all",
        why="the crop is the option file's, so the line names its key and the image",
        needed=always,
        mend=small_images,
    ),
    Patch(
        name="refused_values",
        breaks="a value that a network or loss refuses ends in a traceback",
        versions="all",
        why="the arguments come from the option file, so a ValueError of the constructor is the user's to mend",
        needed=always,
        mend=refused_values,
    ),
    Patch(
        name="archive",
        breaks="a second start within a second renames one archived run over another",
        versions="all",
        why="the name of the archive is counted up, and what was kept where is said once",
        needed=always,
        mend=archive,
    ),
)
