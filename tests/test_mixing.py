"""Mixup of pairs."""

import pytest
import torch
from training_cases import build, step

from restormixer_arch.models.restormixer_model import mix_pairs


def test_input_and_truth_are_blended_alike():
    lq = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 4, 4)
    blended_lq, blended_gt = mix_pairs(lq, 10 * lq, alpha=1.2, seed="0 3")
    torch.testing.assert_close(blended_gt, 10 * blended_lq)
    values = blended_lq[:, 0, 0, 0]
    # weight * own + (1 - weight) * partner, with each image the partner of one: the sum stays
    assert values.sum().item() == pytest.approx(15.0) and (values - torch.arange(6.0)).abs().max() > 0.01
    torch.testing.assert_close(mix_pairs(lq, lq, 1.2, "0 3")[0], blended_lq, rtol=0, atol=0)
    assert not torch.equal(mix_pairs(lq, lq, 1.2, "0 4")[0], blended_lq)


def test_the_mean_weight_is_a_half_and_alpha_tells_how_strongly_they_blend():
    lq = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    for alpha, variance in ((1.0, 1 / 12), (0.2, 1 / (4 * 1.4))):  # of Beta(a, a): 1 / (4 (2 a + 1))
        weights = torch.stack([mix_pairs(lq, lq, alpha, str(n))[0][1, 0, 0, 0] for n in range(4000)])
        assert weights.mean().item() == pytest.approx(0.5, abs=0.04)
        assert weights.var().item() == pytest.approx(variance, abs=0.02)


def test_a_model_trains_on_blended_pairs(tmp_path):
    model = build(tmp_path, mixup=1.2)
    before = {name: p.clone() for name, p in model.net_g.named_parameters()}
    step(model)
    assert any(not torch.equal(before[name], p) for name, p in model.net_g.named_parameters())
    lq = model.lq.clone()
    model.mixup = None
    step(model)
    assert not torch.equal(model.lq, lq)
