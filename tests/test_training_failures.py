"""Failures during training and testing: a correct result or a clear error message, and never a hang."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
from training_runs import EXPERIMENT, architecture, load, same, several_batches, train

from restormixer_arch import RestorMixer, cli
from restormixer_arch.basicsr_adapter import compat

compat.apply()

from basicsr.data.paired_image_dataset import PairedImageDataset  # noqa: E402
from basicsr.models.sr_model import SRModel  # noqa: E402

from restormixer_arch.errors import UserError  # noqa: E402
from restormixer_arch.models.shape_errors import explain_shape_error  # noqa: E402

MINUTE = 60


def as_lmdb(options, size=None):
    """Store the pairs in LMDBs, truncate that of the degraded images to ``size`` bytes, and return the options."""
    for kind in ("gt", "lq"):
        root = Path(f"pairs/{kind}.lmdb")
        images = sorted(Path("pairs", kind).glob("*.png"))
        with lmdb.open(str(root), map_size=2**22) as environment, environment.begin(write=True) as transaction:
            for image in images:
                transaction.put(image.stem.encode(), image.read_bytes() + bytes(20000))
        (root / "meta_info.txt").write_text("".join(f"{image.name} (20,20,3) 1\n" for image in images))
    if size:
        os.truncate("pairs/lq.lmdb/data.mdb", size)
    for dataset in options["datasets"].values():
        dataset["io_backend"] = {"type": "lmdb"}
        dataset.update(dataroot_gt="pairs/gt.lmdb", dataroot_lq="pairs/lq.lmdb")
    return options


@pytest.mark.timeout(MINUTE)
@pytest.mark.parametrize("kind", ["PairedImageDataset", "PairedRestorationDataset"])
@pytest.mark.parametrize("size", [4096, 16384])
def test_truncated_lmdb_is_named_in_the_error(pairs, train_options, write, capsys, kind, size):
    options = as_lmdb(several_batches(train_options), size)
    for dataset in options["datasets"].values():
        dataset["type"] = kind
    assert train(write(options)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"basicsr: error: .*pairs/lq\.lmdb: (data\.mdb is truncated|cannot be opened as an LMDB)", last), (
        last
    )


@pytest.mark.timeout(MINUTE)
@pytest.mark.parametrize("workers", [0, 2])
def test_training_on_a_complete_lmdb(pairs, train_options, write, workers):
    options = as_lmdb(several_batches(train_options, total=2))
    del options["val"], options["datasets"]["val"]  # BasicSR cannot open the same LMDB twice
    options["datasets"]["train"]["num_worker_per_gpu"] = workers
    assert train(write(options)) == 0


@pytest.mark.timeout(MINUTE)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prefetch", [None, "cpu"])
def test_truncated_image_is_named_in_the_error(pairs, train_options, write, capsys, workers, prefetch):
    options = several_batches(train_options)
    options["datasets"]["train"].update(num_worker_per_gpu=workers, prefetch_mode=prefetch)
    image = Path("pairs/lq/3.png")
    image.write_bytes(image.read_bytes()[:40])
    del options["val"], options["datasets"]["val"]
    assert train(write(options)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "basicsr: error: pairs/lq/3.png: cannot be decoded as an image (40 bytes)"
    assert multiprocessing.active_children() == []


@pytest.mark.timeout(MINUTE)
def test_opencv_threads_in_the_main_process_do_not_deadlock_loader_processes(pairs, train_options, write, request):
    request.addfinalizer(partial(cv2.setNumThreads, cv2.getNumThreads()))
    cv2.setNumThreads(2)
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.float32), (31, 31), 5)  # starts the threads
    options = several_batches(train_options, total=2)
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    assert train(write(options)) == 0
    assert cv2.getNumThreads() == 2


@pytest.mark.timeout(MINUTE)
def test_exception_in_a_loader_process_ends_the_training_run(pairs, train_options, write, monkeypatch):
    def getitem(self, index):
        raise ZeroDivisionError("in the dataset")

    monkeypatch.setattr(PairedImageDataset, "__getitem__", getitem)
    options = several_batches(train_options)
    options["datasets"]["train"]["num_worker_per_gpu"] = 2
    with pytest.raises(ZeroDivisionError, match="in the dataset"):
        train(write(options))


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("model", ["SRModel", "RestorMixerModel"])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_in_ch", 1, r"\(lq 3x16x16, gt 3x16x16\): .*(must match|expected input)"),
        ("upscale", 2, r"\(lq 3x16x16, gt 3x16x16\): The size of tensor a"),
    ],
)
def test_network_that_does_not_fit_the_images_is_reported_in_one_line(
    pairs, train_options, write, capsys, model, key, value, message
):
    train_options["model_type"] = model
    train_options["network_g"][key] = value
    assert train(write(train_options)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"basicsr: error: network_g: cannot be trained on this batch {message}", last), last


def test_unused_parameters_in_distributed_training_are_reported(pairs, train_options, write, capsys, monkeypatch):
    """The error comes from torch's DistributedDataParallel itself, in the second iteration."""
    network = torch.nn.ModuleDict({"used": torch.nn.Linear(1, 1), "unused": torch.nn.Linear(1, 1)})
    network.forward = lambda x: network["used"](x)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(network)

        def optimize_parameters(model, iteration):
            wrapped(torch.ones(1, 1)).sum().backward()
            model.optimizer_g.step()

        monkeypatch.setattr(SRModel, "optimize_parameters", optimize_parameters)
        train_options["model_type"] = "SRModel"
        monkeypatch.setattr(SRModel, "get_current_log", lambda model: {})
        assert train(write(train_options)) == 2
    finally:
        torch.distributed.destroy_process_group()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("find_unused_parameters: the network has parameters without a gradient; set it to true")


def test_training_run_that_fails_at_its_start_keeps_the_previous_run(pairs, train_options, write, capsys):
    train_options["logger"]["use_tb_logger"] = True
    assert train(write(train_options)) == 0
    folders = [EXPERIMENT, Path("tb_logger") / EXPERIMENT.name]
    before = [sorted(folder.rglob("*")) for folder in folders]
    assert all(before)
    channels = train_options["network_g"].pop("num_in_ch")
    mistakes = [{"num_in_ch": 1}, {"num_in_ch": channels, "num_feat": -1}]  # at the first batch; when it is built
    for mistake in mistakes:
        train_options["network_g"].update(mistake)
        assert train(write(train_options)) == 2
        assert f"was renamed back to {EXPERIMENT}" in capsys.readouterr().err
        assert [sorted(folder.rglob("*")) for folder in folders] == before
    assert not list(Path().glob("*/*_archived_*"))
    shutil.rmtree(EXPERIMENT)
    assert train(write(train_options)) == 2
    assert not EXPERIMENT.exists()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access"),
        RuntimeError("DataLoader worker (pid 3) is killed"),
        RuntimeError("element 0 of tensors does not require grad and does not have a grad_fn"),
        NotImplementedError("The operator 'aten::foo' is not implemented for the MPS device"),
        RecursionError("maximum recursion depth exceeded"),
    ],
)
def test_errors_unrelated_to_shapes_are_not_replaced(error):
    with pytest.raises(type(error), match=re.escape(str(error))), explain_shape_error("be trained on this batch", {}):
        raise error


def test_image_with_other_channels_than_the_network_is_reported():
    """RestorMixer raises a ValueError for them, not torch's RuntimeError."""
    network = RestorMixer(in_channels=1, out_channels=1, base_channels=4, num_blocks=[1, 2, 2])
    image = torch.zeros(1, 3, 8, 12)
    wanted = r"^network_g: cannot be trained on this batch \(lq 3x8x12\): expected an input of shape \(B, 1, H, W\)"
    with pytest.raises(UserError, match=wanted), explain_shape_error("be trained on this batch", {"lq": image}):
        network(image)
    with pytest.raises(UserError, match="^the size is wrong$"), explain_shape_error("be trained on this batch", {}):
        raise UserError("the size is wrong")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_the_wrong_scale_are_reported_with_their_dataset(pairs, train_options, write, capsys, workers):
    train_options.update(scale=2)
    train_options["datasets"]["train"]["num_worker_per_gpu"] = workers
    assert train(write(train_options)) == 2
    assert re.match(
        r"basicsr: error: datasets\.train \(pairs\): Scale mismatches\. GT \(20, 20\) is not 2x multiplication",
        capsys.readouterr().err.splitlines()[-1],
    )


def test_test_run_that_fails_at_its_start_keeps_the_previous_run(pairs, test_options, write, capsys):
    test_options["path"] = {}
    assert cli.main(["test", "-opt", write(test_options)]) == 0
    before = sorted(Path("results").rglob("*"))
    test_options["path"] = {"pretrain_network_g": __file__}
    assert cli.main(["test", "-opt", write(test_options)]) == 2
    assert "was renamed back to" in capsys.readouterr().err and sorted(Path("results").rglob("*")) == before


def test_ground_truth_of_another_size_is_reported(pairs, test_options, write, capsys):
    cv2.imwrite("pairs/gt/3.png", np.zeros((19, 20, 3), np.uint8))
    test_options["path"] = {}
    assert cli.main(["test", "-opt", write(test_options)]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "basicsr: error: val.metrics.psnr: cannot measure '3' of pairs_test (20, 20): Image shapes are different: "
        "(20, 20, 3), (19, 20, 3)."
    )


@pytest.mark.timeout(MINUTE)
def test_killed_loader_process_is_reported(pairs, train_options, write, monkeypatch, capsys):
    original, parent = PairedImageDataset.__getitem__, os.getpid()

    def getitem(self, index):
        if os.getpid() != parent and index.seed % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, index.index % len(self))

    from restormixer_arch.training.loader import SeededSamples

    monkeypatch.setattr(SeededSamples, "__getitem__", lambda self, index: getitem(self.dataset, index))
    options = several_batches(train_options)
    options["datasets"]["train"]["num_worker_per_gpu"] = 2
    assert train(write(options)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(
        r"basicsr: error: a loader process (is killed by signal: Killed|exited unexpectedly); if the memory ran out, "
        r"lower datasets\.train\.num_worker_per_gpu or batch_size_per_gpu; stopped after iteration \d of 8; ",
        last,
    ), last


def test_loader_process_killed_while_sending_is_reported(pairs, train_options, write, monkeypatch, capsys):
    """In this case torch raises EOFError, since the pipe from the process was closed."""
    from torch.utils.data.dataloader import _BaseDataLoaderIter

    def ends(self):
        raise EOFError

    monkeypatch.setattr(_BaseDataLoaderIter, "__next__", ends)
    options = several_batches(train_options)
    with pytest.raises(EOFError):  # without loader processes, it is an error of the dataset
        train(write(options))
    options["datasets"]["train"]["num_worker_per_gpu"] = 1
    options["name"] = "with_a_process"
    assert train(write(options)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("basicsr: error: a loader process exited unexpectedly; if the memory ran out, ")


@pytest.mark.slow
@pytest.mark.timeout(10 * MINUTE)
@pytest.mark.parametrize(("network", "workers"), [("EDSR", 0), ("RestorMixer", 1)])
def test_runs_killed_at_random_times_resume_to_the_same_result(pairs, train_options, write, network, workers):
    """20 runs in total are killed and then resumed; the final result equals that of an uninterrupted run."""
    options = architecture(several_batches(train_options, total=60), network)
    options["datasets"]["train"]["num_worker_per_gpu"] = workers
    options["logger"].update(save_checkpoint_freq=3, print_freq=100, keep_last=3)
    options["val"]["val_freq"] = 6
    file = write(options)
    assert train(file) == 0
    expected = [load(name) for name in ("models/net_g_latest.pth", "training_states/60.state")]
    shutil.rmtree(EXPERIMENT)
    code = (
        "import sys; from restormixer_arch import cli; import basicsr_slow; "
        "sys.exit(cli.main(['train', '-opt', sys.argv[1], '--auto_resume']))"
    )
    Path("basicsr_slow.py").write_text(
        "import time\nfrom restormixer_arch.basicsr_adapter import compat\ncompat.apply()\n"
        "from basicsr.models.sr_model import SRModel\noriginal = SRModel.feed_data\n"
        "def feed_data(self, data):\n    time.sleep(0.05)\n    original(self, data)\n"
        "SRModel.feed_data = feed_data\nprint('ready', flush=True)\n"
    )
    generator, kills, done = random.Random(network), 0, 0
    while kills < 10 or not done:  # at least one run resumes from a checkpoint
        process = subprocess.Popen(
            [sys.executable, "-c", code, file], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(generator.uniform(0.1, 1.2))
        process.kill()
        process.wait(MINUTE)
        process.stdout.close()
        kills += 1
        states = [int(path.stem) for path in EXPERIMENT.glob("training_states/*.state")]
        assert max(states, default=0) >= done  # no checkpoint is ever lost
        done = max(states, default=0)
    assert train(file, "--auto_resume") == 0
    assert same(load("models/net_g_latest.pth"), expected[0])
    found = load("training_states/60.state")
    assert [key for key in found if not same(found[key], expected[1][key])] == []
