"""Losses against their definitions and manually computed values."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity

from restormixer_arch import cli
from restormixer_arch.errors import UserError
from restormixer_arch.models.losses import (
    SCALE_WEIGHTS,
    MSSSIMLoss,
    MultiScaleDualDomainLoss,
    PSNRLoss,
    dual_domain_loss,
    ms_ssim,
)


def test_dual_domain_loss_of_two_pixels():
    """The difference [1, -3] has L1 2; its spectrum [-2, 4] has L1 1.5 over real and imaginary parts."""
    output = torch.tensor([[[[1.0, 0.0]]]])
    target = torch.tensor([[[[0.0, 3.0]]]])
    assert dual_domain_loss(output, target, 0.1).item() == pytest.approx(2 + 0.1 * 1.5)
    assert dual_domain_loss(output, target, 0.0).item() == pytest.approx(2)


def test_multi_scale_loss_matches_stacked_real_and_imaginary_parts():
    torch.manual_seed(0)
    target = torch.rand(2, 3, 16, 24)
    outputs = [torch.rand(2, 3, 4, 6), torch.rand(2, 3, 8, 12), torch.rand(2, 3, 16, 24)]
    wanted = 0.0
    for output in outputs:
        gt = F.interpolate(target, size=output.shape[-2:], mode="bilinear")
        a, b = torch.fft.fft2(output), torch.fft.fft2(gt)
        spectra = F.l1_loss(torch.stack([a.real, a.imag], -1), torch.stack([b.real, b.imag], -1))
        wanted += F.l1_loss(output, gt) + 0.1 * spectra
    torch.testing.assert_close(MultiScaleDualDomainLoss()(outputs, target), wanted)
    torch.testing.assert_close(MultiScaleDualDomainLoss(loss_weight=3.0)(outputs, target), 3 * wanted)


def test_single_tensor_is_treated_as_one_scale():
    output, target = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(MultiScaleDualDomainLoss()(output, target), dual_domain_loss(output, target, 0.1))


def test_targets_are_downsampled_without_antialiasing():
    """Downsampling by 4 without antialiasing averages the two middle pixels and ignores the outer ones."""
    target = torch.tensor([[[[9.0, 1.0, 3.0, 9.0]]]]).expand(1, 1, 4, 4)
    loss = MultiScaleDualDomainLoss(fft_weight=0.0)([torch.zeros(1, 1, 1, 1)], target)
    assert loss.item() == pytest.approx(2.0)


def test_loss_is_computed_in_float32_under_autocast():
    output = torch.full((1, 1, 32, 32), 0.5, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = MultiScaleDualDomainLoss()(output, torch.zeros(1, 1, 32, 32))
    # The spectrum of a constant has one nonzero bin, 0.5 * 1024; its mean over 2048 numbers is 0.25.
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5 + 0.1 * 0.25)
    loss.backward()
    assert output.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("option", "value"), [("loss_weight", -1.0), ("fft_weight", -0.1)])
def test_negative_weights_are_rejected(option, value):
    with pytest.raises(ValueError, match=f"{option} must not be negative, got {value}"):
        MultiScaleDualDomainLoss(**{option: value})


# --- MS-SSIM ---------------------------------------------------------------------------------------------------------


def smooth_pair(side=192, channels=3):
    rng = torch.Generator().manual_seed(0)
    target = F.interpolate(torch.rand(2, channels, 24, 24, generator=rng), size=(side, side + 8), mode="bicubic")
    target = target.clamp(0, 1)
    return (target + 0.1 * torch.randn(target.shape, generator=rng)).clamp(0, 1), target


@pytest.mark.parametrize(("side", "scales"), [(192, 5), (176, 5), (128, 3), (128, 2)])
def test_ms_ssim_matches_torchmetrics(side, scales):
    functional = pytest.importorskip("torchmetrics.functional.image")
    output, target = smooth_pair(side)
    betas = torch.tensor(SCALE_WEIGHTS[:scales])
    wanted = functional.multiscale_structural_similarity_index_measure(
        output, target, data_range=1.0, betas=tuple((betas / betas.sum()).tolist())
    )
    assert 0.1 < wanted < 0.99
    # torchmetrics pads the coarsest scale by reflection; ms_ssim uses only inner windows, as Wang's code does.
    torch.testing.assert_close(ms_ssim(output, target, scales), wanted, rtol=2e-3, atol=0)


def test_ms_ssim_of_constant_images():
    """Only the luminance of the coarsest scale differs from 1: (2ab + c) / (a^2 + b^2 + c), with Wang's exponent."""
    wang = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al., 2003, section 3.2
    luminance = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    for side, scales in ((32, 2), (64, 3)):
        wanted = luminance ** (wang[scales - 1] / sum(wang[:scales]))
        pair = torch.full((2, 3, side, side), 0.2), torch.full((2, 3, side, side), 0.6)
        assert ms_ssim(*pair, scales).item() == pytest.approx(wanted, abs=2e-4)


def test_ms_ssim_of_gray_images_uses_depthwise_convolutions(monkeypatch):
    """cuDNN may compute other convolutions in TF32, whose rounding gives structures far outside [-1, 1]."""
    groups, original = [], torch.nn.functional.conv2d

    def conv2d(*arguments, **options):
        groups.append(options["groups"])
        return original(*arguments, **options)

    image = torch.rand(1, 1, 32, 32)
    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    assert ms_ssim(image, image, 2).item() == pytest.approx(1)
    assert groups and min(groups) > 1


def test_ms_ssim_of_a_batch_is_the_mean_of_its_images():
    output, target = smooth_pair()
    output[1] = target[1]
    single = [ms_ssim(output[n : n + 1], target[n : n + 1], 3) for n in range(2)]
    torch.testing.assert_close(ms_ssim(output, target, 3), (single[0] + single[1]) / 2, rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", [11, 48])
def test_ms_ssim_with_one_scale_matches_scikit_image(side):
    output, target = smooth_pair(side)
    pairs = zip(output.permute(0, 2, 3, 1).numpy(), target.permute(0, 2, 3, 1).numpy(), strict=True)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    wanted = [structural_similarity(a, b, channel_axis=2, **settings) for a, b in pairs]
    assert ms_ssim(output, target, 1).item() == pytest.approx(sum(wanted) / 2, abs=1e-5)


def test_ms_ssim_with_one_scale_of_constant_images():
    """Constants 0.2 and 0.6 have no variance; the luminance is (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4)."""
    first, second = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    assert ms_ssim(first, second, 1).item() == pytest.approx(0.2401 / 0.4001, abs=2e-4)
    loss = MSSSIMLoss(loss_weight=2.0, l1_weight=0.5, scales=1)(first, second)
    assert loss.item() == pytest.approx(2 * (1 - 0.2401 / 0.4001 + 0.5 * 0.4), abs=5e-4)


def test_ms_ssim_gradient_is_finite_and_matches_central_differences():
    output, target = (x.double() for x in smooth_pair(44, 1))
    for first in (output, target, 1 - target, torch.zeros_like(target)):  # 1 - target has negative structure
        first = first.clone().requires_grad_()
        loss = MSSSIMLoss(scales=3)(first, target)
        loss.backward()
        assert loss.isfinite() and first.grad.isfinite().all()
    assert MSSSIMLoss(scales=3)(target, target).item() == pytest.approx(0, abs=1e-6)
    step = 1e-2 * torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first = output.clone().requires_grad_()
    MSSSIMLoss(scales=3)(first, target).backward()
    ahead, behind = (MSSSIMLoss(scales=3)(output + sign * step, target).item() for sign in (1, -1))
    assert (ahead - behind) / 2 == pytest.approx((first.grad * step).sum().item(), rel=0.02)


def test_ms_ssim_rejects_small_patches_and_invalid_arguments():
    with pytest.raises(UserError, match="5 scales need patches of at least 176x176, got 64x72; raise gt_size or lower"):
        MSSSIMLoss()(*smooth_pair(64))
    with pytest.raises(ValueError, match="scales must be from 1 to 5, got 6"):
        MSSSIMLoss(scales=6)
    with pytest.raises(ValueError, match="l1_weight must not be negative, got -1"):
        MSSSIMLoss(l1_weight=-1)


@pytest.mark.parametrize("model", ["SRModel", "RestorMixerModel"])
@pytest.mark.parametrize(
    "loss",
    [
        {"type": "CharbonnierLoss", "loss_weight": 2.0, "eps": 1e-6},
        {"type": "MSSSIMLoss", "scales": 1, "l1_weight": 0.2},
        {"type": "PSNRLoss"},
    ],
)
def test_training_with_each_loss(pairs, train_options, write, model, loss):
    train_options["train"]["pixel_opt"] = loss
    train_options["model_type"] = model
    assert cli.main(["train", "-opt", write(train_options)]) == 0
    rows = [row.split(",") for row in (pairs / "experiments/tiny/losses.csv").read_text().splitlines()]
    values = [float(row[rows[0].index("l_pix")]) for row in rows[1:]]
    low, high = (-60, -1) if loss["type"] == "PSNRLoss" else (0, 2)
    assert len(values) == 5 and all(low < value < high for value in values)
    assert Path("experiments/tiny/learning_curve.png").is_file()


def test_psnr_loss_is_the_negative_mean_psnr_of_the_images():
    """Errors of 0.1 and 0.001 everywhere are 20 and 60 dB, 40 on average; the PSNR over all pixels would be 23 dB."""
    target = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    output = target + torch.tensor([0.1, 0.001], dtype=torch.float64)[:, None, None, None]
    assert PSNRLoss(eps=1e-15)(output, target).item() == pytest.approx(-40, abs=1e-3)
    assert PSNRLoss(loss_weight=0.5, eps=1e-15)(output, target).item() == pytest.approx(-20, abs=1e-3)
    assert PSNRLoss(eps=1e-2)(output, target).item() == pytest.approx(
        10 * (math.log10(2e-2) + math.log10(1.0001e-2)) / 2
    )
    with pytest.raises(ValueError, match="eps must be above 0, got 0"):
        PSNRLoss(eps=0)
    with pytest.raises(ValueError, match="loss_weight must not be negative, got -1"):
        PSNRLoss(loss_weight=-1)


def test_psnr_loss_of_equal_images_has_a_finite_gradient():
    output = torch.rand(1, 3, 8, 8).requires_grad_()
    loss = PSNRLoss()(output, output.detach())
    loss.backward()
    assert loss.item() == pytest.approx(-80, abs=1e-4) and output.grad.isfinite().all()


def test_charbonnier_loss_is_the_mean_root_of_square_plus_eps():
    from basicsr.losses import build_loss

    loss = build_loss({"type": "CharbonnierLoss", "eps": 1e-2})
    wanted = ((0.3**2 + 1e-2) ** 0.5 + 1e-2**0.5) / 2
    assert loss(torch.tensor([0.3, 0.0]), torch.zeros(2)).item() == pytest.approx(wanted)


def test_patches_too_small_for_the_loss_are_a_user_error(pairs, train_options, write, capsys):
    train_options["train"]["pixel_opt"] = {"type": "MSSSIMLoss", "scales": 4}
    train_options["model_type"] = "RestorMixerModel"
    assert cli.main(["train", "-opt", write(train_options)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "MS-SSIM: 4 scales need patches of at least 88x88, got 16x16; raise gt_size or lower scales" in error
