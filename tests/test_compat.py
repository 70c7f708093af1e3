"""Patches of BasicSR: each is applied if it is needed, and none if the installed version works without it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import lmdb
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from restormixer_arch import RestorMixer
from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.errors import UserError

compat.apply()

from basicsr.archs import build_network  # noqa: E402
from basicsr.losses import build_loss  # noqa: E402
from basicsr.models.base_model import BaseModel  # noqa: E402
from basicsr.utils import FileClient, imfrombytes  # noqa: E402

# --- apply -----------------------------------------------------------------------------------------------------------


def test_basicsr_imports_without_warnings_and_stubs_are_removed():
    code = (
        "import sys; from restormixer_arch.basicsr_adapter import compat; compat.apply(); import basicsr.metrics.niqe\n"
        "from scipy.ndimage import convolve; assert basicsr.metrics.niqe.convolve is convolve\n"
        "left = sys.modules.get('torchvision.transforms.functional_tensor')\n"
        "assert left is None or left.__file__, left\n"
        "assert sys.modules['scipy.ndimage.filters'].__file__"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=100)


def test_second_apply_does_nothing(monkeypatch):
    monkeypatch.setattr(compat.importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    compat.apply()


def test_report_lists_every_patch_with_its_reason():
    report = compat.report()
    assert len(report) == len({patch.name for patch, _ in report}) >= 8
    for patch, state in report:
        assert state in ("applied", "not needed")
        assert patch.breaks and patch.versions and patch.why
    assert sum(len(patch.replaces) for patch, _ in report) <= 12


def test_missing_basicsr_error_shows_the_fix(monkeypatch):
    monkeypatch.setattr(compat, "_states", {})
    monkeypatch.delitem(sys.modules, "basicsr")
    monkeypatch.setattr(compat, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"BasicSR is not installed\. Run: pip install basicsr==1\.4\.2"):
        compat.apply()


def test_mismatched_torch_and_torchvision_builds_are_reported(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(compat, "_states", {})
    monkeypatch.setattr(compat.importlib, "import_module", fail)
    with pytest.raises(
        UserError, match=r"\(operator torchvision::nms does not exist\): torch \S+, torchvision \S+ are"
    ):
        compat.apply()


def test_installed_distributions_are_listed(monkeypatch):
    def version(name):
        if name in ("basicsr", "new-basicsr"):
            return "1"
        raise compat.PackageNotFoundError(name)

    monkeypatch.setattr(compat, "version", version)
    assert compat.installed_distributions() == [("basicsr", "1"), ("new-basicsr", "1")]


# --- before the import -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module_there", "mentioned", "needed"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_functional_tensor_is_stubbed_only_if_missing_and_imported(monkeypatch, module_there, mentioned, needed):
    monkeypatch.setattr(compat, "find_spec", lambda name: object() if module_there else None)
    monkeypatch.setattr(compat, "basicsr_source_mentions", lambda file, text: mentioned)
    assert compat.functional_tensor_missing() is needed


def test_stub_exists_only_within_the_context():
    name = compat.FUNCTIONAL_TENSOR
    before = sys.modules.get(name)
    with compat.functional_tensor():
        grayscale = importlib.import_module(name).rgb_to_grayscale
        assert grayscale is importlib.import_module("torchvision.transforms.functional").rgb_to_grayscale
    assert sys.modules.get(name) is before


def test_temporary_module_restores_the_original_module(monkeypatch):
    old = ModuleType("some_module")
    monkeypatch.setitem(sys.modules, "some_module", old)
    with pytest.raises(KeyError), compat.temporary_module("some_module", {"x": 1}):
        assert sys.modules["some_module"].x == 1
        raise KeyError
    assert sys.modules["some_module"] is old


def test_basicsr_sources_are_searched_without_importing(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text("needle")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(compat, "find_spec", lambda name: spec)
    assert compat.basicsr_source_mentions("a.py", "needle")
    assert not compat.basicsr_source_mentions("a.py", "straw")
    assert not compat.basicsr_source_mentions("b.py", "needle")


def test_distutils_comes_from_setuptools_if_missing(monkeypatch):
    monkeypatch.setattr(compat, "find_spec", lambda name: None)
    assert compat.distutils_missing()
    asked = []
    monkeypatch.setattr(compat.importlib, "import_module", asked.append)
    with compat.distutils_of_setuptools():
        assert asked == ["setuptools"]


# --- after the import: images ----------------------------------------------------------------------------------------


def test_valid_image_is_read_unchanged(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    cv2.imwrite(str(tmp_path / "x.png"), image)
    content = FileClient("disk").get(str(tmp_path / "x.png"))
    assert content == (tmp_path / "x.png").read_bytes()
    np.testing.assert_array_equal(imfrombytes(content), image)
    np.testing.assert_allclose(imfrombytes(content, float32=True), image / 255, atol=1e-7)


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_undecodable_file_is_named_in_the_error(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    read = FileClient("disk").get(tmp_path / "x.png")
    with pytest.raises(UserError, match=rf"x\.png: cannot be decoded as an image \({len(content)} bytes\)"):
        imfrombytes(read, float32=True)


def test_missing_file_is_named_in_the_error(tmp_path):
    with pytest.raises(UserError, match=r"x\.png: cannot be read \(No such file or directory\)"):
        FileClient("disk").get(tmp_path / "x.png")


def test_lmdb_errors_name_the_database_and_the_image(tmp_path):
    path = str(tmp_path / "x.lmdb")
    with lmdb.open(path, map_size=2**20) as database, database.begin(write=True) as transaction:
        transaction.put(b"broken", b"no image")
    client = FileClient("lmdb", db_paths=[path], client_keys=["lq"])
    with pytest.raises(UserError, match=r"x\.lmdb: image 'broken': cannot be decoded as an image \(8 bytes\)"):
        imfrombytes(client.get("broken", "lq"))
    with pytest.raises(UserError, match=r"x\.lmdb: image 'absent': is not in the LMDB"):
        client.get("absent", "lq")


# --- after the import: the rest --------------------------------------------------------------------------------------


def test_value_rejected_by_a_loss_is_a_user_error():
    with pytest.raises(UserError, match=r"^L1Loss refuses an option: Unsupported reduction mode: mena\."):
        build_loss({"type": "L1Loss", "reduction": "mena"})


@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # raised by BasicSR's SwinIR
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "MSRResNet", "num_block": "a"}, r"^MSRResNet cannot be built with these options \(TypeError: "),
        ({"type": "MSRResNet", "num_feat": -1}, r"^MSRResNet cannot be built with these options \(RuntimeError: "),
        ({"type": "MSRResNet", "num_feat": 10**7}, "^not enough memory to build MSRResNet with these options"),
        ({"type": "MSRResNet", "upscale": 5}, r"^MSRResNet cannot be built with these options \(AttributeError: "),
        (
            {"type": "SwinIR", "depths": [1, 1], "num_heads": [2]},
            r"^SwinIR cannot be built .* \(IndexError: list",
        ),
        ({"type": "SRVGGNetCompact", "act_type": "gelu"}, r"^SRVGGNetCompact cannot be built .* \(UnboundLocalError: "),
    ],
)
def test_invalid_network_options_are_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        build_network(options)


def test_invalid_optimizer_options_are_user_errors():
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    text = r"^train\.optim_\*: Adam cannot be built with these options \(RuntimeError: `fused` and `foreach` cannot be"
    with pytest.raises(UserError, match=text):
        BaseModel.get_optimizer(None, "Adam", parameters, 0.1, fused=True, foreach=True)
    with pytest.raises(UserError, match=r"^train\.optim_\*: Adam refuses an option: Invalid learning rate: -1"):
        BaseModel.get_optimizer(None, "Adam", parameters, -1)
    with pytest.raises(NotImplementedError):
        BaseModel.get_optimizer(None, "Adamm", parameters, 0.1)


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def loads():
    """A function that loads a file into a model's network, by default a new linear layer, and returns the network."""

    def load(path, key="params", given=None, strict=True, is_train=True, network=None):
        model = BaseModel(
            {"num_gpu": 0, "is_train": is_train, "dist": False, "path": {"param_key_d": given} if given else {}}
        )
        model.net_d = network or torch.nn.Linear(2, 1)
        model.load_network(model.net_d, path, strict, key)
        return model.net_d

    return load


def test_weights_are_loaded_as_in_basicsr(loads, tmp_path):
    state = torch.nn.Linear(2, 1).state_dict()
    for content, key in (
        ({"params": {f"module.{name}": value for name, value in state.items()}}, "params"),
        ({"params": state}, "params_ema"),
        (state, None),
    ):
        torch.save(content, tmp_path / "x.pth")
        assert torch.equal(loads(tmp_path / "x.pth", key).weight, state["weight"])
    torch.save({"params": state | {"weight": torch.zeros(3, 3)}}, tmp_path / "x.pth")
    assert torch.equal(loads(tmp_path / "x.pth", strict=False).bias, state["bias"])


def test_weights_of_a_network_with_an_attribute_named_module(loads, tmp_path):
    """Its prefix ``module.`` is also the one that DataParallel adds."""
    network = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 1)})
    torch.save({"params": network.state_dict()}, tmp_path / "x.pth")
    again = torch.nn.ModuleDict({"module": torch.nn.Linear(2, 1)})
    assert torch.equal(loads(tmp_path / "x.pth", network=again)["module"].weight, network["module"].weight)


def test_released_weights_of_another_scale_are_loaded_if_shapes_match(loads, tmp_path):
    """The parameter names are those of the released code; only the full-resolution head has a different shape."""
    tensors = load_file(Path(__file__).parent / "golden/restormixer_base8_paper.safetensors")
    released = {name.removeprefix("param/"): value for name, value in tensors.items() if name.startswith("param/")}
    torch.save({"params": released}, tmp_path / "x.pth")
    network = RestorMixer(base_channels=8, num_blocks=(2, 4, 2), upscale=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    loads(tmp_path / "x.pth", strict=False, network=network)
    kept = {name for name, value in network.state_dict().items() if torch.equal(value, before[name])}
    assert any(name.startswith("decoder.head_full.") for name in kept) and len(kept) < len(before) / 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"nothing",
            r"x\.pth: cannot be read as PyTorch weights \(it is damaged, or was not saved with torch\.save\)$",
        ),
        (
            {"params": {"a": torch.zeros(1)}},
            r"x\.pth: does not fit .*: missing: 2 tensors, first 'weight'; unexpected: 1 tensors, first 'a'$",
        ),
        ({"foo": 3}, r"x\.pth: holds no network weights"),
        (
            {"params": {"weight": torch.zeros(3, 2), "bias": torch.zeros(1)}},
            r"x\.pth: does not fit .* of another shape: 1 tensors, first 'weight' with 3x2, expected 1x2$",
        ),
    ],
)
def test_unusable_weights_are_user_errors(loads, tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=message):
        loads(path)


def test_requested_parameter_key_must_exist(loads, tmp_path, monkeypatch):
    path, state = tmp_path / "x.pth", torch.nn.Linear(2, 1).state_dict()
    torch.save({"params": state, "params_ema": state}, path)
    with pytest.raises(UserError) as error:
        loads(path, "parms", given="parms")
    assert str(error.value) == (
        f"path.param_key_d: {path} has no entry 'parms', it has params, params_ema. Did you mean 'params'?"
    )
    torch.save({"params": state}, path)
    logged = []
    monkeypatch.setattr("basicsr.utils.get_root_logger", lambda: SimpleNamespace(info=logged.append))
    loads(path, "params_ema", given="params_ema")  # BasicSR's own fallback
    assert logged == [f"Loading Linear from {path}, parameter key params."]
    torch.save({"params": {}, "state_dict": state}, path)  # an empty entry is ignored
    loads(path, "params")
    assert logged[1:] == [f"Loading Linear from {path}, parameter key state_dict."]


def test_testing_logs_a_hint_if_ema_weights_exist(loads, tmp_path, monkeypatch):
    path, state, logged = tmp_path / "x.pth", torch.nn.Linear(2, 1).state_dict(), []
    torch.save({"params": state, "params_ema": state}, path)
    monkeypatch.setattr("basicsr.utils.get_root_logger", lambda: SimpleNamespace(info=logged.append))
    for key, given, is_train in (("params", None, False), ("params", "params", False), ("params", None, True)):
        loads(path, key, given=given, is_train=is_train)
    loading = f"Loading Linear from {path}, parameter key params"
    hint = "; path.param_key_d: params_ema loads the averaged weights, which the file has too"
    assert logged == [f"{loading}{hint}.", f"{loading}.", f"{loading}."]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the patch is for machines without CUDA")
def test_ddp_works_on_cpu(tmp_path):
    file = (tmp_path / "rendezvous").as_uri()
    torch.distributed.init_process_group("gloo", init_method=file, rank=0, world_size=1)
    try:
        model = BaseModel({"num_gpu": 0, "is_train": True, "dist": True})
        kept = model.model_to_device(torch.nn.BatchNorm2d(2))  # BasicSR's own models keep BatchNorm
        assert type(kept.module) is torch.nn.BatchNorm2d
        net = model.model_to_device(torch.nn.Linear(2, 1))
        assert isinstance(net, torch.nn.parallel.DistributedDataParallel)
        net(torch.ones(1, 2)).sum().backward()
        assert net.module.weight.grad.tolist() == [[1.0, 1.0]]
    finally:
        torch.distributed.destroy_process_group()
