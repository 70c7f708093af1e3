"""Ways to specify a competitor: a network with weights, weights alone, or the folder of a training run."""

import os

import pytest
import torch
import yaml
from compare_cases import EDSR, RIDNET
from tiny_network import save_tiny

from restormixer_arch.basicsr_adapter import register
from restormixer_arch.errors import UserError

register.register()

from basicsr.archs import build_network  # noqa: E402 - BasicSR can only be imported now

from restormixer_arch.basicsr_adapter import spandrel_networks  # noqa: E402
from restormixer_arch.compare.networks import Entry, Padded, build, entry_of_run  # noqa: E402

NAFNET = {"type": "NAFNet_spandrel", "width": 4, "enc_blk_nums": [1], "dec_blk_nums": [1]}
X = torch.linspace(0, 1, 3 * 9 * 14).view(1, 3, 9, 14)


def saved(folder, section, name="net.pth", seed=1):
    """Save the weights of a network; return their path and the output for X."""
    spandrel_networks.provide(section["type"])
    torch.manual_seed(seed)
    network = build_network(dict(section)).eval()
    torch.save({"params": network.state_dict()}, folder / name)
    with torch.no_grad():
        return str(folder / name), network(X)


def restored(entry):
    with torch.no_grad():
        return build(entry).network(X)


def test_network_with_weights(tmp_path):
    weights, expected = saved(tmp_path, EDSR)
    entry = Entry("edsr", EDSR, weights)
    assert torch.equal(restored(entry), expected)
    built = build(entry)
    assert (built.arch, built.arguments["num_feat"]) == ("EDSR", 4) and not built.network.training


def test_mismatched_weights_and_unknown_architecture_are_rejected(tmp_path):
    weights, _ = saved(tmp_path, RIDNET)
    with pytest.raises(UserError, match=r"net.pth: does not fit competitors.edsr: missing: .*conv_first.weight"):
        build(Entry("edsr", EDSR, weights))
    with pytest.raises(UserError, match="competitors.edsr: 'EDSRR' is not a known architecture"):
        build(Entry("edsr", {"type": "EDSRR"}))


def test_weights_trained_with_another_window_size_are_rejected(tmp_path):
    weights = str(save_tiny(tmp_path / "ours.safetensors"))
    section = {"type": "RestorMixer", **build(Entry("ours", weights=weights)).arguments, "window_size": 4}
    with pytest.raises(UserError, match=r"safetensors: its weights were trained with window_size 8 and not 4, as"):
        build(Entry("ours", section, weights))


def test_network_is_recognized_from_weights_alone(tmp_path):
    pytest.importorskip("spandrel")
    ours = build(Entry("ours", weights=str(save_tiny(tmp_path / "ours.safetensors"))))
    assert ours.arch == "RestorMixer" and ours.arguments["base_channels"] == 4
    weights, expected = saved(tmp_path, NAFNET)
    nafnet = build(Entry("nafnet", weights=weights))
    assert nafnet.arch == "NAFNet (spandrel)"
    torch.testing.assert_close(restored(Entry("nafnet", weights=weights)), expected.clamp(0, 1))


def test_ablation_weights_without_network_g_are_rejected(tmp_path):
    section = {"type": "RestorMixerAblation", "base_channels": 4, "num_blocks": [1, 2, 2], "d_state": 4, "scans": 0}
    weights, _ = saved(tmp_path, {**section, "encoder_heads": [2, 2], "decoder_heads": [2, 2]})
    with pytest.raises(UserError, match="net.pth: no RestorMixer can be built from it .*; name it by network_g$"):
        build(Entry("some", weights=weights))


def test_unrecognized_weights_are_rejected(tmp_path, monkeypatch):
    pytest.importorskip("spandrel")
    weights, _ = saved(tmp_path, RIDNET)
    with pytest.raises(UserError, match="net.pth: spandrel does not recognize its network; specify it with network_g"):
        build(Entry("some", weights=weights))
    monkeypatch.setattr(spandrel_networks, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match="net.pth: is not a RestorMixer; recognizing other networks needs spandrel: pip"
    ):
        build(Entry("some", weights=weights))


@pytest.fixture
def run(tmp_path):
    """Create the folder of a training run."""
    (tmp_path / "models").mkdir()
    val = {"metrics": {"psnr": {"type": "calculate_psnr"}}}
    options = {"datasets": {"train": {}, "val": {"name": "pairs_val"}}, "network_g": EDSR, "val": val}
    (tmp_path / "x.yml").write_text(yaml.safe_dump(options), encoding="utf-8")
    return tmp_path


def test_newest_and_best_weights_of_a_run(run):
    models = run / "models"
    for name in ("net_g_5.pth", "net_g_10.pth", "net_g_best_pairs_val_psnr.pth"):
        saved(models, EDSR, name)
    assert entry_of_run("old", str(run), None, 4) == Entry("old", EDSR, str(models / "net_g_10.pth"), None, 4)
    assert entry_of_run("old", str(run), "best", None).weights == str(models / "net_g_best_pairs_val_psnr.pth")
    _, expected = saved(models, EDSR, "net_g_latest.pth", seed=2)
    newest = entry_of_run("old", str(run), "newest", None)
    assert newest.weights == str(models / "net_g_latest.pth") and torch.equal(restored(newest), expected)


def test_numbered_weights_newer_than_net_g_latest_are_chosen(run):
    """After a run is extended and then stopped, ``net_g_latest.pth`` is outdated."""
    models = run / "models"
    for number, name in enumerate(("net_g_latest.pth", "net_g_14.pth", "net_g_9.pth")):
        saved(models, EDSR, name)
        os.utime(models / name, (1e9 + number, 1e9 + number))
    assert entry_of_run("old", str(run), None, None).weights == str(models / "net_g_14.pth")
    os.utime(models / "net_g_latest.pth", (1e9 + 1, 1e9 + 1))
    assert entry_of_run("old", str(run), None, None).weights == str(models / "net_g_latest.pth")


def test_missing_params_ema_falls_back_and_unknown_param_key_is_rejected(tmp_path):
    weights, expected = saved(tmp_path, EDSR)
    assert torch.equal(restored(Entry("edsr", EDSR, weights, "params_ema")), expected)
    with pytest.raises(UserError, match=r"^competitors\.edsr\.param_key: .*net\.pth has no entry 'parms', it has"):
        build(Entry("edsr", EDSR, weights, "parms"))


def test_incomplete_run_folders_are_rejected(run, tmp_path_factory):
    with pytest.raises(UserError, match="models: has no net_g_latest.pth; weights there: none"):
        entry_of_run("old", str(run), None, None)
    saved(run / "models", EDSR, "net_g_5.pth")
    with pytest.raises(UserError, match="models: has no net_g_best_pairs_val_psnr.pth; weights there: net_g_5.pth"):
        entry_of_run("old", str(run), "best", None)
    later = run / "y.yml"
    later.write_text("network_g: {type: EDSR}\n", encoding="utf-8")
    os.utime(later, (2e9, 2e9))
    with pytest.raises(
        UserError, match="y.yml: has no validation set, so there are no best weights; expected checkpoint"
    ):
        entry_of_run("old", str(run), "best", None)
    later.write_text("network_g: {}\n", encoding="utf-8")
    with pytest.raises(UserError, match="y.yml: has no section network_g with a type"):
        entry_of_run("old", str(run), None, None)
    empty = str(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UserError, match=f"{empty}: has no option file .* expected the folder of a training"):
        entry_of_run("old", empty, None, None)


def test_images_are_padded_by_reflection():
    """The image is padded at the right and bottom; the output, twice as large, is cropped accordingly."""
    seen = []

    class Twice(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    out = Padded(Twice(), 8)(X)
    assert seen[0].shape == (1, 3, 16, 16)
    assert torch.equal(seen[0][..., :9, 14:], X[..., [12, 11]])
    assert torch.equal(seen[0][..., 9:, :14], X[..., range(7, 0, -1), :])
    assert torch.equal(out, X.repeat_interleave(2, -1).repeat_interleave(2, -2))


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # BasicSR's SwinIR
def test_padding_follows_window_size_or_multiple_of():
    swinir = {"type": "SwinIR", "upscale": 1, "img_size": 16, "window_size": 4, "depths": [1], "embed_dim": 8}
    swinir |= {"num_heads": [2], "mlp_ratio": 2}
    network = build(Entry("swinir", swinir)).network
    assert isinstance(network, Padded) and network.multiple == 4
    with torch.no_grad():
        assert network(X).shape == X.shape
    assert not isinstance(build(Entry("edsr", EDSR)).network, Padded)
    assert build(Entry("edsr", EDSR, multiple_of=8)).network.multiple == 8
