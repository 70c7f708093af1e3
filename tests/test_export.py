"""``basicsr export``: exported files give the same results as the network."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_restormixer_arch import golden, small

from restormixer_arch import cli
from restormixer_arch.cli import export
from restormixer_arch.inference.weights import load_network
from restormixer_arch.weight_options import add_stamp

ONNX = all(importlib.util.find_spec(name) for name in export.ONNX_PACKAGES)
needs_onnx = pytest.mark.skipif(not ONNX, reason="the extra 'export' is not installed")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def saved(network, path="net.pth"):
    torch.save(
        {"params": {n: v * 0 for n, v in network.state_dict().items()}, "params_ema": network.state_dict()}, path
    )
    return path


def exported(*arguments):
    assert cli.main(["export", *arguments]) == 0


def error_of(capsys, *arguments):
    assert cli.main(["export", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("basicsr: error: ")


def picture(height=24, width=40, channels=3):
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_safetensors_file_stores_weights_and_options(capsys):
    network = small(encoder_heads=(1, 2), decoder_heads=(2, 1), window_size=4, scan_merge="official").eval()
    Path("net.yml").write_text(
        "network_g: {type: RestorMixer, base_channels: 4, num_blocks: [1, 2, 2], encoder_heads: [1, 2], "
        "decoder_heads: [2, 1], d_state: 4, window_size: 4, scan_merge: official}\n"
    )
    exported(saved(network), "--opt", "net.yml", "-o", "net.safetensors")
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert capsys.readouterr().out.startswith(f"net.safetensors: {parameters:,} parameters; ")
    loaded = load_network("net.safetensors")
    assert (loaded.scan_merge, loaded.window_size, loaded.encoder_heads) == ("official", 4, (1, 2))
    torch.testing.assert_close(loaded(picture()), network(picture()), rtol=0, atol=2e-6)
    wanted = add_stamp(network.state_dict(), network)
    state = load_file("net.safetensors")
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_options_that_contradict_the_weights_are_rejected(capsys):
    network = small(window_size=4)
    save_file(add_stamp(network.state_dict(), network), "net.safetensors")
    section = (
        "network_g: {type: RestorMixer, base_channels: 4, num_blocks: [1, 2, 2], d_state: 4, encoder_heads: [2, 2], "
    )
    section += "decoder_heads: [2, 2], window_size: "
    Path("net.yml").write_text(section + "8}\n")
    error = error_of(capsys, "net.safetensors", "--opt", "net.yml", "-o", "new.safetensors")
    assert error == "net.safetensors: its weights were trained with window_size 4 and not 8, as the given options say"
    assert not Path("new.safetensors").exists()
    Path("net.yml").write_text(section + "4}\n")
    exported("net.safetensors", "--opt", "net.yml", "-o", "new.safetensors")


def test_param_key_selects_the_checkpoint_entry():
    exported(saved(small()), "--param-key", "params", "-o", "zeros.safetensors")
    assert not load_file("zeros.safetensors")["encoder.stem.0.conv.weight"].any()


def test_existing_file_is_replaced_only_with_overwrite(capsys):
    Path("out.safetensors").write_text("mine")
    weights = saved(small())
    assert error_of(capsys, weights, "-o", "out.safetensors") == (
        "-o: 'out.safetensors' already exists; use --overwrite to replace it"
    )
    assert Path("out.safetensors").read_text() == "mine"
    exported(weights, "-o", "out.safetensors", "--overwrite")
    load_network("out.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net.pth", "-o", "net.safetensor"], "-o: 'net.safetensor' must end in .safetensors or .onnx. Did you mean"),
        (["net.pth", "-o", "no/net.safetensors"], "-o: there is no folder 'no'"),
        (["", "-o", "a.safetensors"], "basicsr export: argument WEIGHTS: expected a name, got an empty string"),
        (["nett.pth", "-o", "a.safetensors"], "nett.pth: does not exist. Did you mean 'net.pth'?"),
        (["other.pth", "-o", "a.safetensors"], "other.pth: are not the weights of a RestorMixer"),
        (["net.pth", "--opt", "edsr.yml", "-o", "a.safetensors"], "--opt: edsr.yml: network_g.type: 'RestorMixer' was"),
        (["net.pth", "--opt", "wide.yml", "-o", "a.safetensors"], "net.pth: no RestorMixer can be built from it ("),
        (
            ["net.pth", "--opt", "odd.yml", "-o", "a.safetensors"],
            "odd.yml: network_g.num_block: RestorMixer has no such argument. Did you mean 'num_blocks'?",
        ),
        (
            ["net.pth", "--opt", "text.yml", "-o", "a.safetensors"],
            "text.yml: network_g.base_channels: got 'many', expected a whole number",
        ),
        (
            ["net.pth", "--opt", "three.yml", "-o", "a.safetensors"],
            "three.yml: network_g: num_blocks must be three counts, the second and third even, got (1, 3, 2)",
        ),
        (
            ["net.pth", "--param-key", "params_emma", "-o", "a.safetensors"],
            "net.pth: has no entry 'params_emma'; expected one of params, params_ema. Did you mean 'params_ema'?",
        ),
    ],
)
def test_invalid_arguments(capsys, arguments, message):
    saved(small())
    torch.save({"conv.weight": torch.zeros(3, 3)}, "other.pth")
    Path("edsr.yml").write_text("network_g: {type: EDSR}\n")
    Path("wide.yml").write_text("network_g: {type: RestorMixer, base_channels: 8}\n")
    Path("odd.yml").write_text("network_g: {type: RestorMixer, num_block: [1, 2, 2]}\n")
    Path("text.yml").write_text("network_g: {type: RestorMixer, base_channels: many}\n")
    Path("three.yml").write_text("network_g: {type: RestorMixer, num_blocks: [1, 3, 2]}\n")
    assert error_of(capsys, *arguments).startswith(message)
    assert not Path("a.safetensors").exists()


def test_full_disk_leaves_no_partial_file(capsys, monkeypatch):
    weights = saved(small())

    def full(self, data):
        self.touch()
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert error_of(capsys, weights, "-o", "a.safetensors") == (
        "-o: 'a.safetensors' cannot be written (No space left on device)"
    )
    assert [path.name for path in Path().iterdir()] == ["net.pth"]


def test_onnx_export_without_its_packages_is_rejected(capsys, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else object())
    assert error_of(capsys, saved(small()), "-o", "a.onnx") == (
        "basicsr export: needs onnxscript; pip install 'restormixer[export]'"
    )


@needs_onnx
def test_half_export_of_weights_that_overflow_is_rejected(capsys):
    """onnxruntime computes in float32 on a CPU and would not show the overflow."""
    network = small()
    with torch.no_grad():
        network.encoder.stem[0].conv.weight *= 1e6
    error = error_of(capsys, saved(network), "-o", "half.onnx", "--half")
    assert error == "--half: the network of net.pth overflows in float16; export it without --half"
    assert not Path("half.onnx").exists()


@torch.no_grad()
def check_onnx(network, file, sizes, batch=1):
    """Check that onnxruntime agrees with the network, relative to the largest value."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for size in sizes:
        x = picture(*size, channels=network.in_channels).repeat(batch, 1, 1, 1)
        x[1:] = x[1:].flip(-1)
        (output,) = session.run(["output"], {"input": x.numpy()})
        wanted = network.fuse()(x).numpy()
        assert output.shape == wanted.shape
        assert np.abs(output - wanted).max() <= 1e-4 * max(1, np.abs(wanted).max())
        enlarged = torch.nn.functional.interpolate(x, scale_factor=float(network.upscale), mode="bicubic").numpy()
        assert np.abs(wanted - enlarged).max() > 0.01  # the network changes the image
    return session


@needs_onnx
@pytest.mark.timeout(600)
def test_onnx_export_equals_the_network(capsys):
    """Sizes other than the traced one (smaller than a window, not square, with partial windows) and a batch."""
    import onnx

    network = small(window_size=16, num_blocks=(1, 2, 0)).eval()
    save_file(add_stamp(network.state_dict(), network), "net.safetensors")
    exported("net.safetensors", "-o", "net.onnx")
    written = capsys.readouterr().out
    assert "net.onnx: differs from torch by at most " in written and "; opset 18; " in written
    session = check_onnx(network, "net.onnx", [(8, 8), (64, 72), (40, 16), (96, 136)])
    assert session.get_modelmeta().custom_metadata_map == {
        "scale": "1",
        "size_multiple": "8",
        "value_range": "[0, 1], not clamped",
        "channel_order": "RGB",
        "opset": "18",
        "precision": "float32",
    }
    assert {entry.domain: entry.version for entry in onnx.load("net.onnx").opset_import}[""] == 18
    check_onnx(network, "net.onnx", [(24, 16)], batch=3)
    assert [path.name for path in Path().glob("*.onnx*")] == ["net.onnx"]


@needs_onnx
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("merge", ["paper", "official"])
def test_onnx_export_of_golden_weights(merge):
    network, _ = golden(merge)
    save_file(add_stamp(network.state_dict(), network), "golden.safetensors")
    exported("golden.safetensors", "-o", "golden.onnx")
    check_onnx(network, "golden.onnx", [(8, 16), (64, 40)])


@needs_onnx
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("channels", "upscale"), [(1, 2), (3, 4)])
def test_onnx_export_of_super_resolution(channels, upscale):
    network = small(in_channels=channels, out_channels=channels, upscale=upscale).eval()
    save_file(add_stamp(network.state_dict(), network), "sr.safetensors")
    exported("sr.safetensors", "-o", "sr.onnx")
    check_onnx(network, "sr.onnx", [(8, 16), (40, 24)])
