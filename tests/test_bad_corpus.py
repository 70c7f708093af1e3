"""Bad option files, weights, training states, LMDBs and arguments: no traceback, no hang, little memory."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from test_restore_corpus import DRIVER, MEMORY, SECONDS
from tiny_network import tiny_network

from restormixer_arch.data.lmdb_io import write_lmdb
from restormixer_arch.weight_options import add_stamp

MIN_CASES = 150
HANG = 2 * SECONDS  # seconds per case, since a case may include one training iteration
RNG = np.random.default_rng(0)
ODD = (
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    10**12,
    "x",
    "é\n",
    [],
    [1, "a"],
    {},
    {"a": 1},
    "../..",
    "/dev/null",
)


def damaged(content, count):
    """Yield ``count`` damaged copies: truncated, overwritten, with a flipped bit, or with a repeated part."""
    for number in range(count):
        at = int(RNG.integers(len(content)))
        if number % 4 == 0:
            yield content[:at]
        elif number % 4 == 1:
            noise = RNG.integers(0, 256, 64, np.uint8).tobytes()
            yield content[:at] + noise + content[at + 64 :]
        elif number % 4 == 2:
            yield content[:at] + bytes([content[at] ^ (1 << int(RNG.integers(8)))]) + content[at + 1 :]
        else:
            yield content[:at] + content[at // 2 :]


def paths_of(node, at=()):
    for key, value in node.items():
        yield (*at, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*at, key))


def saved(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def option_cases(options):
    """Yield option files with one value replaced by an invalid or unusual one, and damaged option files."""
    keys = list(paths_of(options))
    for number in range(70):
        changed = json.loads(json.dumps(options))
        *sections, last = keys[int(RNG.integers(len(keys)))]
        place = changed
        for section in sections:
            place = place[section]
        place[last] = ODD[number % len(ODD)]
        yield f"o{number}.yml", yaml.safe_dump(changed, sort_keys=False).encode()
    for number, content in enumerate(damaged(yaml.safe_dump(options).encode(), 30)):
        yield f"d{number}.yml", content


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_bad_files_and_arguments_end_without_a_traceback(pairs, train_options, write, folder):
    from restormixer_arch.cli import main

    options = train_options
    options["train"]["total_iter"], options["train"]["scheduler"]["milestones"] = 1, [1]
    options["num_gpu"], options["logger"]["save_checkpoint_freq"] = 0, 1
    good = write(options)
    assert main(["train", "-opt", good]) == 0
    experiment = Path("experiments") / options["name"]
    state = next((experiment / "training_states").glob("*.state")).read_bytes()
    jobs = []
    for name, content in option_cases(options):
        Path(name).write_bytes(content)
        jobs.append(["train", "-opt", name])
    for number, content in enumerate(damaged(state, 24)):
        Path(f"{number}.state").write_bytes(content)
        jobs.append(["train", "-opt", good, "--force_yml", f"path:resume_state={number}.state", f"name=r{number}"])
    network = tiny_network()
    weights = saved({"params": add_stamp(network.state_dict(), network)})
    for number, content in enumerate(damaged(weights, 24)):
        Path(f"w{number}.pth").write_bytes(content)
        jobs.append(["restore", "pairs/lq/0.png", "-o", f"out{number}", "--weights", f"w{number}.pth"])
    images = [(str(number), RNG.integers(0, 256, (20, 20, 3), np.uint8)) for number in range(6)]
    write_lmdb(folder / "good.lmdb", images)
    for number, content in enumerate(damaged(Path("good.lmdb/data.mdb").read_bytes(), 16)):
        root = Path(f"{number}.lmdb")
        root.mkdir()
        (root / "data.mdb").write_bytes(content)
        (root / "meta_info.txt").write_bytes(Path("good.lmdb/meta_info.txt").read_bytes())
        jobs.append(["degrade", "set", "--gt", str(root), "--out", f"set{number}", "--labels", "noise", "--lmdb"])
    jobs += [
        *(["train"], ["train", "-opt"], ["train", "-opt", "none.yml"], ["train", "-opt", "/dev/zero"]),
        *(["test", "-opt", good], ["compare", "-opt", good], ["train", "-opt", good, "--force_yml", "a=b"]),
        *(["prepare", "rain", "--root", "none"], ["prepare", "derain", "--root", "pairs"], ["degrade", "set"]),
        *(["export", "w0.pth", "-o", "x.onnx"], ["bench", "--rounds", "-1"], ["card", "--tasks", "none"], ["\0"]),
    ]
    assert len(jobs) >= MIN_CASES
    pending, results = jobs, []
    while pending:  # if a case kills the process, a new one continues with the next case
        driver = [sys.executable, "-c", DRIVER, str(HANG)]
        text = "".join(json.dumps(job) + "\n" for job in pending)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(driver, input=text, capture_output=True, text=True, env=environment, check=False)
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        results += found
        if len(found) < len(pending):
            results.append([done.returncode, done.stderr[-500:], 0.0, 0])
        pending = pending[len(found) + 1 :]
    wrong = []
    for job, (code, text, _, peak) in zip(jobs, results, strict=False):
        one_line = code in (0, 2) and "Traceback" not in text and "weights_only" not in text
        if not one_line or peak > MEMORY:
            wrong.append(f"{job}: {code}, {peak / 1e9:.2f} GB: {text.strip()[-300:]}")
    refused = sum(code == 2 for code, *_ in results)
    print(f"{len(jobs)} cases, {refused} refused, {max(peak for *_, peak in results) / 1e9:.2f} GB")  # noqa: T201
    assert not wrong, "\n".join(wrong)
