"""Networks in folders and on the Hugging Face Hub, without a connection: the Hub is mocked or its files are cached."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_network import tiny_network

from restormixer_arch import RestorMixer, cli, hub, restore
from restormixer_arch.errors import UserError

X = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def offline(folder, monkeypatch):
    """An empty working directory and an empty cache."""
    monkeypatch.setenv("HF_HOME", str(folder / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def huggingface_hub(folder, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "cache/token"))
    import huggingface_hub.errors

    return huggingface_hub


def cached(repo_id, files):
    """Copy files into the cache in the layout of the Hub's client."""
    top = Path("cache", f"models--{repo_id.replace('/', '--')}")
    snapshot = top / "snapshots" / ("0" * 40)
    shutil.copytree(files, snapshot)
    (top / "refs").mkdir()
    (top / "refs/main").write_text("0" * 40)
    return snapshot


def restored(*arguments):
    cv2.imwrite("photo.png", np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8))
    return cli.main(["restore", "photo.png", "-o", "out", "--overwrite", *arguments])


def error_of(capsys, *arguments):
    assert restored(*arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    return errors[0].removeprefix("basicsr: error: ")


# --- folders ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"upscale": 2}, {"in_channels": 1, "out_channels": 1}, {"window_size": 4}])
def test_saved_folder_loads_as_the_same_network(options):
    network = tiny_network(**options)
    assert network.save_pretrained("net") == Path("net")
    assert sorted(path.name for path in Path("net").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = RestorMixer.from_pretrained("net")
    assert not loaded.training
    assert loaded.window_size == network.window_size and loaded.upscale == network.upscale
    x = X[:, : network.in_channels]
    torch.testing.assert_close(loaded(x), network(x), rtol=0, atol=1e-5)
    assert loaded.state_dict().keys() == network.state_dict().keys()
    loaded.train()(x)  # the network can be trained further


def test_pickled_file_is_rejected_with_an_export_command():
    torch.save({"params": tiny_network().state_dict()}, "net.pth")
    with pytest.raises(UserError, match=r"^net.pth: not a .safetensors file; 'basicsr export net.pth -o model.saf"):
        RestorMixer.from_pretrained("net.pth")


@torch.no_grad()
def test_config_builds_the_same_network():
    network = RestorMixer(base_channels=4, num_blocks=(1, 2, 2), encoder_heads=(1, 2), deep_supervision=False)
    network.save_pretrained("net")
    again = RestorMixer(**json.loads(Path("net/config.json").read_text()))
    again.load_state_dict(load_file("net/model.safetensors"))
    assert torch.equal(again.eval()(X), network.eval()(X))
    assert not RestorMixer.from_pretrained("net").deep_supervision


@torch.no_grad()
def test_config_supplies_the_options_of_weights_without_a_stamp():
    network = tiny_network(window_size=4, scan_merge="official")
    network.save_pretrained("net")
    save_file(network.state_dict(), "net/model.safetensors")
    for loaded in (RestorMixer.from_pretrained("net"), RestorMixer.from_pretrained("net/model.safetensors")):
        assert (loaded.window_size, loaded.scan_merge, loaded.encoder_heads) == (4, "official", (2, 2))
    result = restore(X, weights="net")
    torch.testing.assert_close(result, network(X).clamp(0, 1), rtol=0, atol=1e-5)


def test_mistyped_folder_is_not_looked_up_on_the_hub(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    tiny_network().save_pretrained("models/derain")
    Path("models/notes").mkdir()
    message = "models/derian: no such weights in 'models', so they are not looked for on the Hugging "
    assert error_of(capsys, "--weights", "models/derian") == message + "Face Hub. Did you mean 'derain'?"
    for name in ("models/note", "models/x", "other/derian"):  # no similar name, or only a folder without weights
        assert "the Hugging Face Hub needs huggingface_hub" in error_of(capsys, "--weights", name)


def test_devices_and_broken_links_are_rejected_as_weights(capsys):
    assert error_of(capsys, "--weights", os.devnull) == (
        f"{os.devnull}: is neither a file nor a folder, but a pipe, socket or device"
    )
    Path("net.pth").symlink_to("nowhere.pth")
    assert error_of(capsys, "--weights", "net.pth") == "net.pth: is a link to 'nowhere.pth', which does not exist"


@pytest.mark.parametrize("name", [".", "my 'net'", "two\nlines"])
def test_model_card_quotes_the_folder_name(name):
    tiny_network().save_pretrained(name)
    card, folder = Path(name, "README.md").read_text(), Path(name).resolve().name
    command, python = re.findall(r"```\w+\n(.*?)\n```", card, re.S)
    assert shlex.split(command)[-2:] == ["--weights", folder]
    [call] = [node for node in ast.walk(ast.parse(python)) if isinstance(node, ast.Call)]
    assert call.args[0].value == folder
    assert f"# {' '.join(folder.split())}\n" in card


def test_model_card_has_hub_metadata_and_is_not_overwritten(huggingface_hub):
    tiny_network(upscale=2).save_pretrained("net", license="cc-by-4.0")
    data = huggingface_hub.ModelCard.load("net/README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-4.0", "restormixer", "image-to-image")
    assert data.tags == ["image-restoration", "restormixer", "super-resolution"]
    Path("net/README.md").write_text("mine")
    tiny_network().save_pretrained("net")
    assert Path("net/README.md").read_text() == "mine"
    assert RestorMixer.from_pretrained("net").upscale == 1


@torch.no_grad()
def test_pytorch_model_hub_mixin_reads_and_writes_the_same_files(huggingface_hub):
    class Mixed(huggingface_hub.PyTorchModelHubMixin, RestorMixer):
        pass

    network = tiny_network(window_size=4)
    network.save_pretrained("ours")
    theirs = Mixed.from_pretrained("ours")
    torch.testing.assert_close(theirs(X), network(X), rtol=0, atol=1e-5)
    theirs.save_pretrained("theirs")
    ours = RestorMixer.from_pretrained("theirs")
    assert ours.window_size == 4
    assert torch.equal(ours(X), theirs(X))


def test_restore_command_accepts_a_folder_of_weights(capsys):
    tiny_network().save_pretrained("net")
    assert restored("--weights", "net") == 0
    folder = cv2.imread("out/photo.png")
    assert restored("--weights", "net/model.safetensors") == 0
    np.testing.assert_array_equal(cv2.imread("out/photo.png"), folder)


def test_training_run_folder_is_rejected_with_a_hint_to_its_weights(folder):
    latest = Path("experiments/mine/models/net_g_latest.pth")
    latest.parent.mkdir(parents=True)
    latest.touch()
    for place in (latest.parent, latest.parent.parent):
        with pytest.raises(UserError, match=f"no model.safetensors; use the weights of the training, {latest}$"):
            hub.find_local_weights(place)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nett", "nett: does not exist. Did you mean 'net'?"),
        ("empty", "empty: this folder holds no model.safetensors"),
        ("net/weights", "net/weights: cannot be fetched: no such file here, and the Hugging Face"),
        ("net/models.safetensors", "net/models.safetensors: does not exist. Did you mean 'net/model.safetensors"),
        ("damaged", "damaged/model.safetensors: cannot be read as safetensors ("),
        ("other", "other: no RestorMixer can be built from it (not the weights of a RestorMixer"),
        ("config", "config: no RestorMixer can be built from it (config.json is not JSON: "),
        ("list", "list: no RestorMixer can be built from it (config.json holds no object)"),
        ("heads", "heads: no RestorMixer can be built from it (window_size"),
    ],
)
def test_unusable_folder_is_reported_in_one_line(huggingface_hub, name, message):
    tiny_network().save_pretrained("net")
    for copy in ("damaged", "other", "config", "list", "heads"):
        shutil.copytree("net", copy)
    Path("empty").mkdir()
    Path("damaged/model.safetensors").write_bytes(b"1")
    save_file({"a": torch.zeros(1)}, "other/model.safetensors")
    Path("config/config.json").write_text("{")
    Path("list/config.json").write_text("[]")
    save_file(tiny_network().state_dict(), "heads/model.safetensors")
    Path("heads/config.json").write_text('{"window_size": 0}')
    with pytest.raises(UserError) as caught:
        RestorMixer.from_pretrained(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


# --- the Hub ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_cached_repository_is_loaded(huggingface_hub, capsys):
    network = tiny_network()
    cached("org/name", network.save_pretrained("net"))
    torch.testing.assert_close(RestorMixer.from_pretrained("org/name")(X), network(X), rtol=0, atol=1e-5)
    assert restored("--weights", "org/name") == 0
    assert (
        "basicsr: note: org/name: no such file here, looking for it on the Hugging Face Hub" in capsys.readouterr().err
    )
    fetched = cv2.imread("out/photo.png")
    assert restored("--weights", "net") == 0
    np.testing.assert_array_equal(cv2.imread("out/photo.png"), fetched)


def test_local_folder_takes_precedence_over_the_hub(huggingface_hub):
    cached("org/name", tiny_network().save_pretrained("net"))
    tiny_network(upscale=2).save_pretrained("org/name")
    assert RestorMixer.from_pretrained("org/name").upscale == 2


def test_download_settings_are_passed_to_the_hub(huggingface_hub, monkeypatch):
    tiny_network().save_pretrained("net")
    calls = []

    def download(repo_id, filename, **settings):
        calls.append((repo_id, filename, settings))
        if filename == "config.json":
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        return f"net/{filename}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    settings = {"revision": "v1", "cache_dir": "x", "token": "t", "force_download": True, "local_files_only": True}
    assert isinstance(RestorMixer.from_pretrained("org/name", **settings), RestorMixer)
    assert calls == [("org/name", name, settings) for name in ("model.safetensors", "config.json")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("LocalEntryNotFoundError", "no such file here, and the Hugging Face Hub cannot be reached (no connection, or"),
        ("RepositoryNotFoundError", "no such file here, and no such repository on the Hugging Face Hub (a private"),
        ("GatedRepoError", "the repository is gated: accept its terms online, and run 'hf auth login'"),
        ("RevisionNotFoundError", "the repository has no such revision"),
        ("RemoteEntryNotFoundError", "the repository has no model.safetensors, so no weights of RestorMixer"),
    ],
)
def test_hub_error_is_reported_in_one_line(huggingface_hub, monkeypatch, capsys, error, message):
    kind = getattr(huggingface_hub.errors, error)

    def fail(*arguments, **settings):
        raise kind.__new__(kind, "reason")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    assert error_of(capsys, "--weights", "org/name").startswith(f"org/name: cannot be fetched: {message}")
    assert not Path("out").exists()


def test_missing_connection_is_reported(huggingface_hub, capsys):
    assert "cannot be reached" in error_of(capsys, "--weights", "org/name")


def test_log_messages_of_huggingface_hub_are_hidden(huggingface_hub):
    """Runs in a new process, since the first import of huggingface_hub is part of the test."""
    code = "import logging; from restormixer_arch.hub import _explain_hub_errors\n"
    code += "with _explain_hub_errors('org/name', 'fetched'):\n"
    code += "    from huggingface_hub import hf_hub_download\n"
    code += "    assert logging.getLogger('huggingface_hub').level == logging.ERROR\n"
    code += "assert logging.getLogger('huggingface_hub').level != logging.ERROR\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.slow
def test_unreachable_hub_is_reported_in_one_line(huggingface_hub):
    cv2.imwrite("photo.png", np.zeros((24, 40, 3), np.uint8))
    code = "import sys; from restormixer_arch.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "restore", "photo.png", "-o", "out", "--weights", "org/name"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    fetching, error = done.stderr.splitlines()
    assert done.returncode == 2 and fetching == (
        "basicsr: note: org/name: no such file here, looking for it on the Hugging Face Hub"
    )
    assert error.startswith("basicsr: error: org/name: cannot be fetched: no such file here, and the Hugging Face Hub ")


def test_repository_of_another_network_is_rejected(huggingface_hub, capsys):
    Path("net").mkdir()
    save_file({"a": torch.zeros(1)}, "net/model.safetensors")
    cached("org/name", "net")
    assert error_of(capsys, "--weights", "org/name") == "org/name: are not the weights of a RestorMixer"


def test_only_hub_access_needs_huggingface_hub(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = "org/name: is not a file or folder here, and the Hugging Face Hub needs huggingface_hub; pip install "
    assert error_of(capsys, "--weights", "org/name") == message + "'restormixer[hub]'"
    assert error_of(capsys, "--weights", "a/b/c.pth").startswith("a/b/c.pth: does not exist (there is no 'a' in ")
    tiny_network().save_pretrained("net")
    RestorMixer.from_pretrained("net")
    with pytest.raises(UserError, match="needs huggingface_hub"):
        tiny_network().push_to_hub("org/name")


class FakeApi:
    """The methods of ``HfApi`` that an upload calls."""

    card, uploads = False, []

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, private=None, exist_ok=False):
        assert exist_ok
        return type("Url", (), {"repo_id": f"me/{repo_id}"})

    def file_exists(self, repo_id, name, revision=None):
        return self.card

    def upload_folder(self, repo_id, folder_path, commit_message, revision):
        shutil.copytree(folder_path, "uploaded")
        self.uploads.append((repo_id, commit_message, revision, self.token))
        return f"https://hub/{repo_id}/commit/1"


@pytest.mark.parametrize("card", [False, True])
def test_upload_adds_a_card_only_if_there_is_none(huggingface_hub, monkeypatch, card):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "card", card)
    monkeypatch.setattr(FakeApi, "uploads", [])
    url = tiny_network().push_to_hub("name", token="t", revision="r", commit_message="first")
    assert url == "https://hub/me/name/commit/1"
    assert FakeApi.uploads == [("me/name", "first", "r", "t")]
    assert Path("uploaded/README.md").exists() != card
    if not card:
        assert "--weights me/name" in Path("uploaded/README.md").read_text()
    RestorMixer.from_pretrained("uploaded")


def test_upload_without_a_connection_is_rejected(huggingface_hub):
    with pytest.raises(UserError, match="^me/name: cannot be uploaded"):
        tiny_network().push_to_hub("me/name")


def test_local_files_do_not_import_huggingface_hub():
    tiny_network().save_pretrained("net")
    code = "import sys; from restormixer_arch import RestorMixer, restore; import torch\n"
    code += "RestorMixer.from_pretrained('net'); restore(torch.zeros(1, 3, 16, 16), weights='net')\n"
    code += "RestorMixer(base_channels=4, num_blocks=(1, 0, 0)).save_pretrained('again')\n"
    code += "assert 'huggingface_hub' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_file_names_equal_those_of_huggingface_hub(huggingface_hub):
    constants = huggingface_hub.constants
    assert (hub.WEIGHTS, hub.CONFIG) == (constants.SAFETENSORS_SINGLE_FILE, constants.CONFIG_NAME)
