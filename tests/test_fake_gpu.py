"""Training steps on a simulated GPU: fake tensors reveal every tensor on a wrong device or of a wrong dtype.

Fake tensors have a device, a dtype and a shape but no values. A step runs completely except for the backward pass, for
which autograd needs a real GPU; the gradients are set to zero instead.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from training_cases import batch, options

from restormixer_arch.basicsr_adapter import register
from restormixer_arch.models import guard
from restormixer_arch.models.restormixer_model import RestorMixerModel
from restormixer_arch.selective_scan import triton_scan

register.register()

GPU = torch.device("cuda", 0)
ITEM = torch.ops.aten._local_scalar_dense.default
SCAN = torch.ops.restormixer.scan_2d.default


class FakeGpu(FakeTensorMode):
    """Return 1 for every value read from a fake tensor, count these reads, and record the inputs of all scans."""

    def __init__(self):
        super().__init__()
        self.scans, self.read = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func == ITEM:
            self.read += 1
            return 1.0 if args[0].is_floating_point() else True
        if func == SCAN:
            self.scans.append(args)
        return super().__torch_dispatch__(func, types, args, kwargs)


class FakeFlags:
    """Replacement for flags that are copied to the CPU; every step is reported as valid."""

    def __init__(self, flags):
        assert (flags.device, flags.shape, flags.dtype) == (GPU, (2,), torch.bool)

    def read(self):
        return [True, True]


@pytest.fixture
def fake_gpu(monkeypatch):
    from basicsr.models.base_model import BaseModel

    original = BaseModel.__init__

    def on_gpu(self, opt):
        original(self, opt)
        self.device = GPU

    monkeypatch.setattr(BaseModel, "__init__", on_gpu)
    monkeypatch.setattr(guard, "Flags", FakeFlags)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # redraws until values fit
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)  # fake parameters are created on the GPU
    monkeypatch.setattr(triton_scan, "unusable_reason", lambda device=None, dtype=None: None)
    with FakeGpu() as mode:
        yield mode


def train_step(model, iteration, monkeypatch):
    lost = []

    def backward(loss):
        lost.append(loss)
        for parameter in model.net_g.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    model.feed_data(batch(iteration))
    model.optimize_parameters(iteration)
    return lost[0]


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
@pytest.mark.parametrize(
    "train",
    [
        {"ema_decay": 0.99},
        {"ema_decay": 0.99, "accumulate": 2, "freeze_norms_after": 0.1, "grad_clip": 0.1, "mixup": 0.2},
        {"checkpointing": True},
    ],
    ids=["plain", "everything", "checkpointing"],
)
def test_training_step_keeps_devices_and_dtypes(fake_gpu, train, amp, tmp_path, monkeypatch):
    opt = options(tmp_path, amp=amp, **train)
    opt["num_gpu"] = 1
    with GPU:
        model = RestorMixerModel(opt)
    fake_gpu.read = 0
    for iteration in (1, 2):
        loss = train_step(model, iteration, monkeypatch)
        assert (loss.device, loss.dtype) == (GPU, torch.float32)
    if not model._waits:
        assert fake_gpu.read == 0  # a read would wait for the GPU
    assert model._waits == ("accumulate" in train) and model.optimizer_g.defaults["fused"]
    networks = [model.net_g, *([model.net_g_ema] if "ema_decay" in train else [])]
    assert {value.device for network in networks for value in network.state_dict().values()} == {GPU}
    assert {p.dtype for p in model.net_g.parameters()} == {torch.float32}
    assert model.output.dtype == torch.float32 and model.output.device == GPU


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_scan_inputs_have_the_expected_dtypes_and_are_not_copied(fake_gpu, amp, tmp_path, monkeypatch):
    """Streams have the autocast dtype, parameters float32, and all strides are supported by the kernels."""
    opt = options(tmp_path, amp=amp)
    opt["num_gpu"] = 1
    with GPU:
        model = RestorMixerModel(opt)
    train_step(model, 1, monkeypatch)
    assert len(fake_gpu.scans) == 8  # S1 and S3 of the EMVM blocks at 1/2 and 1/4 resolution, in encoder and decoder
    stream = torch.bfloat16 if amp == "bf16" else torch.float32
    for x, delta, A, B, C, D, bias, _, backend, keep in fake_gpu.scans:
        assert (backend, keep) == ("triton", True)
        assert {t.dtype for t in (x, delta, B, C)} == {stream} and {t.dtype for t in (A, D, bias)} == {torch.float32}
        assert all(triton_scan._even(tensor) is tensor for tensor in (x, delta, B, C))


def test_mixing_cpu_and_gpu_tensors_is_detected(fake_gpu):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(2) + torch.ones(2, device=GPU)
