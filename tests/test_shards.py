"""``--shard i/n`` of ``basicsr restore``, torchrun and SLURM: every file is restored exactly once."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from restore_cases import RGB
from tiny_network import save_tiny
from video_cases import write_video

from restormixer_arch import cli
from restormixer_arch.errors import UserError
from restormixer_arch.inference import restorer
from restormixer_arch.inference.jobs import find_jobs
from restormixer_arch.inference.shards import Shard, gpu_of_process, parse_shard, processes_per_gpu, shard_of_process

NAMES = st.sets(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), min_size=1))


@pytest.fixture
def place(folder, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    (folder / "in/sub").mkdir(parents=True)
    for number in range(6):
        Image.fromarray(RGB).save(folder / f"in/{number}.png")
        Image.fromarray(RGB).save(folder / f"in/sub/{number}.png")
    save_tiny(folder / "w.safetensors")
    return folder


def run(*arguments):
    return cli.main(["restore", *arguments, "--weights", "w.safetensors", "--tile", "192"])


def restored():
    return {path.relative_to("out").as_posix() for path in Path("out").rglob("*.png")}


@given(NAMES, st.integers(1, 9))
def test_each_name_is_in_exactly_one_shard(names, count):
    shards = [Shard(index, count) for index in range(1, count + 1)]
    for name in names:
        assert sum(shard.holds(name) for shard in shards) == 1


@settings(max_examples=25)
@given(
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=9),
    st.integers(0, 10**9),
    st.integers(2000, 4000),
    st.integers(2, 8),
)
def test_shards_are_balanced(folder, start, number, count):
    names = [f"{folder}/{place:07}.png" for place in range(start, start + number)]
    sizes = [sum(Shard(index, count).holds(name) for name in names) for index in range(1, count + 1)]
    expected = number / count
    assert sum(sizes) == number and max(abs(size - expected) for size in sizes) < 7 * expected**0.5


def test_assignment_to_shards_never_changes():
    """Machines may run different versions, and a run may be resumed after an update."""
    names = [f"holiday/{number}.jpg" for number in range(12)]
    assert [next(i for i in (1, 2, 3) if Shard(i, 3).holds(name)) for name in names] == [
        3,
        2,
        3,
        1,
        2,
        2,
        2,
        1,
        1,
        2,
        2,
        3,
    ]
    assert Shard(1, 2).holds("caf\u00e9.png") == Shard(1, 2).holds("cafe\u0301.png")  # decomposed, as on macOS
    assert Shard(1, 2).holds(os.fsdecode(b"\xff.png")) != Shard(2, 2).holds(os.fsdecode(b"\xff.png"))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "1/4/2", "-1/4", "a/b", "1.0/2", "", " 1/2", "\u0661/4"])
def test_invalid_shard_is_reported_in_one_line(place, capsys, text):
    with pytest.raises(argparse.ArgumentTypeError):
        parse_shard(text)
    assert run("in", "-o", "out", f"--shard={text}") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"argument --shard: expected i/n with i from 1 to n, such as 1/4, got {text!r}" in line


def test_shards_together_restore_each_file_once(place, capsys):
    before = set()
    for index in (3, 1, 2):
        assert run("in", "-o", "out", "--shard", f"{index}/3") == 0
        after = restored()
        assert after > before
        assert capsys.readouterr().out == f"out, shard {index}/3: {len(after - before)} restored\n"
        before = after
    assert len(before) == 12
    assert (
        run("in", "-o", "out") == 0
        and capsys.readouterr().out
        == "out: 12 already there (perhaps made with other weights; --overwrite restores them again)\n"
    )


def test_shard_of_a_file_does_not_depend_on_other_files(place):
    shares = [{job.target for job in find_jobs(["in"], Path("out"), shard=Shard(i, 2))} for i in (1, 2)]
    (place / "in/0.png").unlink()
    (place / "in/00.png").write_bytes(b"")
    for index, share in enumerate(shares, start=1):
        now = {job.target for job in find_jobs(["in"], Path("out"), shard=Shard(index, 2))}
        assert now - {Path("out/00.png")} == share - {Path("out/0.png")}
        inside = {job.target.name for job in find_jobs(["in/*.png"], Path("out"), shard=Shard(index, 2))}
        assert inside == {target.name for target in now if target.parent == Path("out")}


def test_name_conflicts_are_reported_in_every_shard(place):
    (place / "two").mkdir()
    (place / "in/5.png").rename("two/0.png")
    for index in (1, 2, 3):
        with pytest.raises(UserError, match="two/0.png: would be written to out/0.png, and so would in/0.png"):
            find_jobs(["in", "two"], Path("out"), shard=Shard(index, 3))


def test_single_file_and_video_belong_to_one_shard(place, capsys):
    write_video(place / "film.mp4", count=2)
    for name in ("in/0.png", "film.mp4"):
        lines = []
        for index in (1, 2, 3):
            assert run(name, "-o", "out", "--shard", f"{index}/3") == 0
            lines.append(capsys.readouterr().out)
        assert sorted(line.partition(": ")[2] for line in lines) == [
            "1 restored\n",
            "nothing to do\n",
            "nothing to do\n",
        ]


@pytest.mark.parametrize(
    ("variables", "expected", "message"),
    [
        ({}, Shard(), ""),
        ({"RANK": "2", "WORLD_SIZE": "4"}, Shard(3, 4), "note: 4 processes of torchrun share the files; this is 3/4"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Shard(), ""),
        (
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"},
            Shard(2, 2),
            "note: 2 processes of SLURM share the files; this is 2/2",
        ),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"},
            Shard(),
            "note: SLURM_NTASKS is 2, but srun has not started this process: it restores all files",
        ),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"},
            Shard(2, 2),
            "note: 2 processes of torchrun share the files; this is 2/2",
        ),
    ],
)
def test_shard_of_process_is_read_from_torchrun_and_slurm_variables(capsys, monkeypatch, variables, expected, message):
    monkeypatch.setattr("restormixer_arch.output.is_first_process", lambda: True)
    assert shard_of_process(variables) == expected
    assert capsys.readouterr().err.removeprefix("basicsr: ").rstrip("\n") == message


@pytest.mark.parametrize(("number", "of"), [("4", "4"), ("x", "4"), ("-1", "4")])
def test_invalid_launcher_variables_are_rejected(number, of):
    with pytest.raises(UserError, match=rf"^RANK='{number}', WORLD_SIZE='{of}': expected a rank from 0 and a larger"):
        shard_of_process({"RANK": number, "WORLD_SIZE": of})


def test_explicit_shard_takes_precedence(place, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("in", "-o", "out", "--shard", "1/1") == 0
    assert capsys.readouterr() == ("out: 12 restored\n", "")
    assert run("in", "-o", "two", "--compare") == 0
    out, err = capsys.readouterr()
    assert out.startswith("two, shard 1/2: ") and "2 processes of torchrun share the files; this is 1/2" in err


def test_each_process_reports_its_own_files(place, capsys, monkeypatch):
    from restormixer_arch.data.images.png import with_chunks
    from restormixer_arch.inference import choose_task

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for path in Path("in").rglob("*.png"):
        path.write_bytes(with_chunks(path.read_bytes(), [(b"teST", b"")]))
    names = sorted(job.source.as_posix() for job in find_jobs(["in"], Path("out"), shard=Shard(2, 2)))
    assert 1 < len(names) < 12
    assert run("in", "-o", "out", "--sheet", "out/sheet.png") == 0
    assert capsys.readouterr() == (
        "",
        f"basicsr: note: PNG: left out teST ({len(names)} files)\n"
        f"basicsr: note: out, shard 2/2: {len(names)} restored\n",
    )
    monkeypatch.setattr(choose_task, "choose_task", lambda images: choose_task.Choice("clean", 0.9))
    assert cli.main(["restore", "in", "-o", "two", "--task", "auto"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        *(f"basicsr: note: {name}: clean (90%); copied unchanged" for name in names),
        f"basicsr: note: two, shard 2/2: {len(names)} copied unchanged",
    ]


def test_run_without_shards_prints_its_result_for_any_rank(place, capsys, monkeypatch):
    """A cluster may set RANK to the number of the pod."""
    monkeypatch.setenv("RANK", "1")
    assert run("in/0.png", "-o", "out") == 0
    assert capsys.readouterr() == ("out: 1 restored\n", "")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("in/0.png", "-o", "out", "--shard", "1/1") == 0
    assert capsys.readouterr() == (
        "out: 1 already there (perhaps made with other weights; --overwrite restores it again)\n",
        "",
    )


def test_each_process_uses_its_own_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert gpu_of_process({"LOCAL_RANK": "3"}) == "cuda:3" and gpu_of_process({"SLURM_LOCALID": "5"}) == "cuda:1"
    assert gpu_of_process({}) == "cuda"
    assert processes_per_gpu({"LOCAL_WORLD_SIZE": "8"}) == 2 and processes_per_gpu({}) == 1
    assert processes_per_gpu({"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_GPUS_PER_TASK": "1"}) == 1
    assert [processes_per_gpu({"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": n}) for n in "84"] == [1, 2]


def test_auto_probes_the_gpu_of_the_process(monkeypatch):
    """The first GPU may be full or reserved for another process."""
    probed = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(restorer, "unusable_reason", probed.append)
    assert restorer.pick_device("auto", gpu="cuda:3") == torch.device("cuda:3") and probed == ["cuda:3"]
    assert restorer.pick_device("auto", "net.onnx", gpu="cuda:3") == torch.device("cpu") and len(probed) == 1


def test_torchrun_restores_all_other_files_if_one_is_damaged(place):
    """torchrun stops all processes when one fails, so the one with the damaged file waits for the others."""
    names = [f"bad{number}.png" for number in range(9)]
    bad = next(name for name in names if Shard(1, 2).holds(name))
    (place / "in" / bad).write_bytes(b"no image")
    script = place / "restore.py"
    script.write_text("import sys\nfrom restormixer_arch.cli import main\n\nsys.exit(main(sys.argv[1:]))\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    command += ["restore", "in", "-o", "out", "--weights", "w.safetensors", "--tile", "192"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode != 0 and bad in done.stderr
    assert len(restored()) == 12


LIST_MANY_NAMES = """
import tracemalloc
from pathlib import Path

from restormixer_arch.inference import jobs
from restormixer_arch.inference.shards import Shard

number = 30_000
listing = [("in", f"sub{place // 1000}/picture_{place:06}.png") for place in range(number)]
jobs._named_files = lambda text, out: iter(listing)
jobs.os.path.islink = lambda path: False
tracemalloc.start()
share = jobs.find_jobs(["in"], Path("out"), shard=Shard(2, 10))
print(len(share), *tracemalloc.get_traced_memory())
"""


def test_listing_30000_names_needs_little_memory(folder):
    """Names of files that do not exist: listing, checks and shards are linear and keep only names.

    This runs in a new process, since pathlib interns names in a table that doubles when it is full, and previous tests
    may have filled it.
    """
    done = subprocess.run([sys.executable, "-c", LIST_MANY_NAMES], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kept, now, peak = map(int, done.stdout.split())
    assert abs(kept - 3_000) < 300
    assert now < 100 * 30_000 and peak < 400 * 30_000, (now, peak)  # bytes
