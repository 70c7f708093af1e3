"""Gradient accumulation: steps over several batches, their mean gradient, and checkpoints between two steps."""

import pytest
import torch
from training_cases import NETWORKS, SWINIR, batch, build, same, step, weights

from restormixer_arch.basicsr_adapter import register

register.register()


def test_weights_change_at_every_nth_and_the_last_iteration(tmp_path):
    model = build(tmp_path, accumulate=4)
    moved, before = [], weights(model)
    for iteration in range(1, 11):
        step(model, iteration)
        names = [name for name, _ in model.net_g.named_parameters()]
        now = weights(model)
        if any(not torch.equal(before[name], now[name]) for name in names):
            moved.append(iteration)
        before = now
    assert moved == [4, 8, 10]


@pytest.mark.parametrize("count", [2, 3])
def test_step_uses_the_mean_gradient(tmp_path, count):
    """SwinIR has no BatchNorm, so n batches of 2 images and one batch of 2n have the same mean gradient."""
    model = build(tmp_path, SWINIR, accumulate=count, grad_clip=0)
    parts = [batch(number) for number in range(count)]
    for iteration, part in enumerate(parts, start=1):
        step(model, iteration, part)
    whole = build(tmp_path, SWINIR, grad_clip=0)
    step(whole, 1, {key: torch.cat([part[key] for part in parts]) for key in ("lq", "gt")})
    for (name, one), other in zip(model.net_g.named_parameters(), whole.net_g.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert model.get_current_log()["grad_norm"] == pytest.approx(whole.get_current_log()["grad_norm"], rel=1e-4)


def test_incomplete_last_window_is_averaged_over_its_batches(tmp_path):
    model = build(tmp_path, SWINIR, accumulate=4, grad_clip=0, total_iter=6)
    for iteration in range(1, 6):
        step(model, iteration, batch(iteration))
    start = {name: p.detach().clone() for name, p in model.net_g.named_parameters()}
    step(model, 6, batch(6))
    reference = build(tmp_path, SWINIR, grad_clip=0)
    reference.net_g.load_state_dict({**reference.net_g.state_dict(), **start})
    pair = {key: torch.cat([batch(number)[key] for number in (5, 6)]) for key in ("lq", "gt")}
    step(reference, 1, pair)
    norms = [m.get_current_log()["grad_norm"] for m in (model, reference)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_ema_decay_depends_on_steps_instead_of_iterations(tmp_path):
    model = build(tmp_path, accumulate=2, ema_decay=0.9)
    start = weights(model)["decoder.head_half.weight"]
    step(model, 1)
    assert torch.equal(model.net_g_ema.state_dict()["decoder.head_half.weight"], start)
    step(model, 2)
    now = weights(model)["decoder.head_half.weight"]
    decay = 2 / 11  # (1 + 1) / (10 + 1) at step 1
    average = model.net_g_ema.state_dict()["decoder.head_half.weight"]
    torch.testing.assert_close(average, decay * start + (1 - decay) * now)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("at", [3, 4, 5])
def test_resuming_between_two_steps_is_exact(tmp_path, network, at):
    unbroken = build(tmp_path, network, accumulate=3)
    for iteration in range(1, 8):
        step(unbroken, iteration)
    first = build(tmp_path, network, accumulate=3)
    for iteration in range(1, at + 1):
        step(first, iteration)
    torch.save(first.extra_state(), tmp_path / "extra.pth")
    second = build(tmp_path, network, accumulate=3)
    second.net_g.load_state_dict(first.net_g.state_dict())
    second.optimizer_g.load_state_dict(first.optimizer_g.state_dict())
    second.load_extra_state(torch.load(tmp_path / "extra.pth", weights_only=True))
    for iteration in range(at + 1, 8):
        step(second, iteration)
    assert same(weights(unbroken), weights(second))
