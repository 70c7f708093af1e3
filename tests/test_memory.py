"""Gradient checkpointing, torch.compile, and error messages when memory runs out."""

import pytest
import torch
from training_cases import EDSR, NETWORKS, SWINIR, batch, build, same, step, weights

from restormixer_arch.basicsr_adapter import register
from restormixer_arch.errors import UserError
from restormixer_arch.models import memory, restormixer_model

register.register()


def saved_for_backward(model):
    """Return the total bytes of the distinct tensors that a forward pass saves for the backward pass."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.net_g(batch()["lq"])
    return sum(kept.values())


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_checkpointing_saves_memory_and_trains_identically(tmp_path, network, amp):
    plain, checkpointed = (build(tmp_path, network, amp=amp, checkpointing=on) for on in (False, True))
    assert saved_for_backward(checkpointed) < 0.7 * saved_for_backward(plain)
    for model in (plain, checkpointed):
        step(model, 1)
    gradients = [{name: p.grad for name, p in m.net_g.named_parameters()} for m in (plain, checkpointed)]
    assert same(*gradients)
    step(plain, 2)
    step(checkpointed, 2)
    assert same(weights(plain), weights(checkpointed))


def test_number_of_checkpointed_blocks(tmp_path):
    model = build(tmp_path)
    assert memory.set_checkpointing(model.net_g) == 4  # one M-T unit in each of four stages
    assert model.net_g.set_checkpointing(False) == 4
    assert not any(getattr(module, "checkpointing", False) for module in model.net_g.modules())
    assert memory.set_checkpointing(build(tmp_path, SWINIR).net_g) == 2
    assert memory.set_checkpointing(build(tmp_path, EDSR).net_g) == 2


def test_ema_averages_a_shared_tensor_once(tmp_path):
    model = build(tmp_path, EDSR, ema_decay=0.5)
    for network in (model.net_g, model.net_g_ema):
        network.again = network.conv_first
    old = model.net_g_ema.conv_first.weight.clone()
    with torch.no_grad():
        model.net_g.conv_first.weight.add_(1)
    model.model_ema(0.5)
    torch.testing.assert_close(model.net_g_ema.conv_first.weight, old + 0.5)


def test_checkpointing_a_network_without_suitable_blocks_is_rejected(tmp_path):
    class Block(torch.nn.Sequential):
        pass

    def block():
        return Block(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3))

    with pytest.raises(UserError, match="train.checkpointing: Sequential has no blocks"):
        memory.set_checkpointing(torch.nn.Sequential(torch.nn.Sequential(block(), block())))  # has BatchNorm
    with pytest.raises(UserError, match="train.checkpointing: Linear has no blocks"):
        memory.set_checkpointing(torch.nn.Linear(1, 1))


@pytest.mark.parametrize(
    "network", [pytest.param(NETWORKS["RestorMixer"], marks=pytest.mark.slow), NETWORKS["SwinIR"]], ids=NETWORKS
)
def test_compiled_training_matches_eager_training(tmp_path, network, monkeypatch):
    monkeypatch.setattr(restormixer_model, "COMPILE_BACKEND", "aot_eager")
    eager, compiled = (build(tmp_path, network, compile=on, ema_decay=0.9) for on in (False, True))
    names = eager.net_g.state_dict().keys()
    for model in (eager, compiled):
        step(model, 1)
    assert compiled.net_g.state_dict().keys() == names  # without the prefix _orig_mod
    assert compiled.get_current_log()["l_pix"] == pytest.approx(eager.get_current_log()["l_pix"], rel=1e-5)
    for (name, one), other in zip(eager.net_g.named_parameters(), compiled.net_g.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)
    compiled.save(0, 1)
    build(tmp_path, network).load_network(eager.net_g, tmp_path / "net_g_1.pth", strict=True)
    compiled.feed_data({"lq": torch.rand(1, 3, 24, 32)})  # another size is not recompiled
    compiled.test()
    assert compiled.output.shape == (1, 3, 24, 32)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_default_compile_backend_gives_the_same_loss(tmp_path):
    model = build(tmp_path, compile=True)
    step(model, 1)
    reference = build(tmp_path)
    step(reference, 1)
    assert model.get_current_log()["l_pix"] == pytest.approx(reference.get_current_log()["l_pix"], rel=1e-4)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_message_names_the_options_to_change(tmp_path, error, monkeypatch):
    model = build(tmp_path)

    def forward(lq):
        raise error

    monkeypatch.setattr(model.net_g, "forward", forward)
    with pytest.raises(memory.OutOfMemory) as caught:
        step(model, 3)
    assert str(caught.value) == (
        "out of memory at iteration 3: lower datasets.train.batch_size_per_gpu (now 2) or datasets.train.gt_size "
        "(now 16), or set train.checkpointing: true, train.amp: bf16, train.accumulate (now 1) higher, and a batch "
        "smaller by the same factor"
    )
    model.feed_data({"lq": torch.rand(1, 3, 24, 32)})
    with pytest.raises(UserError, match="out of memory restoring an image of 24 x 32: set val.tile or val.max_memory"):
        model.test()


def test_advice_omits_options_that_are_already_in_use():
    train = {"amp": "bf16", "checkpointing": True, "accumulate": 2, "progressive": {"iters": [1]}}
    assert memory.training_advice({"train": train}) == (
        "lower train.progressive.gt_sizes and batch_sizes, or set train.accumulate (now 2) higher, and a batch smaller "
        "by the same factor"
    )


def test_other_runtime_errors_are_not_converted(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), memory.explain_out_of_memory("at all", "nothing"):
        raise RuntimeError("shapes")
    assert not memory.is_out_of_memory(ValueError("out of memory"))
