"""Progressive learning as in Restormer (arXiv 2111.09881): large batches of small patches first, then larger patches.

The loader always produces the largest patches and batches; each stage uses the first images of a batch and a random
crop of them. This works with any dataset, at the cost of loading data that early stages do not use.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from itertools import accumulate

from torch import Tensor

from restormixer_arch.config.rules import progressive_problems
from restormixer_arch.errors import UserError


class ProgressivePatches:
    """The stages of ``train.progressive``.

    Args:
        iters: number of iterations per stage; the last stage continues until the end of training.
        gt_sizes: patch side per stage in ground-truth pixels, each a multiple of ``scale``.
        batch_sizes: batch size per stage and process.
        scale: ratio of ground-truth size to input size.
        seed: random seed; the crop depends only on the seed and the iteration, also after resuming.

    Raises:
        UserError: if the lists are empty or differ in length, or a patch size is not a multiple of ``scale``.
    """

    def __init__(
        self, *, iters: list[int], gt_sizes: list[int], batch_sizes: list[int], scale: int = 1, seed: str = "0"
    ) -> None:
        table = {"iters": iters, "gt_sizes": gt_sizes, "batch_sizes": batch_sizes}
        for problem in progressive_problems(table, scale):
            raise UserError(str(problem))
        self.ends = list(accumulate(iters))
        self.gt_sizes, self.batch_sizes = gt_sizes, batch_sizes
        self.scale, self.seed = scale, seed

    def stage(self, iteration: int) -> int:
        """Return the index of the stage, from 0, of an iteration, which is counted from 1."""
        return min(bisect_left(self.ends, iteration), len(self.ends) - 1)

    def starts(self) -> list[int]:
        """Return the first iteration of each stage."""
        return [1, *(end + 1 for end in self.ends[:-1])]

    def select(self, lq: Tensor, gt: Tensor, iteration: int) -> tuple[Tensor, Tensor]:
        """Return the part of a batch that an iteration trains on.

        Shape:
            (B, C, H, W), (B, C, scale * H, scale * W) -> (b, C, h, w), (b, C, scale * h, scale * w)

        Raises:
            UserError: if the loader's batch or patches are smaller than those of the stage.
        """
        stage = self.stage(iteration)
        batch, side = self.batch_sizes[stage], self.gt_sizes[stage] // self.scale
        height, width = lq.shape[-2:]
        if batch > lq.shape[0] or side > min(height, width):
            raise UserError(
                f"train.progressive: stage {stage + 1} needs {batch} patches of {side * self.scale}, but the loader "
                f"gives {lq.shape[0]} of {min(height, width) * self.scale}; raise datasets.train.batch_size_per_gpu "
                "or gt_size"
            )
        rng = random.Random(f"{self.seed} {iteration}")
        top, left = rng.randint(0, height - side), rng.randint(0, width - side)
        return _crop(lq[:batch], top, left, side), _crop(
            gt[:batch], top * self.scale, left * self.scale, side * self.scale
        )


def _crop(images: Tensor, top: int, left: int, side: int) -> Tensor:
    return images[..., top : top + side, left : left + side].contiguous()
