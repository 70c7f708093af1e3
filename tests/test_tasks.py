"""Each task on the command line, from downloaded datasets to a table of results: prepare, train, test."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from mini_datasets import MINIATURES

from restormixer_arch import cli
from restormixer_arch.data.degradations.labels import CDD11

ROOT = Path(__file__).parent.parent
TASKS = ("derain", "desnow", "deblur", "sr_x2", "sr_x3", "sr_x4", "mixed")
TINY = {"base_channels": 8, "num_blocks": [1, 2, 2]}


def in_form(options: dict, form: str) -> dict:
    """Return the options for LMDBs or, as their comment describes, for folders."""
    for dataset in options["datasets"].values():
        if form == "folder":
            dataset["io_backend"] = {"type": "disk"}
            for key in ("dataroot_gt", "dataroot_lq"):
                dataset[key] = dataset[key].removesuffix(".lmdb")
            if dataset.get("shared_gt"):
                dataset["recursive"] = True
    return options


def shrunken(kind: str, task: str, form: str) -> str:
    """Write the task's option file for two iterations of a tiny network, otherwise unchanged."""
    options = in_form(yaml.safe_load((ROOT / f"options/{kind}_{task}.yml").read_text()), form)
    options["network_g"] |= TINY
    options["num_gpu"] = 0
    if kind == "train":
        options["train"] |= {"total_iter": 2, "warmup_iter": -1}
        options["train"]["scheduler"]["periods"] = [2]
        options["datasets"]["train"] |= {"gt_size": 24, "batch_size_per_gpu": 2, "num_worker_per_gpu": 0}
        options["val"]["val_freq"] = 2
        options["logger"] |= {"print_freq": 1, "use_tb_logger": False}
    Path(f"{kind}.yml").write_text(yaml.safe_dump(options, sort_keys=False))
    return f"{kind}.yml"


@pytest.mark.parametrize("form", ["lmdb", "folder"])
@pytest.mark.parametrize("task", TASKS)
def test_prepare_train_test(folder, capsys, task, form):
    name = task.partition("_")[0]
    MINIATURES[name](folder / "root")
    crop = ["--crop", "48", "--step", "24"] if name == "sr" else ["--crop", "24"] if name in ("deblur", "mixed") else []
    assert cli.main(["prepare", name, "--root", "root", "--format", form, "--workers", "0", *crop]) == 0
    assert cli.main(["train", "-opt", shrunken("train", task, form)]) == 0
    capsys.readouterr()
    assert cli.main(["test", "-opt", shrunken("test", task, form)]) == 0
    out = capsys.readouterr().out
    folder = Path(f"results/restormixer_{task}")
    rows = json.loads((folder / "results.json").read_text())
    sets = [d["name"] for d in yaml.safe_load(Path("test.yml").read_text())["datasets"].values()]
    assert list(rows) == (sets if len(sets) == 1 else [*sets, "average"])
    metrics = list(yaml.safe_load(Path("test.yml").read_text())["val"]["metrics"])
    for row in rows.values():
        assert row["images"] > 0 and list(row)[1:] == metrics
        assert 5 < row[metrics[0]]["restored"] < 60 and 0 < row[metrics[1]]["restored"] <= 1
    with (folder / "results.csv").open(newline="") as file:
        assert [row["set"] for row in csv.DictReader(file)] == list(rows)
    for line in (folder / "results.md").read_text().splitlines()[2:]:
        assert line.count("->") == len(metrics)
    if len(sets) > 1:
        assert f"average of {len(sets)} sets: " in out and f"table: {folder}/results.md" in out


@pytest.mark.parametrize("form", ["lmdb", "folder"])
def test_cdd11_is_reported_per_label_in_validation_and_test(folder, form):
    """The miniature's degraded images are the clean ones divided by 2 to 12, so each label has a known input PSNR."""
    MINIATURES["mixed"](folder / "root")
    assert cli.main(["prepare", "mixed", "--root", "root", "--format", form, "--workers", "0", "--crop", "24"]) == 0
    assert cli.main(["train", "-opt", shrunken("train", "mixed", form)]) == 0
    option_file = Path(shrunken("test", "mixed", form))
    option_file.write_text(option_file.read_text().replace("save_img: false", "save_img: true"))
    assert cli.main(["test", "-opt", str(option_file)]) == 0
    clean = cv2.imread("root/CDD-11_test/clear/00001.png").astype(float)
    expected = [20 * math.log10(255 / math.sqrt(np.mean((clean - clean // divisor) ** 2))) for divisor in range(2, 13)]
    for run in ("experiments", "results"):
        lines = Path(f"{run}/restormixer_mixed/CDD-11_labels.md").read_text().splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
        rows = {title: values for title, *values in cells}
        assert rows["metric"] == [*CDD11, "mean"] and rows["images"] == ["1"] * 11 + ["11"]
        assert [float(value) for value in rows["psnr_input"][:-1]] == pytest.approx(expected, abs=0.006)
        assert float(rows["psnr_input"][-1]) == pytest.approx(np.mean(expected), abs=0.006)
        assert list(rows)[-4:] == ["psnr_input", "psnr", "ssim_input", "ssim"]
    images = {path.name for path in Path("results/restormixer_mixed/visualization/CDD-11").iterdir()}
    assert images == {f"00001_{label}_restormixer_mixed.png" for label in CDD11}


def test_missing_prepared_data_is_reported(folder, capsys):
    MINIATURES["derain"](folder / "root")
    assert cli.main(["prepare", "derain", "--root", "root", "--sets", "Rain13K", "Rain100L"]) == 0
    shutil.rmtree("datasets/Rain13K/train_lq.lmdb")
    capsys.readouterr()
    assert cli.main(["train", "-opt", str(ROOT / "options/train_derain.yml")]) == 2
    error = capsys.readouterr().err
    assert "datasets.train.dataroot_lq: 'datasets/Rain13K/train_lq.lmdb' does not exist." in error
