"""Option files, weights, LMDBs and names that are unusual, damaged or malicious; folder locks and full disks."""

from __future__ import annotations

import csv
import errno
import io
import json
import mmap
import os
import pickle
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_network import tiny_network

from restormixer_arch.cli import main
from restormixer_arch.config.check import option_problems, read_option_file
from restormixer_arch.config.yaml_file import read_options
from restormixer_arch.data.images.folder import FolderImages
from restormixer_arch.data.lmdb_io import LmdbImages, read_names, write_lmdb
from restormixer_arch.data.pairing import pair_names, result_names
from restormixer_arch.errors import UserError
from restormixer_arch.folder_lock import FolderLock
from restormixer_arch.inference.weights import load_network, read_weights
from restormixer_arch.training.results import Row, comma_separated, markdown
from restormixer_arch.weight_options import add_stamp

# --- option files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["!!float 5e3", "5e3", "5000.0", "5000"])
def test_integer_options_accept_floats_with_integer_values(folder, text):
    Path("x.yml").write_text(
        f"val:\n  val_freq: {text}\ntrain:\n  scheduler:\n    periods: [{text}]\n  optim_g:\n    lr: 1.0\n"
    )
    _, options = read_option_file("x.yml")
    values = [options["val"]["val_freq"], *options["train"]["scheduler"]["periods"]]
    assert values == [5000, 5000] and all(type(value) is int for value in values)
    assert type(options["train"]["optim_g"]["lr"]) is float
    assert not [p for p in option_problems(options, True) if p.path[-1] in ("val_freq", "periods")]


def aliases(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (aliases(9), "its aliases stand for more than 100000 values"),
        ("a: &a [*a]\n", "an alias stands for a value that it is part of"),
        ("a: " + "[" * 1500, "is nested too deeply for an option file"),
        ("#" * 1_000_001, "is larger than 1000 kB"),
    ],
)
def test_option_files_that_would_exhaust_memory_are_rejected(folder, text, message):
    Path("x.yml").write_text(text)
    with pytest.raises(UserError, match=f"^x.yml: .*{message}"):
        read_options(Path("x.yml"), "x.yml")


def test_endless_device_is_rejected_as_option_file(capsys):
    assert main(["train", "-opt", "/dev/zero"]) == 2
    assert "/dev/zero: is larger than 1000 kB" in capsys.readouterr().err


def test_few_aliases_are_accepted(folder):
    Path("x.yml").write_text("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}\n")
    assert read_options(Path("x.yml"), "x.yml") == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}


# --- weights ---------------------------------------------------------------------------------------------------------


def state():
    network = tiny_network()
    return add_stamp(network.state_dict(), network)


def named(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net_g.", "model._orig_mod."]
)
@pytest.mark.parametrize("key", [None, "params", "model", "net", "generator", "state_dict"])
def test_weights_with_prefixes_and_keys_of_other_tools_are_loaded(folder, prefix, key):
    tensors = named(prefix, state()) | {"total_ops": torch.zeros(1), "encoder.total_params": torch.zeros(1)}
    torch.save({key: tensors, "epoch": 3} if key else tensors, "w.PTH")
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_network("w.PTH")(x)[0], tiny_network().eval()(x)[0])


def test_empty_ema_weights_are_ignored(folder):
    torch.save({"params_ema": {}, "params": state()}, "w.pth")
    assert read_weights("w.pth").keys() == state().keys()


def test_safetensors_suffix_is_case_insensitive(folder):
    save_file(state(), "w.SafeTensors")
    assert load_network("w.SafeTensors").window_size == 8


def test_prefixes_of_other_networks_are_kept(folder):
    torch.save({"model.0.weight": torch.zeros(2)}, "w.pth")
    assert list(read_weights("w.pth")) == ["model.0.weight"]


def test_weights_without_any_matching_tensor_are_rejected(folder, tmp_path):
    from training_cases import RESTORMIXER, options

    from restormixer_arch.models.restormixer_model import RestorMixerModel

    torch.save({"params": {"a": torch.zeros(2)}}, "w.pth")
    opt = options(tmp_path, RESTORMIXER)
    opt["path"] |= {"pretrain_network_g": "w.pth", "strict_load_g": False}
    with pytest.raises(UserError, match=r"^w\.pth: has no tensor of the network of network_g, .* its first is 'a'"):
        RestorMixerModel(opt)


def test_non_strict_loading_skips_tensors_of_other_shapes(folder, tmp_path, monkeypatch):
    """With weights for another super-resolution scale, only tensors of ``decoder.head_full`` are skipped."""
    from training_cases import RESTORMIXER, options

    from restormixer_arch import RestorMixer
    from restormixer_arch.models.restormixer_model import RestorMixerModel

    arguments = {name: value for name, value in RESTORMIXER.items() if name != "type"}
    torch.manual_seed(1)
    torch.save({"params": (source := RestorMixer(**arguments, upscale=2).state_dict())}, "x2.pth")
    opt = options(tmp_path, RESTORMIXER)
    opt["path"] |= {"pretrain_network_g": "x2.pth", "strict_load_g": False}
    warnings = []
    logger = SimpleNamespace(info=lambda text: None, warning=warnings.append)
    monkeypatch.setattr("basicsr.utils.get_root_logger", lambda: logger)
    loaded = RestorMixerModel(opt).net_g.state_dict()
    (warning,) = warnings
    assert warning.startswith(
        "x2.pth: not all of it was loaded: of another shape: 5 tensors, first 'decoder.head_full."
    )
    others = {name for name, tensor in loaded.items() if tensor.shape != source[name].shape}
    assert others and all(name.startswith("decoder.head_full.") for name in others)
    assert all(torch.equal(loaded[name], source[name]) for name in loaded.keys() - others)
    opt["path"]["strict_load_g"] = True
    with pytest.raises(
        UserError, match=r"^x2\.pth: does not fit the network of network_g: of another shape: 5 tensors, first 'd"
    ):
        RestorMixerModel(opt)


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [("window_size", 4, "8 and not 4"), ("scan_merge", "official", "paper and not official")],
)
def test_weights_trained_with_other_options_are_rejected(folder, tmp_path, capsys, option, value, text):
    """These options do not affect the shapes of the tensors."""
    from training_cases import RESTORMIXER, options

    from restormixer_arch import RestorMixer
    from restormixer_arch.models.restormixer_model import RestorMixerModel

    arguments = {name: value for name, value in RESTORMIXER.items() if name != "type"}
    network = RestorMixer(**arguments)
    torch.save({"params": add_stamp(network.state_dict(), network)}, "w.pth")
    opt = options(tmp_path, RESTORMIXER | {option: value})
    opt["path"]["pretrain_network_g"] = "w.pth"
    message = f"w.pth: its weights were trained with {option} {text}, as network_g says"
    with pytest.raises(UserError, match=rf"^{message}; with path\.strict_load_g: false they are loaded"):
        RestorMixerModel(opt)
    opt["path"]["strict_load_g"] = False
    RestorMixerModel(opt)
    assert f"WARNING: {message}\n" in capsys.readouterr().err


class Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!doctype html><html></html>", "it is a web page or a pointer to a file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a web page or a pointer to a file"),
        (b"", "it is damaged, or was not saved with torch.save"),
        (bytes(range(256)) * 20, "it is damaged, or was not saved with torch.save"),
        (pickle.dumps(Runs()), "it is damaged, or was not saved with torch.save"),
    ],
)
def test_files_that_are_not_weights_are_rejected(folder, content, message):
    Path("w.pth").write_bytes(content)
    with pytest.raises(UserError, match=f"^w.pth: cannot be read as PyTorch weights \\({message}") as caught:
        read_weights("w.pth")
    assert "weights_only" not in str(caught.value) and not Path("ran").exists()


def test_python_objects_are_not_loaded(folder):
    torch.save({"params": Runs()}, "w.pth")
    with pytest.raises(UserError, match="it holds Python objects, which are not loaded since they could run code"):
        read_weights("w.pth")
    assert not Path("ran").exists()


def test_non_finite_weights_are_reported_by_name(folder):
    tensors = state()
    tensors["encoder.stem.0.conv.weight"] = torch.full_like(tensors["encoder.stem.0.conv.weight"], torch.nan)
    torch.save(tensors, "w.pth")
    with pytest.raises(UserError, match=r"^w.pth: encoder\.stem\.0\.conv\.weight holds values that are not finite"):
        read_weights("w.pth")


@pytest.mark.parametrize(("name", "values"), [("window_size", [0]), ("encoder_heads", [3, 3]), ("scan_merge", [9])])
def test_invalid_stamp_is_rejected(folder, name, values):
    torch.save(state() | {f"restormixer_options.{name}": torch.tensor(values)}, "w.pth")
    with pytest.raises(UserError, match=r"^w\.pth: no RestorMixer can be built from it \("):
        load_network("w.pth")


# --- LMDBs -----------------------------------------------------------------------------------------------------------


def test_names_are_read_from_meta_info_lines(folder):
    lines = {
        "a.png (480,321,3) 1": "a.png",
        "b c.png (480, 321, 3)": "b c.png",
        "d e.png 9": "d e.png",
        "f (1,2,3).png (4,5,3) 1": "f (1,2,3).png",
        "g(1,2,3)": "g(1,2,3)",
        "h" + " " * 40_000 + "i.png": "h" + " " * 40_000 + "i.png",
        "(1,2,3) 1": "(1,2,3)",
    }
    Path("meta_info.txt").write_text("\n".join(lines) + "\n")
    assert read_names(Path("meta_info.txt")) == list(lines.values())


@pytest.mark.parametrize("missing", [1, 4096, 60_000, 500_000])
def test_truncated_lmdb_is_reported_without_crash(folder, missing):
    noise = np.random.default_rng(0).integers(0, 256, (10, 200, 200, 3), np.uint8)
    write_lmdb(folder / "x.lmdb", [(str(number), image) for number, image in enumerate(noise)], compression=0)
    file = Path("x.lmdb/data.mdb")
    os.truncate(file, file.stat().st_size - missing)
    code = (
        "from restormixer_arch.data.lmdb_io import LmdbImages\n"
        "images = LmdbImages('x.lmdb', 'dataroot_gt')\n"
        "print(sum(images.read(name).shape[0] for name in images.names))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.returncode  # negative if killed by a signal
    # LMDB maps complete pages, so all values are readable if only part of the last page is missing.
    assert done.returncode == (missing >= mmap.PAGESIZE)
    assert done.returncode == 0 or "x.lmdb: data.mdb is truncated: it has" in done.stderr


# --- names -----------------------------------------------------------------------------------------------------------


def test_results_of_images_with_the_same_name_get_unique_names():
    paths = ["d/a/x.png", "d/b/x.png", "d/y.jpg", "d/y.png", "d/z.png"]
    assert result_names(paths, "d") == ["a_x", "b_x", "y_jpg", "y_png", "z"]
    assert result_names(["k/1", "k/2"], "x.lmdb") == ["1", "2"]


def test_pairing_prefers_exact_names(folder):
    image = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    for name in ("gt/a.jpg", "gt/a.png", "gt/b.png", "lq/a.bmp", "lq/a.png", "lq/b.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(image)
    gt, lq = (FolderImages(name, f"dataroot_{name}", False) for name in ("gt", "lq"))
    assert pair_names(gt, lq, gt.names) == [("a.jpg", "a.bmp"), ("a.png", "a.png"), ("b.png", "b.jpg")]


def test_names_in_tables_are_escaped():
    rows = [Row("=1+1\n| evil |", 1, {"psnr": (None, 30.0)}), Row("plain", 1, {"psnr": (None, 31.0)})]
    assert list(csv.reader(io.StringIO(comma_separated(rows))))[1][0] == "'=1+1\n| evil |"
    lines = markdown(rows).splitlines()
    assert len(lines) == 4 and lines[2] == "| =1+1 \\| evil \\| | 1 | 30.00 |"


def test_folder_that_cannot_be_created_is_reported_in_one_line(pairs, train_options, write, capsys):
    assert main(["train", "-opt", write(train_options), "--force_yml", "path:experiments_root=/dev/null"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "basicsr: error: /dev/null/tiny: Not a directory"


def test_folder_locked_by_another_process_is_rejected(folder):
    Path("run").mkdir()
    code = (
        "import sys\nfrom restormixer_arch.folder_lock import FolderLock\n"
        "lock = FolderLock()\nlock.take('run')\nprint('taken', flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"taken\n"
        with pytest.raises(UserError, match=f"^run: process {other.pid} on .* is writing into it"):
            FolderLock().take("run")
        other.kill()
    lock = FolderLock()
    lock.take("run")  # the lock ended with its process
    lock.close()


@pytest.mark.parametrize(("code", "raised"), [(errno.EROFS, False), (errno.EACCES, False), (errno.ENOSPC, True)])
def test_folder_without_write_access_is_not_locked(folder, monkeypatch, code, raised):
    """A dataset that is already prepared can be used on a read-only file system; a full disk is still an error."""
    Path("run").mkdir()

    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: code not in (errno.EROFS, errno.EACCES))
    with pytest.raises(OSError, match="No space") if raised else nullcontext():
        FolderLock().take("run")
    assert not os.listdir("run")


def test_lmdb_keys_with_folders_give_unique_result_names(folder):
    image = np.zeros((4, 4, 3), np.uint8)
    write_lmdb(folder / "x.lmdb", [("a/1", image), ("b/1", image)])
    names = LmdbImages(folder / "x.lmdb", "x").names
    assert result_names(names, "") == ["a_1", "b_1"]


# --- full disks ------------------------------------------------------------------------------------------------------

COMMANDS = [
    ["degrade", "set", "--gt", "raw/Set5/HR", "--out", "out0", "--labels", "noise"],
    ["degrade", "set", "--gt", "raw/Set5/HR", "--out", "out1", "--labels", "noise", "--lmdb"],
    ["degrade", "sheet", "--photo", "raw/Set5/HR/0.png", "--out", "out2.png"],
    ["prepare", "sr", "--root", "raw", "--out", "out3", "--workers", "1"],
    ["prepare", "sr", "--root", "raw", "--out", "out4", "--workers", "1", "--format", "folder"],
]
FULL = """
import json, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # a file that grows beyond it cannot be written
from restormixer_arch.cli import main
codes = []
for arguments in json.loads(sys.argv[1]):
    codes.append(main(arguments))
    sys.stderr.write("----\\n")
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    """Run all commands in a process that cannot write files above 20 kB; return its folder, exit codes and stderr."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "raw/Set5/HR").mkdir(parents=True)
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (96, 96, 3), np.uint8)
        (folder / f"raw/Set5/HR/{number}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    command = [sys.executable, "-c", FULL, json.dumps(COMMANDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert "Traceback" not in done.stderr, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1]), done.stderr.split("----\n")


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_full_disk_is_reported_in_one_line_and_leaves_no_partial_output(full_disk, number):
    folder, codes, said = full_disk
    assert codes[number] == 2
    last = said[number].splitlines()[-1]
    assert last.startswith("basicsr: error: ") and ("too large" in last.lower() or "cannot be written" in last), last
    if COMMANDS[number][0] == "degrade":
        assert not (folder / f"out{number}").exists() and not (folder / f"out{number}.png").exists()


def test_folder_with_lock_file_of_another_user_is_not_locked(tmp_path, monkeypatch, capsys):
    """In a folder shared by a group, the lock file of another user may not be writable."""
    original = Path.open

    def refused(self, *arguments, **options):
        if self.name == ".lock":
            raise PermissionError(13, "Permission denied")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    lock = FolderLock()
    lock.take(tmp_path)
    assert ".lock belongs to another user, so the folder is not locked" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="has no such modes")
def test_group_members_can_lock_a_shared_folder(tmp_path):
    tmp_path.chmod(0o775)
    lock = FolderLock()
    lock.take(tmp_path)
    lock.close()
    assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o664
