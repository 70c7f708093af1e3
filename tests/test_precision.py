"""Mixed precision: which parts use 16 bits and which float32, and the loss scale of float16."""

import pytest
import torch
from training_cases import NETWORKS, build, same, step, weights

from restormixer_arch.basicsr_adapter import register
from restormixer_arch.errors import UserError
from restormixer_arch.models.precision import Precision, cudnn_benchmark_disabled, read_amp, set_tf32

register.register()

CPU = torch.device("cpu")


def seen_dtypes(model, kinds):
    """Return the output dtypes of all modules of the given types in one training step."""
    seen = set()
    for module in model.net_g.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda _, inputs, output: seen.add(output.dtype))
    step(model)
    return seen


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_bf16_keeps_norms_weights_gradients_and_output_in_float32(tmp_path, network):
    kinds = torch.nn.Linear
    assert seen_dtypes(build(tmp_path, network, amp="bf16"), kinds) == {torch.bfloat16}
    assert seen_dtypes(build(tmp_path, network, amp="off"), kinds) == {torch.float32}
    model = build(tmp_path, network, amp="bf16")
    assert seen_dtypes(model, torch.nn.LayerNorm) == {torch.float32}
    assert {p.dtype for p in model.net_g.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.net_g.parameters()} == {torch.float32}
    assert model.output.dtype == torch.float32


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_bf16_training_step_is_close_to_float32(tmp_path, network):
    models = [build(tmp_path, network, amp=amp) for amp in ("off", "bf16")]
    for model in models:
        step(model)
    exact, rounded = (model.get_current_log() for model in models)
    assert rounded["l_pix"] == pytest.approx(exact["l_pix"], rel=0.02) and rounded["l_pix"] != exact["l_pix"]
    assert rounded["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.1)


def test_scan_receives_bf16_inputs_and_float32_state_matrix(tmp_path, monkeypatch):
    from restormixer_arch import emvm

    scan, seen = emvm.selective_scan_2d, []

    def recorded(x, delta, A, **rest):
        seen.append((x.dtype, A.dtype))
        return scan(x, delta, A, **rest)

    monkeypatch.setattr(emvm, "selective_scan_2d", recorded)
    step(build(tmp_path, amp="bf16"))
    assert set(seen) == {(torch.bfloat16, torch.float32)}


def test_validation_runs_in_float32(tmp_path):
    model = build(tmp_path, amp="bf16")
    model.feed_data({"lq": torch.rand(1, 3, 16, 16)})
    model.test()
    with torch.no_grad():
        wanted = model.net_g.eval()(model.lq)
    assert torch.equal(model.output, wanted)


def test_fp16_requires_a_gpu(tmp_path):
    with pytest.raises(UserError, match=r"train.amp: 'fp16' needs a CUDA device, this is cpu; use 'bf16' or 'off'"):
        build(tmp_path, amp="fp16")
    assert read_amp({"amp": "fp16"}, torch.device("cuda")) == "fp16"
    assert read_amp({"amp": False}, CPU) == read_amp({}, CPU) == "off"  # an unquoted off in YAML


def test_unknown_precision_is_rejected():
    with pytest.raises(UserError, match=r"train.amp: 'bf61' is none of off, bf16, fp16. Did you mean 'bf16'\?"):
        Precision("bf61", CPU)


def test_fp16_loss_scale_is_halved_on_overflow_and_saved(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], 0.5)
    precision = Precision("fp16", CPU)
    assert precision.scaler.get_scale() == 65536.0
    precision.backward((parameter * torch.tensor([1.0, 2.0])).sum())
    assert parameter.grad.tolist() == [65536.0, 131072.0]
    precision.unscale(optimizer)
    assert parameter.grad.tolist() == [1.0, 2.0]
    precision.step(optimizer)
    assert parameter.tolist() == [0.5, 0.0]
    parameter.grad = torch.full((2,), float("inf"))
    precision.unscale(optimizer)
    precision.skip()
    assert precision.scaler.get_scale() == 32768.0 and parameter.tolist() == [0.5, 0.0]
    other = Precision("fp16", CPU)
    other.load_extra_state(precision.extra_state())
    assert other.scaler.get_scale() == 32768.0
    other.load_extra_state({})  # from a training run without fp16
    assert other.scaler.get_scale() == 32768.0


def test_fp16_training_resumes_with_its_loss_scale(tmp_path, monkeypatch):
    """This runs on the CPU, which also supports float16."""
    from restormixer_arch.models import restormixer_model

    monkeypatch.setattr(restormixer_model, "read_amp", lambda options, device: "fp16")
    model = build(tmp_path)
    before = weights(model)
    step(model)
    assert not same(before, weights(model)) and model.get_current_log()["grad_norm"] < 1e3  # unscaled
    model.precision.scaler.update(1024.0)
    other = build(tmp_path)
    other.load_extra_state(model.extra_state())
    assert other.precision.scaler.get_scale() == 1024.0


def test_accumulated_gradients_are_saved_without_the_loss_scale(tmp_path):
    """A run with a loss scale of 1024 is resumed without one."""
    scaled, plain = (build(tmp_path, accumulate=2) for _ in range(2))
    scaled.precision.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for model in (scaled, plain):
        step(model, 1)
    wanted = {name: p.grad.clone() for name, p in plain.net_g.named_parameters() if p.grad is not None}
    assert any(gradient.any() for gradient in wanted.values())
    resumed = build(tmp_path, accumulate=2)
    resumed.load_extra_state(scaled.extra_state())
    for name, parameter in resumed.net_g.named_parameters():
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-7)


def test_set_tf32_changes_and_reports_the_setting(monkeypatch):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    try:
        assert set_tf32(True) == "TF32: on in convolutions, on in matrix products (train.tf32)."
        assert set_tf32(False) == set_tf32(None) == "TF32: off in convolutions, off in matrix products (train.tf32)."
        assert not cudnn.allow_tf32 and not matmul.allow_tf32
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def test_validation_disables_the_cudnn_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with pytest.raises(RuntimeError), cudnn_benchmark_disabled():
        assert not torch.backends.cudnn.benchmark
        raise RuntimeError
    assert torch.backends.cudnn.benchmark
    model, seen = build(tmp_path), []
    monkeypatch.setattr(model.net_g, "forward", lambda x: seen.append(torch.backends.cudnn.benchmark) or x)
    model.feed_data({"lq": torch.rand(1, 3, 16, 16)})
    model.test()
    assert seen == [False] and torch.backends.cudnn.benchmark
