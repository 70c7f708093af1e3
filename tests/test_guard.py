"""Non-finite losses, gradients and outputs."""

import logging

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from training_cases import NETWORKS, SWINIR, batch, build, same, step, weights

from restormixer_arch.basicsr_adapter import register
from restormixer_arch.errors import UserError
from restormixer_arch.models import guard, restormixer_model
from restormixer_arch.models.restormixer_model import RestorMixerModel

register.register()

NAN = float("nan")


@pytest.fixture
def log(caplog, monkeypatch):
    """Capture BasicSR's log; the returned function gives its messages."""
    from basicsr.utils import get_root_logger

    monkeypatch.setattr(get_root_logger(), "propagate", True)
    caplog.set_level(logging.WARNING, "basicsr")
    return lambda: [record.getMessage() for record in caplog.records]


def spoiled(key, seed=1):
    data = batch(seed)
    data[key][1, 0, 3, 3] = NAN
    return data


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("key", ["lq", "gt"])
def test_non_finite_batch_changes_nothing_and_is_reported(tmp_path, log, network, key):
    model = build(tmp_path, network, ema_decay=0.9)
    step(model, 1)
    before, average = weights(model), {k: v.clone() for k, v in model.net_g_ema.state_dict().items()}
    moments = [s["step"].clone() for s in model.optimizer_g.state.values()]
    step(model, 2, spoiled(key))
    assert same(before, weights(model)) and same(average, model.net_g_ema.state_dict())
    assert moments == [s["step"] for s in model.optimizer_g.state.values()]
    assert log() == [
        f"Iteration 2: the input {key} is not finite (images: rain/1_0.png, rain/1_1.png); "
        "the step is skipped (1 in a row, 1 overall)"
    ]
    step(model, 3)
    assert not same(before, weights(model)) and model.guard.consecutive == 0
    assert model.get_current_log()["skipped"] == 1 and all(v.isfinite().all() for v in weights(model).values())


def test_training_stops_after_too_many_consecutive_skipped_steps(tmp_path, log):
    model = build(tmp_path, max_skipped=2)
    step(model, 1, spoiled("lq"))
    step(model, 2, spoiled("lq"))
    step(model, 3)
    step(model, 4, spoiled("gt"))
    step(model, 5, spoiled("gt"))
    with pytest.raises(
        UserError,
        match=r"stopped at iteration 6: the input gt is not finite \(images: rain/1_0.png, rain/1_1.png\), and 3 steps "
        r"in a row had to be skipped \(train.max_skipped: 2\)",
    ):
        step(model, 6, spoiled("gt"))
    assert model.guard.total == 5


def test_ten_consecutive_skipped_steps_are_allowed_by_default(tmp_path):
    assert build(tmp_path).guard.limit == 10


@pytest.mark.parametrize(("amp", "accumulate"), [("off", 1), ("bf16", 1), ("off", 2)])
def test_non_finite_gradient_is_reported_by_name(tmp_path, log, amp, accumulate):
    model = build(tmp_path, amp=amp, accumulate=accumulate)
    weight = dict(model.net_g.named_parameters())["decoder.head_half.weight"]
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: p.detach().clone() for name, p in model.net_g.named_parameters()}
    for iteration in range(1, accumulate + 1):
        step(model, iteration)
    assert all(torch.equal(before[name], p) for name, p in model.net_g.named_parameters())
    assert log() == [
        f"Iteration {accumulate}: the gradient of decoder.head_half.weight is not finite; "
        "the step is skipped (1 in a row, 1 overall)"
    ]


def test_non_finite_batch_is_excluded_from_the_mean_gradient(tmp_path):
    model = build(tmp_path, SWINIR, accumulate=3, grad_clip=0)
    step(model, 1, batch(1))
    step(model, 2, spoiled("lq"))
    step(model, 3, batch(3))
    whole = build(tmp_path, SWINIR, grad_clip=0)
    step(whole, 1, {key: torch.cat([batch(number)[key] for number in (1, 3)]) for key in ("lq", "gt")})
    assert model.get_current_log()["grad_norm"] == pytest.approx(whole.get_current_log()["grad_norm"], rel=1e-4)


def test_no_step_if_all_accumulated_batches_are_non_finite(tmp_path):
    model = build(tmp_path, accumulate=2)
    before = weights(model)
    step(model, 1, spoiled("lq"))
    step(model, 2, spoiled("lq"))
    assert same(before, weights(model)) and "grad_norm" not in model.get_current_log()


def test_first_cause_is_reported():
    network = torch.nn.Linear(2, 2)
    good, bad = torch.zeros(1), torch.tensor([NAN])
    call = guard.describe_non_finite
    assert call(network, {"lq": good, "gt": bad}, [bad], {"l_pix": bad}, []) == "the input gt is not finite"
    assert call(network, {"lq": good}, [good, bad], {"l_pix": bad}, []) == "output 1 of the network is not finite"
    assert call(network, {"lq": good}, [good], {"l_pix": bad}, ["a"]) == "the loss l_pix is not finite (images: a)"
    assert call(network, {"lq": good}, [good], {"l_pix": good}, []).startswith("the sum of the losses, or")
    with torch.no_grad():
        network.bias[0] = NAN
    assert call(network, {"lq": good}, [bad], {"l_pix": bad}, []) == "the parameter bias is not finite"
    norms = guard.norms_of([torch.zeros(2, 2), bad.expand(2)])
    assert guard.describe_non_finite_gradient(["weight", "bias"], norms) == "the gradient of bias is not finite"
    overflow = guard.describe_non_finite_gradient(["weight", "bias"], torch.full((2,), 3e38))
    assert overflow == "the norm of the gradient is inf"


def test_gradient_norm_and_clipping():
    tensors = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    norm = torch.linalg.vector_norm(guard.norms_of(tensors))
    assert norm.item() == 5.0 and tensors[0].tolist() == [3.0, 0.0]
    guard.clip(tensors, norm, 10.0)
    assert [t.tolist() for t in tensors] == [[3.0, 0.0], [[4.0]]]
    guard.clip(tensors, norm, 1.0)
    assert tensors[0][0].item() == pytest.approx(0.6, rel=1e-6) and tensors[1].item() == pytest.approx(0.8, rel=1e-6)


class Pairs(Dataset):
    opt = {"name": "pairs"}

    def __len__(self):
        return 3

    def __getitem__(self, index):
        lq = torch.full((3, 16, 16), 0.25)
        if index == 1:
            lq[0, 0, 0] = NAN
        return {"lq": lq, "gt": torch.full((3, 16, 16), 0.5), "lq_path": f"x/{index}.png"}


def test_non_finite_validation_output_gives_nan_psnr(tmp_path, log):
    model = build(tmp_path, SWINIR)
    model.validation(DataLoader(Pairs(), batch_size=1), 7, None, save_img=False)
    assert torch.isnan(torch.tensor(model.last_means["pairs"]["psnr"]))
    assert model.best_metric_results["pairs"]["psnr"]["iter"] == -1  # no best value
    assert log() == [
        "Validation pairs: the output for 1 of 3 images is not finite (1.png); "
        "they are saved as black images, and the metrics are NaN"
    ]


def test_skipped_step_counts_are_saved(tmp_path):
    model = build(tmp_path)
    step(model, 1, spoiled("lq"))
    other = build(tmp_path)
    other.load_extra_state(model.extra_state())
    assert (other.guard.total, other.guard.consecutive) == (1, 1)


# ------------------------------------------------------------------ queued steps, as on a GPU


@pytest.fixture
def queued(monkeypatch):
    """Make a model on the CPU queue its steps as on a GPU; its fused optimizer supports the same flags."""
    monkeypatch.setattr(RestorMixerModel, "_waits", False)
    return {"optim_g": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.1, "fused": True}, "ema_decay": 0.9}


def moments(model):
    return {(n, k): v.clone() for n, s in enumerate(model.optimizer_g.state.values()) for k, v in s.items()}


def test_queued_steps_equal_immediate_steps(tmp_path, queued, monkeypatch):
    model = build(tmp_path, **queued)
    for iteration in range(1, 4):
        step(model, iteration)
    assert model.guard._queued.iteration == 3
    log = model.get_current_log()
    assert all(isinstance(value, torch.Tensor) for value in log.values())
    monkeypatch.setattr(RestorMixerModel, "_waits", True)
    other = build(tmp_path, **queued)
    for iteration in range(1, 4):
        step(other, iteration)
    assert same(weights(model), weights(other)) and same(model.net_g_ema.state_dict(), other.net_g_ema.state_dict())
    assert {name: value.item() for name, value in log.items()} == other.get_current_log()


@pytest.mark.parametrize("key", ["lq", "gt"])
def test_queued_non_finite_batch_changes_nothing_and_is_reported_later(tmp_path, log, queued, key):
    model = build(tmp_path, **queued)
    step(model, 1)
    before, state = weights(model), moments(model)
    step(model, 2, spoiled(key))
    assert same(before, weights(model)) and same(state, moments(model)) and log() == []
    assert all(v.isfinite().all() for v in model.net_g_ema.state_dict().values())
    step(model, 3)
    assert log() == [
        f"Iteration 2: the input {key} is not finite (images: rain/1_0.png, rain/1_1.png); "
        "the step is skipped (1 in a row, 1 overall)"
    ]
    assert not same(before, weights(model))
    model.extra_state()  # a checkpoint waits for the queued step
    assert model.guard.consecutive == 0 and model.guard.total == 1 and model.guard._queued is None


def test_queued_non_finite_gradients_are_reported_and_stop_training(tmp_path, log, queued):
    model = build(tmp_path, max_skipped=1, **queued)
    weight = dict(model.net_g.named_parameters())["decoder.head_half.weight"]
    weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: p.detach().clone() for name, p in model.net_g.named_parameters()}
    step(model, 1)
    step(model, 2)
    with pytest.raises(UserError, match="iteration 2: the gradient of decoder.head_half.weight is not finite, and 2"):
        step(model, 3)
    assert all(torch.equal(before[name], p) for name, p in model.net_g.named_parameters())


def test_last_step_is_counted_immediately(tmp_path, queued):
    model = build(tmp_path, max_skipped=0, **queued)
    with pytest.raises(UserError, match="stopped at iteration 10: the input lq is not finite"):
        step(model, 10, spoiled("lq"))


@pytest.mark.parametrize("waits", [True, False])
def test_float16_overflows_are_not_counted_until_the_loss_scale_is_below_1(tmp_path, log, queued, waits, monkeypatch):
    """This runs on the CPU, which supports float16 too."""
    monkeypatch.setattr(restormixer_model, "read_amp", lambda options, device: "fp16")
    monkeypatch.setattr(RestorMixerModel, "_waits", waits)
    model = build(tmp_path, max_skipped=0, **queued)
    model.precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    weight = dict(model.net_g.named_parameters())["decoder.head_half.weight"]
    handle = weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: p.detach().clone() for name, p in model.net_g.named_parameters()}
    for iteration in (1, 2):  # the scale is halved to 2, then to 1
        step(model, iteration)
    model.guard.count_queued()
    assert all(torch.equal(before[name], p) for name, p in model.net_g.named_parameters())
    assert log() == [] and model.guard.total == 0 and model.precision.scaler.get_scale() == 1.0
    with pytest.raises(UserError, match="stopped at iteration 3: the gradient of decoder.head_half.weight"):
        step(model, 3)
        model.guard.count_queued()
    handle.remove()
    step(model, 4)
    assert not all(torch.equal(before[name], p) for name, p in model.net_g.named_parameters())
