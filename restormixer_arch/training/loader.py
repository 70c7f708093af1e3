"""The data of a training: datasets, loaders, the order of the samples, and prefetching.

The order and all random numbers of a sample follow from ``manual_seed``, the epoch and the position in the epoch, or
its index where a dataset has ``indexed_by_epoch = True``. So every epoch and every seed has its own crops and flips,
they do not depend on the number of loader processes, and a training that is resumed within an epoch skips what it has
had without loading it.
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
    """What a dataset with ``indexed_by_epoch = True`` is indexed by; ``index`` counts on where it is enlarged."""

    epoch: int
    index: int


class Draw(NamedTuple):
    """A sample to draw: the epoch, the index, which counts on where the dataset is enlarged, and its own seed."""

    epoch: int
    index: int
    seed: int


class ResumableSampler(Sampler):
    """Shuffled indices of a dataset, shared between the processes of a job, from any place in an epoch on.

    Process r of n takes every n-th position from r on, so that n processes with batches of b see in each iteration
    what one process with a batch of n * b sees.

    Args:
        dataset: what is sampled from.
        num_replicas: processes of the job.
        rank: number of this process.
        ratio: number of passes over the images per epoch; below 1, a different random subset in each epoch.
        seed: the same for all processes.

    Attributes:
        epoch: counted from 0.
        consumed: positions of this epoch that all processes together have trained on. The training loop counts it.
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
        """Start an epoch: at its first position, unless it is the epoch that :meth:`resume` named."""
        self.epoch = epoch
        self.consumed = self._start[1] if epoch == self._start[0] else 0

    def position(self) -> dict[str, int]:
        """Return the current position, for :meth:`resume`."""
        return {"epoch": self.epoch, "consumed": self.consumed, "size": self.size, "images": self.images}

    def resume(self, position: dict[str, int]) -> bool:
        """Start from a saved position; False if the dataset has another size, so that its epoch starts again."""
        same = (position["size"], position["images"]) == (self.size, self.images)
        self._start = (position["epoch"], position["consumed"] if same else 0)
        self.set_epoch(position["epoch"])
        return same


class SeededSamples(Dataset):
    """A dataset whose samples are drawn with the seed that comes with their index.

    The seed is that of the global generators of Python, NumPy and torch, from which BasicSR's datasets draw.

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
        section: its options.
        shown: the option file's name in messages.

    Raises:
        UserError: the dataset refuses its options or folders, or has no image.
    """
    try:
        for key in ("dataroot_lq", "dataroot_gt"):
            if str(section.get(key)).endswith(".lmdb"):
                LmdbImages(section[key], key)  # reading beyond the end of one cut short would kill the process
        dataset = basicsr.data.build_dataset(section)
    # How datasets refuse their options; UserError is a ValueError.
    except (AssertionError, ValueError, OSError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, LookupError | TypeError) else error
        raise UserError(f"{shown}: datasets.{phase}: {reason}") from error
    if len(dataset) == 0:
        raise UserError(f"{shown}: datasets.{phase}: has no image ({section.get('dataroot_lq')!r})")
    return dataset


def build_loader(dataset: Any, section: dict[str, Any], opt: dict[str, Any], sampler: Sampler | None = None) -> Any:
    """Build BasicSR's loader, with a random generator of its own, so that it leaves the global ones alone."""
    section = {**section, "prefetch_mode": None}  # see Batches
    seed = opt["manual_seed"]
    loader = basicsr.data.build_dataloader(
        dataset, section, num_gpu=opt["num_gpu"], dist=opt["dist"], sampler=sampler, seed=seed
    )
    loader.generator = torch.Generator().manual_seed(mix_seed(seed))
    return loader


def build_training_loader(opt: dict[str, Any], shown: str) -> tuple[DataLoader, ResumableSampler]:
    """Build the loader of ``datasets.train`` and its sampler. A dataset without a ``seed`` gets ``manual_seed``.

    Raises:
        UserError: the images do not fill a batch, or as :func:`build_dataset`.
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
    """The training batches, epoch by epoch, prefetched as ``datasets.train.prefetch_mode`` says.

    Without it they come from the loader; ``cpu`` fetches the next ones in a thread; ``cuda`` copies the next one to the
    GPU while the network works on the current one.
    """

    def __init__(self, loader: DataLoader, opt: dict[str, Any]) -> None:
        self.loader, self.opt = loader, opt
        self._iterator: Any = None

    def epoch(self) -> Iterator[dict[str, Any]]:
        """Yield the batches of the epoch at which the sampler is.

        Raises:
            RuntimeError: a loader process was killed. If it was sending a batch, torch reports the pipe's end only.
        """
        try:
            yield from self._batches()
        except (EOFError, ConnectionResetError) as error:
            if not self.loader.num_workers or str(error).startswith("Caught "):
                raise  # it comes from the dataset
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
        """End the loader processes at once.

        If an iterator is only let go of, which the traceback of an exception and reference cycles delay, its processes
        outlive the training, and at its end the process waits 5 seconds for each of them.
        """
        for iterator in (self._iterator, getattr(self.loader, "_iterator", None)):
            shut_down = getattr(iterator, "_shutdown_workers", None)  # torch has no public way
            if shut_down:
                shut_down()


def _fetch_by_thread(iterator: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield the items of an iterator, of which a thread fetches the next ``count`` ahead; its errors are raised."""
    thread = ThreadPoolExecutor(max_workers=1)
    try:
        pending = deque(thread.submit(next, iterator, None) for _ in range(count))
        while (item := pending.popleft().result()) is not None:
            pending.append(thread.submit(next, iterator, None))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def start_worker(worker_id: int) -> None:
    """Prepare a loader process.

    torch's own seed differs in every epoch. Ctrl-C reaches all processes of a terminal, but the trainer ends the
    loaders, after the checkpoint. The same goes for a first SIGTERM, which a batch system sends to all.
    """
    own = torch.initial_seed()
    random.seed(own)
    np.random.seed(own % 2**32)
    if torch.multiprocessing.get_start_method() != "fork":
        cv2.setNumThreads(1)  # a forked process has the trainer's setting, and would wait for threads it lacks
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


@contextmanager
def use_seed(seed: int) -> Iterator[None]:
    """Start the generators of the CPU from ``seed``, and put them back afterwards."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs, too
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def mix_seed(*numbers: int) -> int:
    """Return a seed in [0, 2**63) that follows from the numbers, and differs for others."""
    text = "/".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
