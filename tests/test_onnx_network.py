"""An ONNX file of ``basicsr export`` restores like the exported weights, with onnxruntime and OpenVINO."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock  # a dependency of torch
from PIL import Image
from safetensors.torch import save_file
from test_restormixer_arch import small

import restormixer_arch
from restormixer_arch import cli
from restormixer_arch.cli import export
from restormixer_arch.errors import UserError
from restormixer_arch.inference import onnx_network, restorer
from restormixer_arch.inference.onnx_network import OnnxNetwork
from restormixer_arch.weight_options import add_stamp

pytestmark = [
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in export.ONNX_PACKAGES),
        reason="the extra 'export' is not installed",
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small network and its ONNX files in float32 and float16, created once for all processes (30 seconds)."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "onnx"
    network = small(window_size=16, num_blocks=(1, 2, 0)).eval()
    with FileLock(f"{folder}.lock"):
        folder.mkdir(exist_ok=True)
        if not (folder / "net.safetensors").exists():
            save_file(add_stamp(network.state_dict(), network), folder / "net.safetensors")
        for name, more in {"net.onnx": [], "half.onnx": ["--half"]}.items():
            arguments = ["export", str(folder / "net.safetensors"), "-o", str(folder / name), *more]
            assert (folder / name).exists() or cli.main(arguments) == 0
    return folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in/deeper").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, size in {"a.png": (37, 50), "deeper/b.png": (170, 200)}.items():
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(Path("in", name))


def refused(capsys, *arguments):
    assert cli.main([*arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("basicsr: error: ")


@pytest.mark.parametrize("settings", [[], ["--tile", "128"], ["--strength", "0.5", "--self-ensemble"]])
def test_restore_command_matches_torch(files, photos, settings):
    for weights, out in (("net.safetensors", "torch"), ("net.onnx", "onnx")):
        assert cli.main(["restore", "in", "-o", out, "--weights", str(files / weights), *settings]) == 0
    for name in ("a.png", "deeper/b.png"):
        wanted, got, given = (np.asarray(Image.open(Path(of, name))).astype(int) for of in ("torch", "onnx", "in"))
        assert np.abs(wanted - got).max() <= 1 and (wanted != got).mean() < 1e-3  # of 255, if rounded differently
        assert np.abs(wanted - given).max() > 2


def test_restore_function_matches_torch(files):
    image = np.random.default_rng(1).random((21, 30, 3), dtype=np.float32)
    wanted, got = (
        restormixer_arch.restore(image, weights=files / name, device="cpu") for name in ("net.safetensors", "net.onnx")
    )
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3)


def test_home_folder_in_a_path_is_expanded(files, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(files))
    assert OnnxNetwork("~/net.onnx").upscale == 1
    image = np.zeros((9, 9, 3), np.uint8)
    np.testing.assert_array_equal(
        restormixer_arch.restore(image, weights="~/net.onnx"),
        restormixer_arch.restore(image, weights=files / "net.onnx"),
    )


def test_out_of_memory_is_a_user_error(files, monkeypatch):
    class Failure(Exception):  # like onnxruntime's errors, a direct subclass of Exception
        pass

    def fail(names, inputs):
        raise Failure(message)

    network = OnnxNetwork(files / "net.onnx")
    network.session = SimpleNamespace(run=fail)
    message = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 9"
    with pytest.raises(UserError, match="tile: not enough memory for a tile of 128 pixels; use a smaller one"):
        restorer.restore_batch(network, torch.zeros(1, 3, 9, 9), tile=128)
    message = "another"
    with pytest.raises(RuntimeError, match="^another$"):
        restorer.restore_batch(network, torch.zeros(1, 3, 9, 9), tile=128)


@torch.no_grad()
def test_half_export(files):
    """Weights are float16, inputs and outputs float32, and the results are close to those of the float32 file."""
    import onnx
    import onnxruntime

    model = onnx.load(files / "half.onnx")
    weights = [tensor for tensor in model.graph.initializer if tensor.name.startswith("network.")]
    assert weights and {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    session = onnxruntime.InferenceSession(files / "half.onnx", providers=["CPUExecutionProvider"])
    assert [value.type for value in (*session.get_inputs(), *session.get_outputs())] == ["tensor(float)"] * 2
    assert session.get_modelmeta().custom_metadata_map["precision"] == "float16 inside, float32 inputs and outputs"
    x = torch.rand(2, 3, 24, 40)
    half, full = OnnxNetwork(files / "half.onnx")(x), OnnxNetwork(files / "net.onnx")(x)
    assert 0 < (half - full).abs().max() < 0.01 and (full - x).abs().max() > 0.01


def test_half_is_rejected_for_other_formats(files, tmp_path, capsys):
    assert refused(
        capsys, "export", str(files / "net.safetensors"), "-o", str(tmp_path / "a.safetensors"), "--half"
    ) == (f"--half: is for *.onnx only, got '{tmp_path}/a.safetensors'; other formats do not store the precision")


def test_unsupported_options_are_rejected(files, photos, capsys, monkeypatch):
    file = str(files / "net.onnx")
    restore = ["restore", "in", "-o", "out", "--weights"]
    assert refused(capsys, *restore, file, "--precision", "bf16") == (
        f"precision: bf16 cannot be set for {file}, whose precision is fixed; leave it out, or export the weights "
        "with --half"
    )
    assert refused(capsys, *restore, file, "--device", "meta").startswith("--device: 'meta' cannot be used here")
    monkeypatch.setattr(restorer, "pick_device", lambda name, weights="", gpu="": torch.device("cuda", 0))
    assert refused(capsys, *restore, file) == f"device: {file} runs on the CPU only, got 'cuda:0'; leave it out"
    monkeypatch.undo()
    assert refused(capsys, "export", file, "-o", "again.safetensors") == (
        f"{file}: is already an ONNX file; give the weights that it was exported from"
    )
    assert not Path("out").exists()


def test_auto_device_is_cpu_on_a_machine_with_a_gpu(files, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert restorer.pick_device("auto", files / "net.onnx").type == "cpu"
    monkeypatch.setattr(restorer, "unusable_reason", lambda name: None)
    assert restorer.pick_device("auto").type == "cuda"


def test_invalid_onnx_files_are_rejected(files, tmp_path, capsys, monkeypatch):
    import onnx

    monkeypatch.chdir(tmp_path)
    Path("photo.png").write_bytes(b"")
    restore = ["restore", "photo.png", "-o", "out", "--weights"]
    Path("damaged.onnx").write_bytes((files / "net.onnx").read_bytes()[:1000])
    Path("folder.onnx").mkdir()
    assert refused(capsys, *restore, "folder.onnx") == ("folder.onnx: is a folder, expected a file of 'basicsr export'")
    model = onnx.load(files / "net.onnx")
    del model.metadata_props[:]
    onnx.save(model, "foreign.onnx")
    assert refused(capsys, *restore, "damage.onnx") == ("damage.onnx: does not exist. Did you mean 'damaged.onnx'?")
    assert refused(capsys, *restore, "damaged.onnx").startswith("damaged.onnx: cannot be read as ONNX (")
    assert refused(capsys, *restore, "foreign.onnx") == (
        "foreign.onnx: is not a file of 'basicsr export' (its metadata has no scale and size_multiple)"
    )
    monkeypatch.setattr(onnx_network.importlib.util, "find_spec", lambda name: None)
    assert refused(capsys, *restore, "foreign.onnx") == (
        "foreign.onnx: needs onnxruntime; pip install 'restormixer[export]'"
    )


@pytest.mark.parametrize("size", [(1, 64, 72), (3, 24, 40)])
def test_openvino_matches_onnxruntime(files, size):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(files / "net.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = torch.rand(size[0], 3, *size[1:], generator=torch.Generator().manual_seed(2))
    got = torch.from_numpy(next(iter(compiled(x.numpy()).values())))
    torch.testing.assert_close(got, OnnxNetwork(files / "net.onnx")(x), rtol=0, atol=1e-3)
    assert (got - x).abs().max() > 0.01
