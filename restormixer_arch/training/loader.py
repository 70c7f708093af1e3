"""Load the data of a training run: datasets, loaders, the order of the samples, and prefetching.

The order and all random numbers of a sample are determined by ``manual_seed``, the epoch and the position in the
epoch, or its index if the dataset has ``indexed_by_epoch = True``. So every epoch and every seed has its own crops and
flips, they do not depend on the number of loader processes, and a run that is resumed within an epoch skips the samples
already used without loading them.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import signal
from collections import deque
from collections.abc import Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple

import basicsr.data
import cv2
import numpy as np
import torch
from basicsr.data.prefetch_dataloader import CUDAPrefetcher
from basicsr.utils import get_root_logger
from torch.utils.data import DataLoader, Dataset, Sampler

from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.errors import UserError

TOO_SMALL = re.compile(r"(LQ .* is smaller than patch size .*)\. Please remove (.*)\.")  # BasicSR's paired_random_crop


class EpochIndex(NamedTuple):
    """An index of a dataset with ``indexed_by_epoch = True``; in an enlarged one, ``index`` may exceed the length."""

    epoch: int
    index: int


class Draw(NamedTuple):
    """A sample to load: its epoch, index and seed; in an enlarged dataset, ``index`` may exceed the length."""

    epoch: int
    index: int
    seed: int


class ResumableSampler(Sampler):
    """A sampler of shuffled indices that are split between the processes of a job; it can start within an epoch.

    Process r of n uses every n-th position starting at r, so in each iteration, n processes with a batch size of b
    use the same samples as one process with a batch size of n * b.

    Args:
        dataset: dataset to sample from.
        num_replicas: number of processes of the job.
        rank: number of this process, from 0.
        ratio: number of passes over the images per epoch; below 1, a different random subset in each epoch.
        seed: random seed, the same for all processes.

    Attributes:
        epoch: current epoch, from 0.
        consumed: positions of this epoch that all processes together have trained on; increased by the training loop.
    """

    def __init__(self, dataset: Sized, num_replicas: int, rank: int, ratio: float = 1, *, seed: int) -> None:
        self.images, self.size = len(dataset), math.ceil(len(dataset) * ratio)
        self.world_size, self.rank, self.seed = num_replicas, rank, seed
        self.epoch = self.consumed = 0
        self._start = (0, 0)

    def __len__(self) -> int:
        return self.size // self.world_size

    def __iter__(self) -> Iterator[Draw]:
        return self._draws(self.epoch, self.consumed)

    def _draws(self, epoch: int, first: int) -> Iterator[Draw]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        order = torch.randperm(max(self.size, self.images), generator=generator)[: self.size].tolist()
        rounds = (self.size - first) // self.world_size
        for position in range(first + self.rank, first + rounds * self.world_size, self.world_size):
            yield Draw(epoch, order[position], mix_seed(self.seed, epoch, position))

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch at its first position, or at the saved one if it is the epoch passed to :meth:`resume`."""
        self.epoch = epoch
        self.consumed = self._start[1] if epoch == self._start[0] else 0

    def position(self) -> dict[str, int]:
        """Return the current position, for :meth:`resume`."""
        return {"epoch": self.epoch, "consumed": self.consumed, "size": self.size, "images": self.images}

    def resume(self, position: dict[str, int]) -> bool:
        """Start from a saved position; return False if the dataset size has changed, so the epoch starts again."""
        same = (position["size"], position["images"]) == (self.size, self.images)
        self._start = (position["epoch"], position["consumed"] if same else 0)
        self.set_epoch(position["epoch"])
        return same


class SeededSamples(Dataset):
    """A dataset that loads each sample with the seed of its :class:`Draw`.

    It seeds the global generators of Python, NumPy and torch, which BasicSR's datasets use.

    Args:
        dataset: any map-style dataset.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.opt = getattr(dataset, "opt", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, Draw):
            return self.dataset[index]
        epoch, number, seed = index
        by_epoch = getattr(self.dataset, "indexed_by_epoch", False)
        try:
            with use_seed(seed):
                return self.dataset[EpochIndex(epoch, number) if by_epoch else number % len(self.dataset)]
        except UserError:
            raise
        except ValueError as error:
            found = TOO_SMALL.fullmatch(str(error))
            if found is None:
                reason = " ".join(" ".join(map(str, error.args)).split())
                raise UserError(f"datasets.train ({self._name()}): {reason}") from error
            advice = "lower datasets.train.gt_size or leave the image out"
            raise UserError(f"{found[2]}: {found[1]}; {advice}") from error

    def _name(self) -> str:
        return (self.opt or {}).get("name") or type(self.dataset).__name__


def build_dataset(phase: str, section: dict[str, Any], shown: str) -> Any:
    """Build a dataset by its ``type``.

    Args:
        phase: key under ``datasets``.
        section: options of the dataset.
        shown: name of the option file in messages.

    Raises:
        UserError: if the dataset rejects its options or folders, or has no image.
    """
    try:
        for key in ("dataroot_lq", "dataroot_gt"):
            if str(section.get(key)).endswith(".lmdb"):
                LmdbImages(section[key], key)  # reading past the end of a truncated LMDB would kill the process
        dataset = basicsr.data.build_dataset(section)
    # Errors with which datasets reject their options; UserError is a ValueError.
    except (AssertionError, ValueError, OSError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, LookupError | TypeError) else error
        raise UserError(f"{shown}: datasets.{phase}: {reason}") from error
    if len(dataset) == 0:
        raise UserError(f"{shown}: datasets.{phase}: has no image ({section.get('dataroot_lq')!r})")
    return dataset


def build_loader(dataset: Any, section: dict[str, Any], opt: dict[str, Any], sampler: Sampler | None = None) -> Any:
    """Build BasicSR's loader with a separate random generator, so it does not change the global ones."""
    section = {**section, "prefetch_mode": None}  # Batches does the prefetching
    seed = opt["manual_seed"]
    loader = basicsr.data.build_dataloader(
        dataset, section, num_gpu=opt["num_gpu"], dist=opt["dist"], sampler=sampler, seed=seed
    )
    loader.generator = torch.Generator().manual_seed(mix_seed(seed))
    return loader


def build_training_loader(opt: dict[str, Any], shown: str) -> tuple[DataLoader, ResumableSampler]:
    """Build the loader of ``datasets.train`` and its sampler. A dataset without a ``seed`` gets ``manual_seed``.

    Raises:
        UserError: if the images do not fill a batch, or as in :func:`build_dataset`.
    """
    section, world_size, logger = dict(opt["datasets"]["train"]), opt["world_size"], get_root_logger()
    if section.get("seed") is None:
        section["seed"] = opt["manual_seed"]
    dataset, ratio = build_dataset("train", section, shown), section.get("dataset_enlarge_ratio", 1)
    sampler = ResumableSampler(dataset, world_size, opt["rank"], ratio, seed=opt["manual_seed"])
    loader = build_loader(SeededSamples(dataset), section, opt, sampler)
    loader.worker_init_fn = start_worker
    if len(loader) == 0:
        batch = f"{loader.batch_size}" + (f" in {world_size} processes" if world_size > 1 else "")
        raise UserError(
            f"{shown}: datasets.train: {sampler.size} images do not fill a batch of {batch}; "
            "lower batch_size_per_gpu or raise dataset_enlarge_ratio"
        )
    logger.info(
        f"Training statistics:\n\tNumber of train images: {len(dataset)}\n\tDataset enlarge ratio: {ratio}"
        f"\n\tBatch size per gpu: {section['batch_size_per_gpu']}\n\tWorld size (gpu number): {world_size}"
        f"\n\tBatches per epoch: {len(loader)}, an incomplete last one is dropped"
        f"\n\tIterations: {opt['train']['total_iter']}"
    )
    return loader, sampler


def build_validation_loaders(opt: dict[str, Any], shown: str) -> list[DataLoader]:
    """Build the loaders of ``datasets.val*``, in the order of the option file."""
    loaders = []
    for phase, section in opt["datasets"].items():
        if section["phase"] == "val":
            loaders.append(build_loader(build_dataset(phase, section, shown), section, opt))
            get_root_logger().info(f"Number of val images/folders in {section['name']}: {len(loaders[-1].dataset)}")
    return loaders


class Batches:
    """The training batches of each epoch, prefetched according to ``datasets.train.prefetch_mode``.

    If it is not set, they come directly from the loader; ``cpu`` loads the next ones in a thread; ``cuda`` copies the
    next one to the GPU while the network processes the current one.
    """

    def __init__(self, loader: DataLoader, opt: dict[str, Any]) -> None:
        self.loader, self.opt = loader, opt
        self._iterator: Any = None

    def epoch(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of the current epoch of the sampler.

        Raises:
            RuntimeError: if a loader process was killed. While it is sending a batch, torch itself reports only the end
                of the pipe.
        """
        try:
            yield from self._batches()
        except (EOFError, ConnectionResetError) as error:
            if not self.loader.num_workers or str(error).startswith("Caught "):
                raise  # the error comes from the dataset
            raise RuntimeError("DataLoader worker exited unexpectedly") from error

    def _batches(self) -> Iterator[dict[str, Any]]:
        section = self.opt["datasets"]["train"]
        self._iterator = iter(self.loader)
        if section.get("prefetch_mode") == "cpu":
            yield from _fetch_by_thread(self._iterator, section.get("num_prefetch_queue", 1))
        elif section.get("prefetch_mode") == "cuda":
            prefetcher = CUDAPrefetcher(self._iterator, self.opt)
            while (batch := prefetcher.next()) is not None:
                yield batch
        else:
            yield from self._iterator

    def close(self) -> None:
        """Stop the loader processes immediately.

        If an iterator is only dereferenced, which exception tracebacks and reference cycles delay, its processes
        outlive the training run, and at exit, the main process waits 5 seconds for each of them.
        """
        for iterator in (self._iterator, getattr(self.loader, "_iterator", None)):
            shut_down = getattr(iterator, "_shutdown_workers", None)  # torch has no public method
            if shut_down:
                shut_down()


def _fetch_by_thread(iterator: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield the items of an iterator while a thread loads the next ``count``; errors in the thread are raised here."""
    thread = ThreadPoolExecutor(max_workers=1)
    try:
        pending = deque(thread.submit(next, iterator, None) for _ in range(count))
        while (item := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, iterator, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def start_worker(worker_id: int) -> None:
    """Initialize a loader process: seed Python and NumPy from torch's seed, which differs in every epoch.

    Ctrl-C, which reaches all processes of a terminal, and the first SIGTERM, which a batch system sends to all
    processes, are ignored, since the trainer stops the loaders after the checkpoint.
    """
    own = torch.initial_seed()
    random.seed(own)
    np.random.seed(own % 2**32)
    if torch.multiprocessing.get_start_method() != "fork":
        cv2.setNumThreads(1)  # a forked process has the trainer's setting, and would wait for missing threads
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


@contextmanager
def use_seed(seed: int) -> Iterator[None]:
    """Seed the CPU generators with ``seed``, and restore their states on exit."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def mix_seed(*numbers: int) -> int:
    """Return a seed in [0, 2**63) that is a hash of the numbers, so other numbers give another seed."""
    text = "/".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
