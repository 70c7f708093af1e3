"""Mixup and CutBlur."""

import pytest
import torch
import torch.nn.functional as F
from training_cases import build, step

from restormixer_arch import cli
from restormixer_arch.models.mixing import cut_blur, mix_pairs


def test_mixup_blends_input_and_ground_truth_with_the_same_weight():
    lq = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 4, 4)
    blended_lq, blended_gt = mix_pairs(lq, 10 * lq, alpha=1.2, seed="0 3")
    torch.testing.assert_close(blended_gt, 10 * blended_lq)
    values = blended_lq[:, 0, 0, 0]
    # weight * own + (1 - weight) * partner; each image is the partner of exactly one, so the sum is unchanged
    assert values.sum().item() == pytest.approx(15.0) and (values - torch.arange(6.0)).abs().max() > 0.01
    torch.testing.assert_close(mix_pairs(lq, lq, 1.2, "0 3")[0], blended_lq, rtol=0, atol=0)
    assert not torch.equal(mix_pairs(lq, lq, 1.2, "0 4")[0], blended_lq)


def test_mixup_weights_have_the_mean_and_variance_of_the_beta_distribution():
    lq = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    for alpha, variance in ((1.0, 1 / 12), (0.2, 1 / (4 * 1.4))):  # Beta(a, a): 1 / (4 (2 a + 1))
        weights = torch.stack([mix_pairs(lq, lq, alpha, str(n))[0][1, 0, 0, 0] for n in range(4000)])
        assert weights.mean().item() == pytest.approx(0.5, abs=0.04)
        assert weights.var().item() == pytest.approx(variance, abs=0.02)


def test_model_trains_on_blended_pairs(tmp_path):
    model = build(tmp_path, mixup=1.2)
    before = {name: p.clone() for name, p in model.net_g.named_parameters()}
    step(model)
    assert any(not torch.equal(before[name], p) for name, p in model.net_g.named_parameters())
    lq = model.lq.clone()
    model.mixup = None
    step(model)
    assert not torch.equal(model.lq, lq)


# --- CutBlur ---------------------------------------------------------------------------------------------------------


def test_cutblur_makes_the_inside_or_outside_of_a_rectangle_clean():
    lq, gt = torch.zeros(200, 3, 40, 60), torch.ones(200, 3, 40, 60)
    mixed = cut_blur(lq, gt, 1.0, "0 1")
    clean_inside = 0
    for picture in mixed:
        assert torch.equal(picture[0], picture[1]) and set(picture.unique().tolist()) == {0.0, 1.0}
        inner = [part for part in (picture[0], 1 - picture[0]) if is_rectangle(part)]
        assert len(inner) == 1 and inner[0].mean().item() == pytest.approx(0.49, abs=0.07)  # 0.7 of each side
        clean_inside += torch.equal(inner[0], picture[0])
    assert 60 < clean_inside < 140
    assert len({tuple(picture[0].any(1).tolist()) for picture in mixed}) > 10
    assert torch.equal(lq, torch.zeros_like(lq))


def is_rectangle(part):
    return part.sum() == part.any(1).sum() * part.any(0).sum()


def test_cutblur_depends_on_seed_and_probability():
    lq, gt = torch.zeros(400, 1, 8, 8), torch.ones(400, 1, 8, 8)
    assert torch.equal(cut_blur(lq, gt, 0.3, "0 1"), cut_blur(lq, gt, 0.3, "0 1"))
    assert not torch.equal(cut_blur(lq, gt, 0.3, "0 1"), cut_blur(lq, gt, 0.3, "0 2"))
    cut = cut_blur(lq, gt, 0.3, "0 1").flatten(1).any(1)
    assert cut.float().mean().item() == pytest.approx(0.3, abs=0.07)


def test_cutblur_uses_downsampled_ground_truth_in_super_resolution():
    rng = torch.Generator().manual_seed(0)
    gt, noise = torch.rand(8, 3, 32, 48, generator=rng), torch.rand(8, 3, 16, 24, generator=rng)
    clean = F.interpolate(gt, size=(16, 24), mode="bicubic", antialias=True).clamp(0, 1)
    mixed = cut_blur(noise, gt, 1.0, "0 1")
    from_truth, from_input = mixed == clean, mixed == noise
    assert (from_truth | from_input).all() and from_truth.any() and from_input.any()


@pytest.mark.parametrize("scale", [1, 2])
def test_training_passes_patches_probability_and_seed_to_cutblur(pairs, train_options, write, monkeypatch, scale):
    import cv2

    from restormixer_arch.models import restormixer_model

    for number in range(6 if scale == 2 else 0):
        image = cv2.imread(f"pairs/lq/{number}.png")
        cv2.imwrite(f"pairs/lq/{number}.png", image[::2, ::2])
    train_options |= {"model_type": "RestorMixerModel", "scale": scale}
    train_options["network_g"] = {**train_options["network_g"], "upscale": scale}
    train_options["train"] |= {"cutblur": 0.75, "mixup": 1.2}
    seen = []

    def cut(lq, gt, probability, seed):
        seen.append((tuple(lq.shape), tuple(gt.shape), probability, seed))
        return cut_blur(lq, gt, probability, seed)

    monkeypatch.setattr(restormixer_model, "cut_blur", cut)
    assert cli.main(["train", "-opt", write(train_options)]) == 0
    side = 16 // scale
    assert seen == [((4, 3, side, side), (4, 3, 16, 16), 0.75, f"0 0 {number}") for number in range(1, 6)]


@pytest.mark.parametrize(("value", "expected"), [(0, "more than 0"), (1.5, "at most 1")])
def test_invalid_cutblur_probability_is_rejected(pairs, train_options, write, capsys, value, expected):
    train_options["model_type"] = "RestorMixerModel"
    train_options["train"]["cutblur"] = value
    assert cli.main(["train", "-opt", write(train_options)]) == 2
    assert f"train.cutblur: got {value}, expected {expected}" in capsys.readouterr().err


def test_mixup_with_batch_size_1_is_rejected(pairs, train_options, write, capsys):
    train_options.update(model_type="RestorMixerModel")
    train_options["train"]["mixup"] = 1.0
    train_options["datasets"]["train"]["batch_size_per_gpu"] = 1
    assert cli.main(["train", "-opt", write(train_options)]) == 2
    wanted = "x.yml: train.mixup: needs at least two images per batch; expected "
    wanted += "datasets.train.batch_size_per_gpu of 2 or more"
    assert wanted in capsys.readouterr().err
