"""The multi-scale dual-domain loss, by hand and by its definition."""

import pytest
import torch
import torch.nn.functional as F

from restormixer_arch.models.losses import MultiScaleDualDomainLoss, dual_domain_loss


def test_by_hand():
    """Difference [1, -3]: L1 is 2; its spectrum is [-2, 4], whose mean over real and imaginary parts is 1.5."""
    output = torch.tensor([[[[1.0, 0.0]]]])
    target = torch.tensor([[[[0.0, 3.0]]]])
    assert dual_domain_loss(output, target, 0.1).item() == pytest.approx(2 + 0.1 * 1.5)
    assert dual_domain_loss(output, target, 0.0).item() == pytest.approx(2)


def test_sum_over_scales_against_the_stacked_form():
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


def test_one_tensor_is_one_scale():
    output, target = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(MultiScaleDualDomainLoss()(output, target), dual_domain_loss(output, target, 0.1))


def test_targets_are_not_antialiased():
    """Quartering without antialiasing takes the mean of the two middle pixels and ignores the outer ones."""
    target = torch.tensor([[[[9.0, 1.0, 3.0, 9.0]]]]).expand(1, 1, 4, 4)
    loss = MultiScaleDualDomainLoss(fft_weight=0.0)([torch.zeros(1, 1, 1, 1)], target)
    assert loss.item() == pytest.approx(2.0)


def test_float32_under_autocast():
    output = torch.full((1, 1, 32, 32), 0.5, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = MultiScaleDualDomainLoss()(output, torch.zeros(1, 1, 32, 32))
    # The spectrum of a constant is one bin of 0.5 * 1024, its mean over 2048 numbers 0.25.
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5 + 0.1 * 0.25)
    loss.backward()
    assert output.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("option", "value"), [("loss_weight", -1.0), ("fft_weight", -0.1)])
def test_negative_weights(option, value):
    with pytest.raises(ValueError, match=f"{option} must not be negative, got {value}"):
        MultiScaleDualDomainLoss(**{option: value})
