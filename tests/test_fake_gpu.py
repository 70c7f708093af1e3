"""Training steps on a GPU that is not there: fake tensors show every tensor on a wrong device or of a wrong dtype.

Fake tensors have a device, a dtype and a shape but no numbers. All of a step runs but the backward pass, for which
autograd needs a real GPU; gradients are filled in instead.
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
    """Reads any number from a fake tensor as one, counts these, and keeps the inputs of all scans."""

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
    """In place of flags that are copied to the CPU: a step is fine."""

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
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **_: tensor)  # draws until numbers fit
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)  # fake parameters cannot move: they start there
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
def test_a_training_step(fake_gpu, train, amp, tmp_path, monkeypatch):
    opt = options(tmp_path, amp=amp, **train)
    opt["num_gpu"] = 1
    with GPU:
        model = RestorMixerModel(opt)
    fake_gpu.read = 0
    for iteration in (1, 2):
        loss = train_step(model, iteration, monkeypatch)
        assert (loss.device, loss.dtype) == (GPU, torch.float32)
    if not model._waits:
        assert fake_gpu.read == 0  # nothing waits for the GPU
    assert model._waits == ("accumulate" in train) and model.optimizer_g.defaults["fused"]
    networks = [model.net_g, *([model.net_g_ema] if "ema_decay" in train else [])]
    assert {value.device for network in networks for value in network.state_dict().values()} == {GPU}
    assert {p.dtype for p in model.net_g.parameters()} == {torch.float32}
    assert model.output.dtype == torch.float32 and model.output.device == GPU


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_scans_of_a_step_read_their_inputs_where_they_lie(fake_gpu, amp, tmp_path, monkeypatch):
    """Streams in the dtype of autocast, parameters in float32, and strides that no kernel needs a copy for."""
    opt = options(tmp_path, amp=amp)
    opt["num_gpu"] = 1
    with GPU:
        model = RestorMixerModel(opt)
    train_step(model, 1, monkeypatch)
    assert len(fake_gpu.scans) == 8  # S1 and S3 of the EMVM blocks at 1/2 and 1/4, in encoder and decoder
    stream = torch.bfloat16 if amp == "bf16" else torch.float32
    for x, delta, A, B, C, D, bias, _, backend, keep in fake_gpu.scans:
        assert (backend, keep) == ("triton", True)
        assert {t.dtype for t in (x, delta, B, C)} == {stream} and {t.dtype for t in (A, D, bias)} == {torch.float32}
        assert all(triton_scan._even(tensor) is tensor for tensor in (x, delta, B, C))


def test_a_tensor_left_on_the_cpu_is_found(fake_gpu):
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        torch.ones(2) + torch.ones(2, device=GPU)
