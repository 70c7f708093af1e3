"""Progressive learning with increasing patch sizes: stages, crops and training."""

import pytest
import torch
from training_cases import NETWORKS, batch, build, step

from restormixer_arch.basicsr_adapter import register
from restormixer_arch.errors import UserError
from restormixer_arch.models.progressive import ProgressivePatches

register.register()

TABLE = {"iters": [2, 3, 1], "gt_sizes": [4, 8, 16], "batch_sizes": [4, 2, 1]}


def numbered(side=16, scale=1):
    """Return images whose values encode the position: 100000 per image, 1000 per row, 1 per column."""
    rows, columns = torch.arange(float(side))[:, None], torch.arange(float(side))[None, :]
    image = torch.arange(4.0)[:, None, None, None] * 100000
    lq = image + 1000 * rows + columns
    gt = lq.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return lq, gt


def test_stages():
    patches = ProgressivePatches(**TABLE)
    assert [patches.stage(iteration) for iteration in range(1, 9)] == [0, 0, 1, 1, 1, 2, 2, 2]
    assert patches.starts() == [1, 3, 6]


@pytest.mark.parametrize("scale", [1, 2])
def test_crops_of_lq_and_gt_match(scale):
    lq, gt = numbered(16 // scale, scale)
    patches = ProgressivePatches(**TABLE, scale=scale)
    for iteration, images, side in ((1, 4, 4), (3, 2, 8), (6, 1, 16)):
        small, large = patches.select(lq, gt, iteration)
        assert small.shape == (images, 1, side // scale, side // scale) and large.shape == (images, 1, side, side)
        assert torch.equal(large[..., ::scale, ::scale], small)
        assert small[:, 0, 0, 0].div(100000).floor().tolist() == list(range(images))


def test_crops_depend_only_on_iteration_and_seed():
    lq, gt = numbered()

    def corners(seed):
        patches = ProgressivePatches(iters=[50], gt_sizes=[4], batch_sizes=[1], seed=seed)
        return [patches.select(lq, gt, iteration)[0][0, 0, 0, 0].item() for iteration in range(1, 51)]

    first = corners("0")
    assert first == corners("0") and first != corners("1")
    assert len(set(first)) > 25 and {value // 1000 for value in first} == set(range(13))


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_training_uses_the_patch_and_batch_sizes_of_each_stage(tmp_path, network):
    table = {"iters": [1, 2], "gt_sizes": [8, 16], "batch_sizes": [2, 1]}
    model = build(tmp_path, network, progressive=table)
    shapes = []
    for iteration in (1, 2, 3):
        step(model, iteration, batch(iteration))
        shapes.append(tuple(model.lq.shape))
    assert shapes == [(2, 3, 8, 8), (1, 3, 16, 16), (1, 3, 16, 16)]


def test_invalid_tables_are_rejected():
    with pytest.raises(UserError, match="iters, gt_sizes and batch_sizes must be of one length, got 3, 3 and 1"):
        ProgressivePatches(**{**TABLE, "batch_sizes": [1]})
    with pytest.raises(UserError, match="train.progressive.gt_sizes: got 6, expected a multiple of scale 4"):
        ProgressivePatches(iters=[1], gt_sizes=[6], batch_sizes=[1], scale=4)
    lq, gt = numbered(8)
    with pytest.raises(UserError, match="stage 3 needs 1 patches of 16, but the loader gives 4 of 8; raise datasets"):
        ProgressivePatches(**TABLE).select(lq, gt, 6)
