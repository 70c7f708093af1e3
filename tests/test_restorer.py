"""Restoring tensors with any network, and building networks from weight files."""

import sys
from pathlib import Path

import pytest
import torch
from tiny_network import save_tiny, tiny_network
from torch import nn

from restormixer_arch import RestorMixer
from restormixer_arch.errors import UserError
from restormixer_arch.inference import installed, weights
from restormixer_arch.inference.installed import installed_weights
from restormixer_arch.inference.restorer import (
    Restorer,
    load_restorer,
    pick_device,
    pick_precision,
    restore_batch,
    restorer_of_options,
)
from restormixer_arch.inference.weights import load_network
from restormixer_arch.memory import resident_bytes
from restormixer_arch.weight_options import add_stamp


class Plain(nn.Module):
    """A third-party network that applies ``function``; its weight is 1 and only defines its device."""

    def __init__(self, function=lambda x: x, **attributes):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.function = function
        self.seen = []
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        self.seen.append(x)
        return self.function(x * self.weight)


PICTURE = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(1))


def test_single_tile_equals_the_network_output():
    network = tiny_network()
    with torch.no_grad():
        wanted = network(PICTURE)
    assert (wanted - PICTURE).abs().max() > 0.01
    torch.testing.assert_close(restore_batch(network, PICTURE, tile=128), wanted.clamp(0, 1))


@pytest.mark.parametrize(("dtype", "white"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_integer_images_are_divided_by_white(dtype, white):
    picture = (PICTURE * white).round().to(dtype)
    result = restore_batch(Plain(lambda x: x / 2), picture, tile=128)
    torch.testing.assert_close(result, picture.float() / white / 2)


def test_results_are_clipped_to_0_1():
    result = restore_batch(Plain(lambda x: 3 * x - 1), PICTURE, tile=128)
    assert result.min() == 0 and result.max() == 1 and not result.requires_grad


def test_gray_images_with_rgb_networks_and_rgb_images_with_gray_networks():
    gray = PICTURE[:, :1]
    network = Plain(lambda x: x * torch.tensor([0.5, 0.25, 0.75])[:, None, None])
    torch.testing.assert_close(restore_batch(network, gray, tile=128), gray / 2)
    assert network.seen[0].shape == (1, 3, 40, 56)
    network = Plain(lambda x: x / 2, in_channels=1)
    torch.testing.assert_close(restore_batch(network, PICTURE, tile=128), PICTURE / 2)
    assert [x.shape for x in network.seen] == [(1, 1, 40, 56)] * 3


def test_batch_is_restored_image_by_image():
    network = Plain(lambda x: x / 2)
    batch = torch.cat([PICTURE, 1 - PICTURE])
    torch.testing.assert_close(Restorer(network, tile=128)(batch), batch / 2)
    assert [len(x) for x in network.seen] == [1, 1]


@pytest.mark.parametrize("scale", [1, 2])
def test_self_ensemble_is_the_mean_over_eight_flips_and_rotations(scale):
    network = tiny_network(upscale=scale)

    def turned(x):  # independent implementation with transposes and flips
        results = []
        for transpose in (False, True):
            for rows in (False, True):
                for columns in (False, True):
                    dims = [d for d, flip in ((-2, rows), (-1, columns)) if flip]
                    y = x.transpose(-2, -1) if transpose else x
                    y = network(y.flip(dims).contiguous()).flip(dims)
                    results.append(y.transpose(-2, -1) if transpose else y)
        return torch.stack(results).mean(0)

    with torch.no_grad():
        wanted = turned(PICTURE).clamp(0, 1)
    got = restore_batch(network, PICTURE, tile=128, self_ensemble=True)
    torch.testing.assert_close(got, wanted)
    assert (got - restore_batch(network, PICTURE, tile=128)).abs().max() > 1e-3


def test_bf16_is_close_to_fp32():
    network = tiny_network()
    full, half = (restore_batch(network, PICTURE, tile=128, precision=p) for p in ("fp32", "bf16"))
    assert 0 < (full - half).abs().max() < 0.02 and half.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "amx", "avx512", "wanted"),
    [("sr_x2", True, False, "bf16"), ("sr_x2", False, True, "bf16"), ("sr_x2", False, False, "fp32")]
    + [("other.pth", True, True, "fp32")],
)
def test_precision_auto(name, amx, avx512, wanted, monkeypatch):
    """bf16 if torch reports that the CPU multiplies bfloat16 and the installed weights lose little by it."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    weights = Path(name) if "." in name else installed_weights(name)
    assert pick_precision(weights, torch.device("cpu")) == wanted
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert pick_precision(weights, torch.device("cpu")) == "fp32"


def test_network_is_applied_to_the_tiles_of_a_large_image():
    network = Plain(lambda x: x / 2)
    picture = torch.rand(1, 3, 300, 500)
    torch.testing.assert_close(restore_batch(network, picture, tile=192), picture / 2)
    assert len(network.seen) == 8 and max(x.shape[-1] for x in network.seen) <= 192


def test_results_that_are_not_finite_raise_an_error():
    with pytest.raises(UserError, match="^precision: the result in fp32 is not finite$"):
        restore_batch(Plain(lambda x: x / 0), PICTURE, tile=128)
    with pytest.raises(UserError, match="^precision: the result in bf16 is not finite; try fp32$"):
        restore_batch(Plain(lambda x: x / 0), PICTURE, tile=128, precision="bf16")


def test_strength_blends_clipped_values():
    """Both the upsampled input and the result overshoot; blended unclipped, they would shift values within [0, 1]."""
    network = Plain(lambda x: 3 * x.repeat_interleave(2, -1).repeat_interleave(2, -2) - 1, upscale=2)
    picture = (PICTURE > 0.5).float()
    enlarged = torch.nn.functional.interpolate(picture, scale_factor=2.0, mode="bicubic", align_corners=False)
    assert enlarged.min() < -0.05 and enlarged.max() > 1.05
    restored = picture.repeat_interleave(2, -1).repeat_interleave(2, -2)
    wanted = 0.75 * enlarged.clamp(0, 1) + 0.25 * restored
    torch.testing.assert_close(restore_batch(network, picture, tile=128, strength=0.25), wanted)


def raising(message, kind=RuntimeError):
    def function(x):
        raise kind(message)

    return Plain(function)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried", RuntimeError),
        ("could not create a primitive", RuntimeError),
        ("CUDA out", torch.OutOfMemoryError),
    ],
)
def test_out_of_memory_is_a_user_error(message, kind):
    with pytest.raises(UserError, match="tile: not enough memory for a tile of 128 pixels; use a smaller one"):
        restore_batch(raising(message, kind), PICTURE, tile=128)


def test_other_errors_are_not_converted():
    with pytest.raises(RuntimeError, match="a slip") as caught:
        restore_batch(raising("a slip"), PICTURE, tile=128)
    assert not isinstance(caught.value, UserError)


def test_unknown_precision_is_rejected():
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16, got 'int8'"):
        restore_batch(Plain(), PICTURE, tile=128, precision="int8")


# --- the size of tiles -----------------------------------------------------------------------------------------------


def test_given_tile_and_max_memory_are_checked():
    assert Restorer(Plain(), tile=192).tile_for(PICTURE) == 192
    with pytest.raises(UserError, match="tile: 100 is too small for an overlap of 64, expected at least 128"):
        Restorer(Plain(), tile=100)
    with pytest.raises(UserError, match="^max_memory: got 0, expected at least 1 byte$"):
        Restorer(Plain(), max_memory=0)


def test_wide_overlap_if_memory_cannot_be_measured(monkeypatch):
    monkeypatch.setattr("restormixer_arch.inference.tile_memory.peak_bytes", lambda: None)
    picture = torch.rand(1, 3, 600, 70)
    torch.testing.assert_close(Restorer(Plain(lambda x: x / 2), overlap=449)(picture), picture / 2)


def test_memory_is_measured_once_if_needed_and_sets_the_tile_size():
    network = tiny_network()
    restorer = Restorer(network, max_memory=10**11)
    assert restorer.memory is restorer.memory
    assert restorer.tile_for(torch.zeros(1, 3, 700, 500, dtype=torch.uint8)) == 700
    small = Restorer(network)
    assert small.tile_for(PICTURE) == 128 and small.tile_for(torch.zeros(1, 3, 512, 9)) == 512
    assert "memory" not in vars(small)  # not measured
    assert small.tile_for(torch.zeros(1, 3, 513, 9)) == 513 and "memory" in vars(small)
    with pytest.raises(UserError, match="max-memory: 0.00 GB is not enough for 56 x 40 pixels"):
        Restorer(network, max_memory=1000)(PICTURE)


def test_process_that_exceeds_the_default_budget_uses_small_tiles(monkeypatch):
    """For example, a program that has loaded data of its own."""
    monkeypatch.setattr("restormixer_arch.inference.tile_memory.CPU_BUDGET", 1)
    restorer = Restorer(tiny_network())
    measured = sys.platform == "linux"
    assert restorer.tile_for(torch.zeros(1, 3, 513, 520)) == (128 if measured else 512)


def test_result_that_does_not_fit_in_memory_is_rejected(monkeypatch):
    """For any tile, the 513 * 9 * 3 * 2 ** 2 samples of the result are needed once in float32 and twice in uint8."""
    enlarging = Restorer(tiny_network(upscale=2))
    image = torch.zeros(1, 3, 513, 9, dtype=torch.uint8)
    needed = 513 * 9 * 3 * 4 * 6
    monkeypatch.setattr("restormixer_arch.inference.restorer.available_bytes", lambda *, swap: needed)
    assert enlarging.tile_for(image) >= 128
    monkeypatch.setattr("restormixer_arch.inference.restorer.available_bytes", lambda *, swap: needed - 1)
    with pytest.raises(UserError, match=r"^not enough memory: the result needs 0\.00 GB, 0\.00 GB are free$"):
        enlarging.tile_for(image)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is held")
def test_memory_in_use_is_measured_before_the_first_image(tmp_path):
    restorer = load_restorer(save_tiny(tmp_path / "x.safetensors"), torch.device("cpu"))
    before = resident_bytes()
    image = torch.zeros(1, 3, 6000, 6000, dtype=torch.uint8).add_(1)  # 108 MB
    assert resident_bytes() > before + 10**8
    assert abs(restorer.memory.held - before) < 5 * 10**7 and len(image) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc/self/status")
def test_memory_is_measured_if_the_process_name_is_not_utf_8():
    name = Path("/proc/self/comm").read_bytes().strip()
    try:
        Path("/proc/self/comm").write_bytes("фотографии".encode()[:15])  # the kernel keeps 15 bytes: half a character
        assert resident_bytes() > 10**6
    finally:
        Path("/proc/self/comm").write_bytes(name)


def test_tile_settings_of_an_option_file():
    assert restorer_of_options(Plain(), {"save_img": True}) is None
    made = restorer_of_options(Plain(), {"tile": 96, "tile_overlap": 0, "tile_blend": "linear"})
    assert (made.tile, made.overlap, made.blend, made.max_memory) == (96, 0, "linear", None)
    assert restorer_of_options(Plain(), {"max_memory": "2G"}).max_memory == 2 * 10**9


def test_pick_device():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("gpu", "meta", "cpu:x", "hpu", "xla"):
        with pytest.raises(UserError, match=f"--device: '{name}' cannot be used here"):
            pick_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device: 'cuda' cannot be used here"):
            pick_device("cuda")


def test_gpu_without_kernels_in_torch_is_not_used(monkeypatch, capsys):
    def ones(*size, device):
        raise RuntimeError("CUDA error: no kernel image is available\nCompile with")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    assert pick_device("auto").type == "cpu"
    wanted = "basicsr: note: the GPU is not used: CUDA error: no kernel image is available\n"
    assert capsys.readouterr().err == wanted


# --- weights ---------------------------------------------------------------------------------------------------------


def test_network_is_built_from_its_weights(tmp_path):
    network = load_network(save_tiny(tmp_path / "x.safetensors", upscale=2))
    with torch.no_grad():
        torch.testing.assert_close(network(PICTURE), tiny_network(upscale=2)(PICTURE))
    assert network.upscale == 2 and not network.training


def test_weights_for_four_channels_are_rejected(tmp_path):
    network = RestorMixer(4, 4, base_channels=4, num_blocks=(1, 2, 2), encoder_heads=(2, 2), decoder_heads=(2, 2))
    path = tmp_path / "x.pth"
    torch.save({"params": add_stamp(network.state_dict(), network)}, path)
    with pytest.raises(UserError) as caught:
        load_restorer(path, torch.device("cpu"))
    assert str(caught.value) == f"{path}: restores images of 4 channels, expected 1 or 3"


def test_missing_param_key_is_an_error_only_for_load_network(tmp_path):
    """A key given by a user must exist; that of an option file falls back to another entry, as in BasicSR."""
    network, path = tiny_network(), tmp_path / "x.pth"
    torch.save({"params": network.state_dict(), "params_ema": network.state_dict(), "iter": 3}, path)
    with pytest.raises(UserError) as caught:
        load_network(path, "params_emma")
    assert str(caught.value) == (
        f"{path}: has no entry 'params_emma'; expected one of params, params_ema. Did you mean 'params_ema'?"
    )
    assert weights.read_weights(path, "params_emma").keys() == network.state_dict().keys()
    assert load_network(path, "params").in_channels == 3
    plain = save_tiny(tmp_path / "x.safetensors")
    with pytest.raises(UserError) as caught:
        load_network(plain, "params")
    assert str(caught.value) == f"{plain}: has no entry 'params'; it has no entries, only weights."


def test_weights_of_other_or_incomplete_networks_are_rejected(tmp_path):
    torch.save({"params": {"a.weight": torch.ones(2)}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="other.pth: are not the weights of a RestorMixer"):
        load_network(tmp_path / "other.pth")
    state = tiny_network().state_dict()
    del state["decoder.merge_half.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(UserError, match=r"part.pth: no RestorMixer can be built from it \(.*decoder.merge_half.bias"):
        load_network(tmp_path / "part.pth")


def test_installed_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(
        UserError,
        match="--task: no weights for 'derain'; this installation has no weights at all.",
    ):
        installed_weights("derain")
    for task in ("mixed", "derain"):
        save_tiny(tmp_path / f"restormixer_s_{task}.safetensors")
    assert installed_weights("derain") == tmp_path / "restormixer_s_derain.safetensors"
    with pytest.raises(
        UserError, match="no weights for 'dreain'; installed are: derain, mixed. Did you mean 'derain'\\?$"
    ):
        installed_weights("dreain")


def test_installed_weights_folder_is_in_the_package():
    import restormixer_arch

    assert (
        installed.WEIGHTS_FOLDER.parent.samefile(restormixer_arch.__path__[0])
        and installed.WEIGHTS_FOLDER.name == "weights"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_strength_blends_the_result_with_the_input(dtype):
    picture = PICTURE if dtype == torch.float32 else (PICTURE * 255).round().to(dtype)
    given = picture.float() / (1 if dtype == torch.float32 else 255)
    for strength in (0.0, 0.3, 1.0):
        result = restore_batch(Plain(lambda x: x / 2), picture, tile=128, strength=strength)
        torch.testing.assert_close(result, given * (1 - strength) + given / 2 * strength)


@pytest.mark.parametrize("dtype", [torch.float64, torch.uint16])
def test_images_are_float32_when_they_are_moved_to_the_device(dtype, monkeypatch):
    """MPS has neither float64 nor uint16."""
    white, original = 65535 if dtype == torch.uint16 else 1, torch.Tensor.to

    def move(tensor, *arguments, **options):
        assert tensor.dtype == torch.float32 or not isinstance(arguments[0], torch.device)
        return original(tensor, *arguments, **options)

    picture = (PICTURE * white).to(dtype)
    wanted = picture.float() / white * 0.75
    monkeypatch.setattr(torch.Tensor, "to", move)
    torch.testing.assert_close(restore_batch(Plain(lambda x: x / 2), picture, tile=128, strength=0.5), wanted)


def test_strength_with_upsampling_blends_with_the_bicubic_input():
    network = Plain(lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"), upscale=2)
    bicubic = nn.functional.interpolate(PICTURE, scale_factor=2.0, mode="bicubic", align_corners=False).clamp(0, 1)
    torch.testing.assert_close(restore_batch(network, PICTURE, tile=128, strength=0.0), bicubic)


def test_gray_image_with_strength_keeps_one_channel():
    gray = PICTURE[:, :1]
    result = restore_batch(Plain(lambda x: x / 2), gray, tile=128, strength=0.5)
    torch.testing.assert_close(result, gray * 0.75)


def test_strength_out_of_range_is_rejected():
    with pytest.raises(UserError, match=r"strength: must be in \[0, 1\], got 1.5"):
        Restorer(Plain(), strength=1.5)
