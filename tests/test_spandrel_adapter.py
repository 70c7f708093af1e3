"""RestorMixer in spandrel: its weight files are recognized, and the networks built from them restore images."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_restormixer_arch import GOLDEN, golden, small

from restormixer_arch.weight_options import add_stamp

spandrel = pytest.importorskip("spandrel")

from restormixer_arch.export.spandrel_adapter import RestorMixerArchitecture, register  # noqa: E402


@pytest.fixture
def registry():
    """spandrel's own architectures and RestorMixer."""
    copy = spandrel.MAIN_REGISTRY.copy()
    register(copy)
    return copy


def saved(network, path, stamp=True):
    state = add_stamp(network.state_dict(), network) if stamp else network.state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"params": network.state_dict(), "params_ema": state}, path)
    return path


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("size", [(16, 24), (13, 7)])
def test_loaded_file_gives_the_same_result_as_the_network(registry, tmp_path, name, size):
    network = small(encoder_heads=(1, 2), window_size=4, scan_merge="official").eval()
    path = saved(network, tmp_path / name)
    model = spandrel.ModelLoader(registry=registry).load_from_file(path)
    assert isinstance(model, spandrel.ImageModelDescriptor)
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        wanted = network(x).clamp(0, 1)
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=2e-6)  # BatchNorm is folded
    assert not torch.equal(wanted, x)


def test_descriptor_matches_the_network(registry, tmp_path):
    model = spandrel.ModelLoader(registry=registry).load_from_file(saved(small(), tmp_path / "net.pth"))
    assert model.architecture.id == "RestorMixer"
    assert (model.purpose, model.scale, model.input_channels, model.output_channels) == ("Restoration", 1, 3, 3)
    assert model.tags == ["4nf", "1-2-2 blocks"]
    assert model.size_requirements.none
    assert model.tiling is spandrel.ModelTiling.DISCOURAGED


def test_tiles_are_restored_differently_from_the_complete_image(registry, tmp_path):
    """The reason for DISCOURAGED: the left half restored alone differs even far from the cut."""
    model = spandrel.ModelLoader(registry=registry).load_from_file(saved(small(), tmp_path / "net.pth"))
    x = torch.rand(1, 3, 32, 256) * torch.linspace(0.2, 1, 256)
    far_from_the_cut = (model(x)[..., :32] - model(x[..., :128])[..., :32]).abs().max()
    assert far_from_the_cut > 1e-4


@pytest.mark.parametrize(("channels", "upscale"), [(1, 1), (3, 2), (3, 4)])
def test_gray_and_super_resolution(registry, tmp_path, channels, upscale):
    network = small(in_channels=channels, out_channels=channels, upscale=upscale).eval()
    model = spandrel.ModelLoader(registry=registry).load_from_file(saved(network, tmp_path / "net.safetensors"))
    assert (model.scale, model.input_channels) == (upscale, channels)
    assert model.purpose == ("SR" if upscale > 1 else "Restoration")
    x = torch.rand(1, channels, 9, 16)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(x).clamp(0, 1), rtol=0, atol=2e-6)


def test_checkpoint_of_the_released_code_is_loaded(registry, tmp_path):
    tensors = load_file(GOLDEN / "restormixer_base8_paper.safetensors")
    released = {key.removeprefix("param/"): value for key, value in tensors.items() if key.startswith("param/")}
    torch.save(released, tmp_path / "released.pth")
    model = spandrel.ModelLoader(registry=registry).load_from_file(tmp_path / "released.pth")
    network, _ = golden("paper")
    x = tensors["input"][:1]
    with torch.no_grad():
        torch.testing.assert_close(model(x), network.fuse()(x).clamp(0, 1), rtol=0, atol=1e-5)


def test_bfloat16_is_close_to_float32_and_float16_is_rejected(registry, tmp_path):
    model = spandrel.ModelLoader(registry=registry).load_from_file(saved(small(), tmp_path / "net.pth"))
    x = torch.rand(1, 3, 16, 24)
    wanted = model(x)
    restored = model.bfloat16()(x.bfloat16())
    assert restored.dtype == torch.bfloat16
    assert (restored.float() - wanted).abs().max() < 0.02
    with pytest.raises(spandrel.UnsupportedDtypeError):
        model.half()


def test_restormixer_and_other_networks_are_not_confused(tmp_path):
    state = small().state_dict()
    assert [arch.architecture.id for arch in spandrel.MAIN_REGISTRY if arch.detect(state)] in ([], ["RestorMixer"])
    foreign = spandrel.architectures.NAFNet.NAFNet(width=4, enc_blk_nums=[1], dec_blk_nums=[1]).state_dict()
    assert not RestorMixerArchitecture().detect(foreign)
    loaded = spandrel.ModelLoader().load_from_state_dict(foreign)
    assert loaded.architecture.id == "NAFNet"


def test_registering_twice_adds_one_entry():
    registry = spandrel.ArchRegistry()
    assert [arch.architecture.id for arch in register(registry)] == ["RestorMixer"]
    assert register(registry) == []
    assert len(registry) == 1


def test_main_registry_is_the_default(tmp_path):
    path = saved(small(), tmp_path / "net.pth", stamp=False)
    register()
    assert spandrel.ModelLoader().load_from_file(path).architecture.id == "RestorMixer"
