"""The order of the samples, the epoch that is passed to the dataset with each index, and prefetching."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from restormixer_arch.errors import UserError
from restormixer_arch.training.loader import Batches, EpochIndex, ResumableSampler, SeededSamples


class Echo(Dataset):
    indexed_by_epoch = True

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index.epoch, index.index


@pytest.mark.parametrize(("replicas", "ratio"), [(1, 1), (2, 1), (2, 3), (1, 2.5)])
def test_processes_of_a_job_split_the_order_of_a_single_process(replicas, ratio):
    alone = ResumableSampler(Echo(), 1, 0, ratio, seed=0)
    shares = [ResumableSampler(Echo(), replicas, rank, ratio, seed=0) for rank in range(replicas)]
    orders = []
    for epoch in (0, 3):
        for sampler in (alone, *shares):
            sampler.set_epoch(epoch)
        drawn = [list(share) for share in shares]
        assert [len(part) for part in drawn] == [len(share) for share in shares]
        orders.append([draw.index for draw in alone])
        together = [draw for position in zip(*drawn, strict=True) for draw in position]
        assert together == list(alone)[: len(together)] and {draw.epoch for draw in together} == {epoch}
    assert orders[0] != orders[1]


def test_repetitions_within_an_epoch_have_different_indices():
    assert sorted(draw.index for draw in ResumableSampler(Echo(), 1, 0, 3, seed=0)) == list(range(15))


def test_ratio_below_one_draws_another_subset_in_each_epoch():
    sampler, seen = ResumableSampler(range(10), 1, 0, 0.3, seed=0), []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        seen.append([draw.index for draw in sampler])
    assert all(len(set(indices)) == 3 for indices in seen)
    assert {index for indices in seen for index in indices} == set(range(10))
    resumed = ResumableSampler(range(10), 1, 0, 0.3, seed=0)
    assert resumed.resume({"epoch": 7, "consumed": 1, "size": 3, "images": 10})
    assert [draw.index for draw in resumed] == seen[7][1:]


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_workers_receive_the_epoch(workers, persistent):
    sampler = ResumableSampler(Echo(), 1, 0, 3, seed=0)
    options = {"num_workers": workers, "persistent_workers": persistent}
    loader = DataLoader(SeededSamples(Echo()), batch_size=15, sampler=sampler, **options)
    for epoch in (0, 1, 7):
        sampler.set_epoch(epoch)
        ((epochs, numbers),) = list(loader)
        assert epochs.tolist() == [epoch] * 15 and sorted(numbers.tolist()) == list(range(15))
    assert EpochIndex(2, 3) == (2, 3)


class Random(Dataset):
    """Samples with numbers from the random generators that BasicSR's datasets use."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def test_random_numbers_depend_on_the_epoch_but_not_on_the_workers():
    def draws(workers, epoch):
        sampler = ResumableSampler(Random(), 1, 0, 2, seed=0)
        sampler.set_epoch(epoch)
        torch.manual_seed(workers)  # the process's random state has no effect
        return torch.cat(list(DataLoader(SeededSamples(Random()), batch_size=2, sampler=sampler, num_workers=workers)))

    first = draws(0, 0)
    assert first.shape == (8, 3) and torch.equal(first, draws(2, 0))
    assert len(first.flatten().unique()) == 24 and not torch.isin(first, draws(0, 1)).any()


class Broken(Dataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        if index == 1:
            raise UserError("image 1 is broken")
        return index


def batches(dataset, count=1):
    options = {"datasets": {"train": {"prefetch_mode": "cpu", "num_prefetch_queue": count}}}
    return Batches(DataLoader(dataset, batch_size=1), options)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("count", [1, 4])
def test_error_in_the_prefetching_thread_is_raised(count):
    epoch = batches(Broken(), count).epoch()
    assert next(epoch).item() == 0
    with pytest.raises(UserError, match="image 1 is broken"):
        next(epoch)
    both = batches([5, 6], count)
    assert [[batch.item() for batch in both.epoch()] for _ in range(2)] == [[5, 6], [5, 6]]
