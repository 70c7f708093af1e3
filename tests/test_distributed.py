"""Jobs of two real processes over gloo: same results as one process, and the job ends when one of them ends."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch
from training_runs import EXPERIMENT, architecture, load, same, several_batches, train

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.errors import UserError

compat.apply()

from basicsr.models.sr_model import SRModel  # noqa: E402

from restormixer_arch.training import distributed  # noqa: E402

forked = pytest.mark.skipif(sys.platform != "linux", reason="the processes of a job are forked from the test's")


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def run_rank(rank, world_size, port, arguments, prepare):
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"rank{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # instead of the captured streams
    if prepare:
        prepare(rank)
    code = cli.main([*arguments, "--launcher", "pytorch"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def job(*arguments, prepare=None):
    """Run the command in two processes; return their exit codes and the stderr of each."""
    port, fork = free_port(), multiprocessing.get_context("fork")
    ranks = [fork.Process(target=run_rank, args=(rank, 2, port, arguments, prepare)) for rank in range(2)]
    with distributed.opencv_single_threaded():  # its threads would be missing in the forked processes
        for rank in ranks:
            rank.start()
    try:
        for rank in ranks:
            rank.join(60)
        assert not any(rank.is_alive() for rank in ranks), "a process of the job hangs"
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.exitcode for rank in ranks], [Path(f"rank{rank}.err").read_text() for rank in range(2)]


def acting(iteration, action):
    """Return a ``prepare`` function that calls ``action(rank)`` within an iteration, in each process of a job."""

    def prepare(rank):
        original = SRModel.optimize_parameters

        def optimize_parameters(self, current_iter):
            if current_iter == iteration:
                action(rank)
            original(self, current_iter)

        SRModel.optimize_parameters = optimize_parameters

    return prepare


@forked
def test_two_processes_train_like_one_with_the_total_batch_size(pairs, train_options, write):
    options = several_batches(train_options, total=6)
    options["val"].update(val_freq=3, save_img=True)
    options["datasets"]["train"].update(dataset_enlarge_ratio=2, num_worker_per_gpu=1)
    codes, errors = job("train", "-opt", write(options))
    assert codes == [0, 0], errors
    assert Path("rank0.out").read_text().startswith("pairs_val: PSNR ") and Path("rank1.out").read_text() == ""
    options["name"] = "one"
    options["datasets"]["train"]["batch_size_per_gpu"] = 4
    assert train(write(options)) == 0
    one = Path("experiments/one")
    ours, theirs = load("models/net_g_latest.pth"), load("models/net_g_latest.pth", one)
    for key in ("params", "params_ema"):
        for name, value in theirs[key].items():
            torch.testing.assert_close(ours[key][name], value, rtol=1e-5, atol=1e-7)
    ours, theirs = load("training_states/6.state"), load("training_states/6.state", one)
    assert len(ours["generators"]) == 2 and ours["position"] == theirs["position"]
    assert ours["position"] == {"epoch": 1, "consumed": 12, "size": 12, "images": 6}
    best = [state["best"]["pairs_val"]["psnr"] for state in (ours, theirs)]
    assert best[0]["iter"] == best[1]["iter"] == 3 and best[0]["val"] == pytest.approx(best[1]["val"], abs=1e-6)
    images = [sorted(path.name for path in root.glob("visualization/*/*_3.png")) for root in (EXPERIMENT, one)]
    assert images[0] == images[1] and len(images[0]) == 6


@forked
@pytest.mark.parametrize("kind", ["no deep supervision", "a loss on one output"])
def test_heads_without_gradients_do_not_stop_a_job(pairs, train_options, write, kind):
    options = architecture(several_batches(train_options, total=3), "RestorMixer")
    options["val"] = None
    if kind == "no deep supervision":
        options["network_g"]["deep_supervision"] = False
    options["train"]["pixel_opt"] = {"type": "L1Loss"}
    codes, errors = job("train", "-opt", write(options))
    assert codes == [0, 0], errors
    before, after = (load(f"models/net_g_{name}.pth")["params"] for name in ("2", "latest"))
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "decoder.head_full.conv.weight" in moved
    assert not any(name.startswith(("decoder.head_half.", "decoder.head_quarter.")) for name in moved)


@forked
@pytest.mark.parametrize("network", ["EDSR", "RestorMixer"])
def test_shared_validation_has_the_results_of_one_process(pairs, train_options, test_options, write, capsys, network):
    Path("pairs/gt/6.png").write_bytes(Path("pairs/gt/5.png").read_bytes())  # seven images for two processes
    Path("pairs/lq/6.png").write_bytes(Path("pairs/lq/0.png").read_bytes())
    file = write(architecture(several_batches(train_options, total=2), network))
    assert train(file) == 0
    for key in ("model_type", "network_g"):
        test_options[key] = train_options[key]
    if network == "RestorMixer":  # which also reports results by label
        for number, label in enumerate(("rain", "haze", "rain", "snow", "haze", "low", "snow")):
            for kind in ("gt", "lq"):
                Path(f"pairs/{kind}/{number}.png").rename(f"pairs/{kind}/{number}_{label}.png")
    test_options["val"]["metrics"]["ssim"] = {"type": "calculate_ssim", "crop_border": 0}
    file = write(test_options)
    capsys.readouterr()
    assert cli.main(["test", "-opt", file]) == 0
    alone = capsys.readouterr()
    tables = [path.read_text() for path in Path("results/tiny").glob("*_labels.md")]
    assert len(tables) == (network == "RestorMixer")
    codes, errors = job("test", "-opt", file)
    assert codes == [0, 0], errors
    assert Path("rank0.out").read_text() == alone.out and "PSNR" in alone.out and "SSIM" in alone.out
    assert len(list(Path("results/tiny/visualization/pairs_test").iterdir())) == 7
    assert [path.read_text() for path in Path("results/tiny").glob("*_labels.md")] == tables
    logged = [line for line in alone.err.splitlines() if line.startswith("\t # ")]
    assert logged == [line for line in errors[0].splitlines() if line.startswith("\t # ")] and len(logged) == 2


@forked
@pytest.mark.parametrize("optimizer", ["Adam", "AdamWScheduleFree"])
def test_validation_uses_the_batch_norm_statistics_that_are_saved(pairs, train_options, test_options, write, optimizer):
    """On the CPU, each process has statistics of its own part of the last batch, or of recent ones if schedule-free."""
    if optimizer == "AdamWScheduleFree":
        pytest.importorskip("schedulefree")
    options = architecture(several_batches(train_options, total=3), "RestorMixer")
    options["datasets"]["train"]["batch_size_per_gpu"] = 1
    options["train"].update(ema_decay=0, grad_clip=0, optim_g={"type": optimizer, "lr": 0.3})
    codes, errors = job("train", "-opt", write(options))
    assert codes == [0, 0], errors
    with (EXPERIMENT / "validations.csv").open() as table:
        trained = [float(row["psnr"]) for row in csv.DictReader(table)]
    test_options.update({key: options[key] for key in ("model_type", "network_g")})
    test_options["datasets"] = {"test_1": options["datasets"]["val"]}
    assert cli.main(["test", "-opt", write(test_options)]) == 0
    tested = json.loads(Path("results/tiny/results.json").read_text())["pairs_val"]["psnr"]["restored"]
    assert tested == pytest.approx(trained[-1], abs=1e-9)


@forked
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_resumed_job_is_bit_identical_to_an_uninterrupted_one(pairs, train_options, write):
    file = write(architecture(several_batches(train_options, total=4), "SwinIR"))
    file = write(train_options | {"name": "at_once"})
    assert job("train", "-opt", file)[0] == [0, 0]
    file = write(train_options)
    codes, errors = job("train", "-opt", file, prepare=acting(3, lambda rank: os._exit(9)))
    assert codes == [9, 9], errors
    assert job("train", "-opt", file, "--auto_resume")[0] == [0, 0]
    for name in ("models/net_g_latest.pth", "training_states/4.state"):
        found, expected = load(name), load(name, Path("experiments/at_once"))
        assert [key for key in expected if not same(found[key], expected[key])] == []


@forked
def test_failed_process_ends_the_job_with_its_message(pairs, train_options, write):
    def fail(rank):
        if rank == 1:
            raise UserError("pairs/lq/3.png: cannot be decoded as an image")

    codes, errors = job("train", "-opt", write(several_batches(train_options)), prepare=acting(3, fail))
    assert codes == [2, 2]
    assert errors[1].splitlines()[-1] == "basicsr: error: pairs/lq/3.png: cannot be decoded as an image"
    assert errors[0].splitlines()[-1] == (
        "basicsr: error: process 0 of 2: another process of the job has ended (see its message), or has not responded "
        "for dist_params.timeout_minutes"
    )


@forked
def test_killed_process_ends_the_job(pairs, train_options, write):
    def die(rank):
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    codes, errors = job("train", "-opt", write(several_batches(train_options)), prepare=acting(3, die))
    assert codes == [-signal.SIGKILL, 2]
    assert errors[1].splitlines()[-1].startswith("basicsr: error: process 1 of 2: another process of the job has ended")


@forked
def test_signal_to_one_process_stops_all_after_the_same_iteration(pairs, train_options, write):
    def terminate(rank):
        if rank == 1:
            signal.raise_signal(signal.SIGTERM)

    codes, errors = job("train", "-opt", write(several_batches(train_options)), prepare=acting(3, terminate))
    assert codes == [143, 143], errors
    assert (
        "SIGTERM: stopped after iteration 3 of 8; last checkpoint: experiments/tiny/training_states/3.state"
        in errors[0]
    )
    assert load("training_states/3.state")["position"]["consumed"] in (4, 12)
    command = "basicsr train -opt x.yml --launcher pytorch --auto_resume"
    assert errors[0].splitlines()[-1].endswith(f"; resume (with the same launcher) with: {command}")
    assert "stopped" not in errors[1]


# --- joining the process group ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "on_gpu", "taken"),
    [(None, False, "gloo"), ("gloo", False, "gloo"), ("gloo", True, "gloo"), ("nccl", False, "gloo")],
)
def test_choose_backend_uses_gloo_without_gpus_or_if_requested(wanted, on_gpu, taken, capsys):
    assert distributed.choose_backend(wanted, on_gpu) == taken
    noted = "note: dist_params.backend: 'nccl' works between GPUs, and there are none in use; taking 'gloo'"
    assert (noted in capsys.readouterr().err) is (wanted == "nccl")


def test_choose_backend_uses_nccl_on_gpus(monkeypatch):
    monkeypatch.setattr(distributed.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(distributed.distributed, "is_backend_available", lambda name: True)
    assert distributed.choose_backend(None, True) == distributed.choose_backend("nccl", True) == "nccl"


def test_gpu_processes_agree_over_gloo_without_waiting_for_the_gpu(monkeypatch):
    joined = []
    monkeypatch.setattr(distributed, "choose_backend", lambda *_: "nccl")
    monkeypatch.setattr(distributed, "_own_gpu", lambda backend, launcher: 0)
    monkeypatch.setattr(distributed.distributed, "init_process_group", lambda **given: joined.append(given["backend"]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda **_: "spawn")
    for name in distributed.LAUNCHED:
        monkeypatch.setenv(name, "0")
    distributed.start("pytorch", {}, 1)
    distributed.start("pytorch", {}, 0, "cuda")
    assert joined == 2 * ["cpu:gloo,cuda:nccl"]


def test_unknown_or_unavailable_backend_is_rejected(monkeypatch):
    with pytest.raises(UserError, match=r"dist_params\.backend: 'glo' is none of .*Did you mean 'gloo'\?"):
        distributed.choose_backend("glo", False)
    monkeypatch.setattr(distributed.distributed, "is_backend_available", lambda name: False)
    with pytest.raises(UserError, match="this build of torch has no 'mpi'"):
        distributed.choose_backend("mpi", False)


def test_more_processes_than_gpus_are_rejected(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="process 3 of this machine has no GPU of its own, there are 2; start fewer"):
        distributed._own_gpu("nccl", "slurm")
    assert distributed._own_gpu("gloo", "pytorch") == 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in (("SLURM_GPUS_PER_TASK", "1"), ("SLURM_GPUS_ON_NODE", "4")):  # each process sees its own GPU
        monkeypatch.setenv(name, value)
        assert distributed._own_gpu("nccl", "slurm") == 0
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match="process 3 of this machine has no GPU of its own, there are 1; start fewer"):
        distributed._own_gpu("nccl", "slurm")
    with pytest.raises(UserError, match="process 3 of this machine has no GPU of its own, there are 1; start fewer"):
        distributed._own_gpu("nccl", "pytorch")


def test_missing_variables_of_the_launcher_are_listed(monkeypatch):
    for name in distributed.LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"WORLD_SIZE, LOCAL_RANK, .* not set .*torchrun --nproc_per_node=N \$\(which"):
        distributed.start("pytorch", {}, 0)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("a[03-05,9],b1", "a03"), ("x1,x2", "x1"), ("r[2,4]-ib", "r2-ib"), ("gpu-[08]", "gpu-08")],
)
def test_first_node_of_a_slurm_node_list(nodes, first):
    assert distributed.first_node(nodes) == first


def test_slurm_variables_are_converted_to_those_of_torch(monkeypatch):
    for name in (*distributed.LAUNCHED, "SLURM_STEP_NODELIST", "SLURM_NODELIST"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match="--launcher slurm: SLURM_PROCID, .* not set in the environment; start with sr"):
        distributed.set_slurm_environment(None)
    given = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}
    given |= {"SLURM_JOB_ID": "40123", "SLURM_STEP_ID": "2"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    distributed.set_slurm_environment(None)
    assert [os.environ[name] for name in distributed.LAUNCHED] == ["5", "8", "1", "n1", str(15000 + 401232 % 30000)]
    distributed.set_slurm_environment(4000)
    assert os.environ["MASTER_PORT"] == "4000"


def test_rendezvous_timeout_is_reported_in_one_line(monkeypatch):
    places = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "9"}
    for name, value in places.items():
        monkeypatch.setenv(name, value)

    def join(**_):
        raise torch.distributed.DistStoreError("Timed out after 61 seconds waiting for clients.\nmore")

    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    text = (
        r"^--launcher pytorch: the 2 processes of the job did not meet at h:9 \(Timed out after 61 seconds .*\); dist_"
    )
    with pytest.raises(UserError, match=text + r"params\.timeout_minutes sets how long they wait \(5\)$"):
        distributed.start("pytorch", {"backend": "gloo", "timeout_minutes": 5}, 0)


def test_only_lost_connections_mean_that_another_process_ended():
    assert distributed.lost_peer(RuntimeError("[gloo] Timed out waiting 60000ms for recv operation to complete"))
    assert distributed.lost_peer(RuntimeError("[gloo/x.cc:1] Connection closed by peer [127.0.0.1]:3"))
    assert not distributed.lost_peer(RuntimeError("shapes do not match"))
    assert not distributed.lost_peer(ValueError("Connection closed by peer"))
