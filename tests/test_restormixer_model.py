"""RestorMixerModel on the CPU: training steps, optimizer groups, EMA, metrics of the input, loading of weights."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import training_cases
from safetensors.torch import save_file
from tiny_network import wake
from torch import nn
from torch.utils.data import DataLoader, Dataset
from training_cases import SWINIR

from restormixer_arch.basicsr_adapter import register
from restormixer_arch.basicsr_adapter.padded import Padded
from restormixer_arch.errors import UserError
from restormixer_arch.layers import pad_to_multiple
from restormixer_arch.models.restormixer_model import RestorMixerModel

register.register()

from basicsr.metrics import calculate_metric  # noqa: E402 - BasicSR can be imported only now


def options(tmp_path, **train):
    return training_cases.options(tmp_path, **{"ema_decay": 0.9, **train})


def build(tmp_path, **train):
    return training_cases.build(tmp_path, **{"ema_decay": 0.9, **train})


def batch(scale=1):
    rng = torch.Generator().manual_seed(1)
    gt = torch.rand(2, 3, 16 * scale, 16 * scale, generator=rng)
    return {"lq": torch.rand(2, 3, 16, 16, generator=rng), "gt": gt}


def step(model, iteration=1):
    model.feed_data(batch())
    model.optimize_parameters(iteration)


def test_three_steps_change_every_parameter(tmp_path):
    """The last scale and those of the RDCNN blocks start at 0, which delays the gradients of the layers before them."""
    model = build(tmp_path)
    before = {name: p.clone() for name, p in model.net_g.named_parameters()}
    for iteration in (1, 2, 3):
        step(model, iteration)
    log = model.get_current_log()
    assert np.isfinite(log["l_pix"]) and log["grad_norm"] > 0
    still = [name for name, p in model.net_g.named_parameters() if torch.equal(p, before[name])]
    assert still == []


def test_gradient_is_clipped(tmp_path):
    model = build(tmp_path, grad_clip=0.01)
    step(model)
    norms = torch.stack([p.grad.norm() for p in model.net_g.parameters()])
    assert norms.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert model.get_current_log()["grad_norm"] > 0.01
    free = build(tmp_path, grad_clip=0)
    step(free)
    norms = torch.stack([p.grad.norm() for p in free.net_g.parameters()])
    assert norms.norm().item() == pytest.approx(free.get_current_log()["grad_norm"], rel=1e-3)


def test_default_gradient_clip_is_that_of_related_networks(tmp_path):
    assert build(tmp_path).grad_clip == 0.01


def test_weight_decay_applies_only_to_layer_weights_and_projections(tmp_path):
    model = build(tmp_path)
    decayed, spared = model.optimizer_g.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in model.net_g.named_parameters()}
    decayed, spared = ({names[id(p)] for p in group["params"]} for group in (decayed, spared))
    assert {name.rpartition(".")[2] for name in decayed} == {"weight", "x_proj", "dt_proj"}
    assert {"A_log", "D_skip", "dt_bias", "bias", "skip_scale1"} <= {name.rpartition(".")[2] for name in spared}
    assert len(decayed) + len(spared) == len(names)


@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_optimizers_are_built_without_changing_the_options(tmp_path, kind):
    opt = options(tmp_path, optim_g={"type": kind, "lr": 2e-4, "betas": [0.5, 0.9]})
    kept = copy.deepcopy(opt["train"]["optim_g"])
    model = RestorMixerModel(opt)
    assert type(model.optimizer_g) is getattr(torch.optim, kind)
    assert model.optimizer_g.param_groups[0]["lr"] == 2e-4
    assert opt["train"]["optim_g"] == kept  # the shared options are not modified


def test_unknown_optimizer_is_rejected(tmp_path):
    with pytest.raises(UserError, match=r"'AdmW' is none of Adam, AdamW. Did you mean 'AdamW'\?"):
        build(tmp_path, optim_g={"type": "AdmW", "lr": 1e-3})


def test_ema_warms_up_and_includes_buffers(tmp_path):
    model = build(tmp_path)
    start = {name: v.clone() for name, v in model.net_g.state_dict().items()}
    step(model, 1)
    now, average = model.net_g.state_dict(), model.net_g_ema.state_dict()
    decay = 2 / 11  # (1 + 1) / (10 + 1), below 0.9
    for name in ("encoder.stem.0.conv.weight", "encoder.stem.0.norm.running_mean"):
        assert not torch.equal(now[name], start[name])
        torch.testing.assert_close(average[name], decay * start[name] + (1 - decay) * now[name])
    assert average["encoder.stem.0.norm.num_batches_tracked"] == 1


def test_ema_decay_never_exceeds_the_option(tmp_path):
    model = build(tmp_path, ema_decay=0.1)
    name = "encoder.stem.0.conv.weight"
    start = model.net_g.state_dict()[name].clone()
    step(model, 1)
    wanted = 0.1 * start + 0.9 * model.net_g.state_dict()[name]  # the warm-up would give 2 / 11
    torch.testing.assert_close(model.net_g_ema.state_dict()[name], wanted)


def test_other_losses_use_only_the_full_resolution(tmp_path):
    model = build(tmp_path, pixel_opt={"type": "L1Loss", "loss_weight": 1.0})
    data = batch()
    model.feed_data(data)
    with torch.no_grad():
        wanted = (model.net_g.forward_multiscale(data["lq"])[-1] - data["gt"]).abs().mean()
    model.optimize_parameters(1)
    assert model.get_current_log()["l_pix"] == pytest.approx(wanted.item(), rel=1e-5)


class Pairs(Dataset):
    opt = {"name": "pairs"}

    def __len__(self):
        return 2

    def __getitem__(self, index):
        rng = torch.Generator().manual_seed(index)
        gt = torch.rand(3, 16, 16, generator=rng)
        return {"lq": (gt + 0.1).clamp(0, 1), "gt": gt, "lq_path": f"{index}.png"}


def test_validation_measures_input_and_result(tmp_path):
    model = build(tmp_path)
    model.best_metric_results = {}
    # The network is the identity: result and input must have the same PSNR.
    torch.nn.init.zeros_(model.net_g_ema.decoder.head_full.norm.weight)
    loader = DataLoader(Pairs(), batch_size=1)
    model.validation(loader, 7, None, save_img=True)
    lq_psnr, psnr = model.gain()["pairs"]["psnr"]
    metric = {"type": "calculate_psnr", "crop_border": 0}
    values = []
    for pair in (Pairs()[0], Pairs()[1]):
        lq, gt = ((255 * pair[key]).round().byte().permute(1, 2, 0).numpy() for key in ("lq", "gt"))
        values.append(calculate_metric({"img": lq, "img2": gt}, metric))
    wanted = np.mean(values)
    assert lq_psnr == pytest.approx(wanted, abs=1e-6)
    assert psnr == pytest.approx(lq_psnr, abs=1e-6)
    assert (tmp_path / "pictures" / "0" / "0_7.png").is_file()
    # A second validation measures the network again, but not the input.
    torch.nn.init.ones_(model.net_g_ema.decoder.head_full.norm.bias)
    model.validation(loader, 8, None, save_img=False)
    assert model.gain()["pairs"]["psnr"][0] == lq_psnr
    assert model.gain()["pairs"]["psnr"][1] < lq_psnr - 3


def test_saved_weights_give_the_same_output(tmp_path):
    model = build(tmp_path)
    step(model)
    model.save(0, 5)
    x = torch.rand(1, 3, 8, 8)
    model.net_g.eval()
    for key, net in (("params", model.net_g), ("params_ema", model.net_g_ema)):
        other = build(tmp_path)
        other.load_network(other.net_g, tmp_path / "net_g_5.pth", True, key)
        assert torch.equal(other.net_g.eval()(x), net(x))


def test_safetensors_with_module_prefix_are_loaded(tmp_path):
    model = build(tmp_path)
    save_file({f"module.{k}": v for k, v in model.net_g.state_dict().items()}, tmp_path / "net.safetensors")
    other = build(tmp_path)
    torch.nn.init.zeros_(other.net_g.encoder.stem[0].conv.weight)
    other.load_network(other.net_g, tmp_path / "net.safetensors")
    assert torch.equal(other.net_g.encoder.stem[0].conv.weight, model.net_g.encoder.stem[0].conv.weight)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("net.pth", b"not a checkpoint", r"net.pth: cannot be read as PyTorch weights"),
        ("net.safetensors", b"not a checkpoint", r"net.safetensors: cannot be read as safetensors"),
        ("nte_g.pth", b"", r"net_g.pth: does not exist. Did you mean '.*nte_g.pth'\?"),
    ],
)
def test_unreadable_weights_are_rejected(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    asked = "net_g.pth" if "mean" in message else name
    model = build(tmp_path)
    with pytest.raises(UserError, match=message):
        model.load_network(model.net_g, tmp_path / asked)


def test_weights_of_another_network_are_rejected(tmp_path):
    torch.save({"params": {"conv.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    model = build(tmp_path)
    with pytest.raises(
        UserError, match=r"other.pth: does not fit the network of network_g: missing: \d+ tensors, first '"
    ):
        model.load_network(model.net_g, tmp_path / "other.pth")
    torch.save({"iter": 3}, tmp_path / "state.pth")
    with pytest.raises(UserError, match=r"state.pth: holds no network weights"):
        model.load_network(model.net_g, tmp_path / "state.pth")


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # BasicSR's SwinIR
@pytest.mark.parametrize("val", [{}, {"tile": 80, "tile_overlap": 16}])
def test_network_with_windows_restores_images_of_any_size(tmp_path, val):
    opt = options(tmp_path, ema_decay=0, pixel_opt={"type": "L1Loss"})
    opt["network_g"], opt["val"] = dict(SWINIR), opt["val"] | val
    model = RestorMixerModel(opt)
    image = torch.rand(1, 3, 90, 21, generator=torch.Generator().manual_seed(0))
    model.lq = image
    model.test()
    assert model.output.shape == image.shape
    if not val:
        with torch.no_grad():
            whole = model.net_g.eval()(pad_to_multiple(image, 8))
        assert torch.equal(model.output, whole[..., :90, :21])
        model.lq = image[..., :16, :16]
        model.test()
        with torch.no_grad():
            assert torch.equal(model.output, model.net_g.eval()(image[..., :16, :16]))


def test_scale_must_equal_the_upscale_of_the_network(tmp_path):
    opt = options(tmp_path)
    opt["scale"] = 2
    with pytest.raises(UserError, match=r"scale: must equal network_g.upscale \(1\), got 2"):
        RestorMixerModel(opt)


def test_empty_validation_dataset_is_rejected(tmp_path):
    class Empty(Pairs):
        def __len__(self):
            return 0

    with pytest.raises(UserError, match="pairs has no images"):
        build(tmp_path).validation(DataLoader(Empty()), 1, None)


# --- tiles -----------------------------------------------------------------------------------------------------------


class LargePicture(Dataset):
    opt = {"name": "large"}

    def __len__(self):
        return 1

    def __getitem__(self, index):
        picture = torch.rand(3, 200, 230, generator=torch.Generator().manual_seed(2))
        return {"lq": picture, "gt": picture, "lq_path": "large.png"}


def validated(tmp_path, **val):
    """Validate with these keys of ``val``, and return the model and the sizes of its network's inputs."""
    opt = options(tmp_path)
    opt["val"] = {**opt["val"], **val}
    torch.manual_seed(0)
    model = RestorMixerModel(opt)
    for net in (model.net_g, model.net_g_ema):
        wake(net)
    sizes, forward = [], model.net_g_ema.forward

    def noted(x):
        sizes.append(tuple(x.shape[-2:]))
        return forward(x)

    model.net_g_ema.forward = noted
    model.nondist_validation(DataLoader(LargePicture()), 1, None, save_img=False)
    return model, sizes


def test_validation_in_tiles(tmp_path):
    whole, sizes = validated(tmp_path)
    assert sizes == [(200, 230)] and whole.restorer is None
    tiled, sizes = validated(tmp_path, tile=192, tile_overlap=64)
    assert sizes == [(192, 192), (192, 102), (72, 192), (72, 102)]
    psnr = whole.last_means["large"]["psnr"]
    assert tiled.last_means["large"]["psnr"] == pytest.approx(psnr, abs=0.1) and psnr < 50
    assert tiled.net_g.training
    step(tiled)  # training continues
    assert np.isfinite(tiled.get_current_log()["l_pix"])


def test_non_finite_output_in_tiles_is_measured_as_nan(tmp_path):
    """As without tiles, the metrics are NaN, and training continues."""
    opt = options(tmp_path)
    opt["val"] = {**opt["val"], "tile": 192, "tile_overlap": 64}
    model = RestorMixerModel(opt)
    for broken in (torch.nan, torch.inf):
        model.net_g_ema.forward = lambda x, value=broken: torch.full_like(x, value)
        model.nondist_validation(DataLoader(LargePicture()), 1, None, save_img=False)
        assert np.isnan(model.last_means["large"]["psnr"])


def test_batchnorm_is_synchronized_between_gpus():
    """Uses stand-ins for the models. On the CPU, torch does not support this, and a note reports it."""
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    on_gpu = SimpleNamespace(device=torch.device("cuda"), is_train=True)
    assert type(RestorMixerModel._with_common_statistics(on_gpu, net)[1]) is nn.SyncBatchNorm
    on_cpu = SimpleNamespace(device=torch.device("cpu"), is_train=True)
    assert RestorMixerModel._with_common_statistics(on_cpu, net) is net


def test_validation_within_a_memory_budget(tmp_path):
    model, sizes = validated(tmp_path, max_memory="100G")
    assert sizes[-1] == (200, 230) and (128, 128) in sizes  # tiles for measuring come first
    with pytest.raises(UserError, match="max-memory: 0.00 GB is not enough for 230 x 200 pixels"):
        validated(tmp_path, max_memory="1M")


def test_validation_images_remain_on_the_cpu_with_tiles(tmp_path):
    """A complete image is not moved to the device, here torch's meta device, which would lose its values."""
    model, _ = validated(tmp_path, tile=192)
    model.device = torch.device("meta")
    model.validating = True
    model.feed_data(next(iter(DataLoader(LargePicture()))))
    assert model.lq.device.type == model.gt.device.type == "cpu"
    model.validating = False
    model.feed_data(next(iter(DataLoader(LargePicture()))))
    assert model.lq.device.type == "meta"


def test_too_small_tile_is_rejected_at_the_start(tmp_path):
    with pytest.raises(UserError, match="tile: 100 is too small for an overlap of 64, expected at least 128"):
        validated(tmp_path, tile=100, tile_overlap=64)


# ------------------------------------------------------------------ several devices and processes


def test_several_gpus_need_a_launcher(tmp_path):
    opt = options(tmp_path) | {"num_gpu": 4}
    with pytest.raises(UserError, match=r"num_gpu: 4 needs a process for each GPU; start with torchrun --nproc_per_n"):
        RestorMixerModel(opt)


def test_outputs_that_no_loss_uses_are_not_computed(tmp_path):
    every, last = build(tmp_path), build(tmp_path, pixel_opt={"type": "L1Loss"})
    ignored = [model.net_g._ddp_params_and_buffers_to_ignore for model in (every, last)]
    heads = [f"decoder.head_{size}.weight" for size in ("half", "quarter")]
    assert ignored[0] == [] and sorted(ignored[1]) == heads
    step(last)
    assert {name for name, p in last.net_g.named_parameters() if p.grad is None} == set(heads)
    assert len(last.optimizer_g.param_groups[0]["params"]) == len(every.optimizer_g.param_groups[0]["params"])


def test_ema_matches_a_loop_over_tensors(tmp_path):
    model = build(tmp_path, ema_decay=0.9)
    step(model)
    wanted = {name: value.clone() for name, value in model.net_g_ema.state_dict().items()}
    for name, value in model.net_g.state_dict().items():
        if value.is_floating_point():
            wanted[name].lerp_(value, 0.25)
        else:
            wanted[name].copy_(value)
    model.model_ema(0.75)
    found = model.net_g_ema.state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)


def test_output_of_a_step_does_not_keep_its_graph(tmp_path):
    """It would stay in memory after a skipped step."""
    model = build(tmp_path)
    step(model)
    assert model.output.grad_fn is None and not model.output.requires_grad


def test_one_channel_network_restores_gray_images_in_tiles(tmp_path):
    gray = {"type": "SRVGGNetCompact", "num_in_ch": 1, "num_out_ch": 1, "num_feat": 4, "num_conv": 1, "upscale": 1}
    results = []
    for tile in (None, 96):
        opt = training_cases.options(tmp_path, gray)
        opt["datasets"]["val"] = {"color": "y"}
        opt["val"] |= {"tile": tile, "tile_overlap": 16}
        torch.manual_seed(0)
        model = RestorMixerModel(opt)
        model.lq = torch.linspace(0, 1, 40 * 120).view(1, 1, 40, 120)
        model.test()
        results.append(model.output.clamp(0, 1))
    assert results[1].shape == (1, 1, 40, 120)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=5e-3)  # differences at the edges of tiles


def test_upscale_attribute_that_is_a_layer_is_ignored():
    network = torch.nn.Identity()
    network.upscale = torch.nn.Upsample(scale_factor=2)
    assert Padded(network, 1, 2).upscale == 2
    assert Padded(torch.nn.Identity(), 1, 2).upscale == 2
