"""The epoch reaches the data set with each index."""

import pytest
from torch.utils.data import DataLoader, Dataset

from restormixer_arch.basicsr_adapter.epoch_sampler import EnlargedSampler, EpochSampler
from restormixer_arch.basicsr_adapter.sampler import EpochIndex, ResumableSampler, SeededSamples


class Echo(Dataset):
    indexed_by_epoch = True

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return index.epoch, index.index


@pytest.mark.parametrize(("replicas", "ratio"), [(1, 1), (2, 1), (2, 3), (1, 2.5)])
def test_same_order_as_basicsr(replicas, ratio):
    for rank in range(replicas):
        ours, theirs = (kind(Echo(), replicas, rank, ratio) for kind in (EpochSampler, EnlargedSampler))
        assert len(ours) == len(theirs)
        for epoch in (0, 3):
            ours.set_epoch(epoch)
            theirs.set_epoch(epoch)
            drawn = list(ours)
            assert [index.index % 5 for index in drawn] == list(theirs)
            assert {index.epoch for index in drawn} == {epoch}


def test_repetitions_are_told_apart():
    assert sorted(index.index for index in EpochSampler(Echo(), 1, 0, 3)) == list(range(15))


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_workers_hear_of_the_epoch(workers, persistent):
    sampler = EpochSampler(Echo(), 1, 0, 1)
    loader = DataLoader(Echo(), batch_size=5, sampler=sampler, num_workers=workers, persistent_workers=persistent)
    for epoch in (0, 1, 7):
        sampler.set_epoch(epoch)
        ((epochs, numbers),) = list(loader)
        assert epochs.tolist() == [epoch] * 5 and sorted(numbers.tolist()) == list(range(5))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_s_own_sampler_tells_the_epoch_too(workers):
    sampler = ResumableSampler(Echo(), 1, 0, 3, seed=0)
    loader = DataLoader(SeededSamples(Echo()), batch_size=15, sampler=sampler, num_workers=workers)
    for epoch in (0, 4):
        sampler.set_epoch(epoch)
        ((epochs, numbers),) = list(loader)
        assert epochs.tolist() == [epoch] * 15 and sorted(numbers.tolist()) == list(range(15))
    assert EpochIndex(2, 3) == (2, 3)
