"""Which images are trained on, in which order, and with which random numbers.

All of it follows from ``manual_seed``, the epoch and the position within the epoch. So every epoch has crops and flips
of its own, they do not depend on the number of loader processes, and a training that goes on within an epoch skips
what it has had without loading it.
"""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Callable, Iterator, Sized
from types import FrameType
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from restormixer_arch.basicsr_adapter.randomness import mixed_seed, seeded


class EpochIndex(NamedTuple):
    """What a data set with ``indexed_by_epoch = True`` is indexed by; ``index`` counts on where it is enlarged."""

    epoch: int
    index: int


class Draw(NamedTuple):
    """A sample to draw: the epoch, the index, which counts on where the data set is enlarged, and its own seed."""

    epoch: int
    index: int
    seed: int


class ResumableSampler(Sampler):
    """Shuffled indices of a data set, shared out over the processes of a job, from any place in an epoch on.

    Process r of n takes every n-th position from r on, so that n processes with batches of b see in each iteration
    what one process with a batch of n * b sees. It takes the place of BasicSR's EnlargedSampler.

    Args:
        dataset: what is sampled from.
        num_replicas: processes of the job.
        rank: number of this process.
        ratio: an epoch has that many times the images.
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
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
        order = torch.randperm(self.size, generator=generator).tolist()
        rounds = (self.size - first) // self.world_size
        for position in range(first + self.rank, first + rounds * self.world_size, self.world_size):
            yield Draw(epoch, order[position], mixed_seed(self.seed, epoch, position))

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch: to its begin, unless it is the one that :meth:`resume` named."""
        self.epoch = epoch
        self.consumed = self._start[1] if epoch == self._start[0] else 0

    def position(self) -> dict[str, int]:
        """Return the place reached, for :meth:`resume`."""
        return {"epoch": self.epoch, "consumed": self.consumed, "size": self.size, "images": self.images}

    def resume(self, position: dict[str, int]) -> bool:
        """Begin at a saved place; False if the data set has another size, so that its epoch begins anew."""
        same = (position["size"], position["images"]) == (self.size, self.images)
        self._start = (position["epoch"], position["consumed"] if same else 0)
        self.set_epoch(position["epoch"])
        return same


class SeededSamples(Dataset):
    """A data set whose samples are drawn with the seed that comes with their index.

    It holds for the global generators of Python, NumPy and torch, from which BasicSR's data sets draw.

    Args:
        dataset: any map-style data set.
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
        with seeded(seed):
            if getattr(self.dataset, "indexed_by_epoch", False):
                return self.dataset[EpochIndex(epoch, number)]
            return self.dataset[number % len(self.dataset)]


def start_worker(worker_id: int, num_workers: int, rank: int, seed: int) -> None:
    """Prepare a loader process; it takes the place of BasicSR's ``worker_init_fn``, whose arguments it has.

    BasicSR seeds the processes alike in every epoch; torch's own seed, which differs, is used here for data sets that
    are loaded without :class:`SeededSamples`. Ctrl-C reaches all processes of a terminal, but it is the trainer who
    ends the loaders, after the checkpoint. The same goes for a first SIGTERM, which a batch system sends to all.
    """
    own = torch.initial_seed()
    random.seed(own)
    np.random.seed(own % 2**32)
    if torch.multiprocessing.get_start_method() != "fork":
        cv2.setNumThreads(1)  # a forked process has the trainer's setting, and would wait for threads it lacks
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _spare_once)


def _spare_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)


def seeded_dataloader(original: Callable[..., Any]) -> Callable[..., Any]:
    """Let BasicSR's ``build_dataloader`` draw nothing from the global generators of the trainer."""

    def build_dataloader(dataset: Any, dataset_opt: dict[str, Any], **keywords: Any) -> Any:
        training = dataset_opt["phase"] == "train"
        loader = original(SeededSamples(dataset) if training else dataset, dataset_opt, **keywords)
        loader.generator = torch.Generator().manual_seed(mixed_seed(keywords.get("seed") or 0))
        return loader

    return build_dataloader
