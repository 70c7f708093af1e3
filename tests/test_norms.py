"""Running statistics of BatchNorm: stored, restored and frozen."""

import pytest
import torch
from torch import nn
from training_cases import EDSR, batch, build, same, step, weights

from restormixer_arch.models.batch_norm import NormStatistics


def network(seed=0):
    torch.manual_seed(seed)
    layers = nn.InstanceNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.BatchNorm2d(4)
    return nn.Sequential(*layers).train()  # the InstanceNorm keeps no statistics


def statistics(net):
    return {name: value.clone() for name, value in net.named_buffers()}


def test_kept_statistics_are_restored():
    net = network()
    norms, before = NormStatistics(net), statistics(net)
    norms.keep()
    net(torch.rand(2, 3, 8, 8))
    assert not same(statistics(net), before)
    norms.restore()
    assert same(statistics(net), before)


def test_restore_unless_a_flag_is_true():
    net = network()
    norms, before = NormStatistics(net), statistics(net)
    norms.keep()
    net(torch.rand(2, 3, 8, 8))
    after = statistics(net)
    norms.restore(unless=torch.tensor(True))
    assert same(statistics(net), after)
    net(torch.full((2, 3, 8, 8), torch.nan))
    norms.restore(unless=torch.tensor(False))
    assert same(statistics(net), before)


def test_frozen_norms_process_each_image_independently():
    net = network()
    pictures = torch.rand(4, 3, 8, 8)
    net(pictures)
    assert not torch.allclose(net(pictures)[:1], net(pictures[:1]), atol=1e-3)
    NormStatistics(net).freeze()
    before = statistics(net)
    torch.testing.assert_close(net(pictures)[:1], net(pictures[:1]))
    torch.testing.assert_close(net(pictures), net.eval()(pictures))
    assert same(statistics(net), before)


def test_freeze_copies_the_statistics_of_the_ema_network():
    net, average = network(), network(1)
    average(torch.rand(2, 3, 8, 8))
    NormStatistics(net).freeze(average)
    assert same(statistics(net), statistics(average))
    assert not torch.equal(net[1].weight, average[1].weight)


@pytest.mark.parametrize(("share", "after"), [(0, 0), (0.25, 2), (0.5, 5), (1, 10)])
def test_training_freezes_norms_after_the_given_fraction(tmp_path, share, after):
    model = build(tmp_path, freeze_norms_after=share, ema_decay=0.9)
    seen = []
    for iteration in range(1, 11):
        step(model, iteration)
        seen.append(statistics(model.net_g))
    moved = [n for n in range(2, 11) if not same(seen[n - 1], seen[n - 2])]
    # the first frozen iteration copies the statistics of the EMA weights, unless no batch was seen before
    assert moved == [n for n in range(2, 11) if n <= after + bool(after)]
    assert same(seen[-1], statistics(model.net_g_ema)) == (after < 10)
    before = {name: p.clone() for name, p in model.net_g.named_parameters()}
    step(model, 10)
    assert not same(before, dict(model.net_g.named_parameters()))


def test_output_of_frozen_training_does_not_depend_on_other_images_of_the_batch(tmp_path):
    """A pair contributes the same to the loss, regardless of the other pairs in the batch."""
    model = build(tmp_path, freeze_norms_after=0, ema_decay=0)
    data = batch()
    step(model, 1, data)
    before = weights(model)
    outputs = []
    for part in (slice(0, 2), slice(0, 1)):
        model.net_g.load_state_dict(before)
        step(model, 2, {key: value[part] for key, value in data.items()})
        outputs.append(model.output[:1].detach().clone())
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_freezing_has_no_effect_on_a_network_without_norms(tmp_path):
    ends = []
    for share in (None, 0.5):
        model = build(tmp_path, EDSR, freeze_norms_after=share, ema_decay=0.9)
        for iteration in range(1, 9):
            step(model, iteration)
        ends.append(model.net_g.state_dict())
    assert same(*ends)
