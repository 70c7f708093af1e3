"""A sampler for training loops of one's own, which tells the data set the epoch with each index.

BasicSR calls ``sampler.set_epoch()`` in the main process; a data set in a worker process does not hear of it, least of
all where workers persist. So the epoch travels with the index itself, through the loader's own queues.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from restormixer_arch.basicsr_adapter import compat

compat.apply()  # basicsr can be imported from here on

from basicsr.data.data_sampler import EnlargedSampler  # noqa: E402

from restormixer_arch.basicsr_adapter.sampler import EpochIndex  # noqa: E402


class EpochSampler(EnlargedSampler):
    """BasicSR's EnlargedSampler, in the same order, which yields ``EpochIndex(epoch, index)``.

    The index is not reduced to the number of images, so that the repetitions of an image in one epoch
    (``dataset_enlarge_ratio``) can differ.
    """

    def __iter__(self) -> Iterator[EpochIndex]:
        generator = torch.Generator()
        generator.manual_seed(self.epoch)
        order = torch.randperm(self.total_size, generator=generator).tolist()
        return iter([EpochIndex(self.epoch, index) for index in order[self.rank : self.total_size : self.num_replicas]])
