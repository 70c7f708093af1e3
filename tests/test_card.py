"""``basicsr card``: the tables of the model card, measured on small datasets with the public names."""

import numpy as np
import pytest
from mini_datasets import picture, save
from tiny_network import save_tiny

from restormixer_arch.cli import card, main
from restormixer_arch.inference import installed

SMALL = "base_channels: 16\n  num_blocks: [2, 2, 2]\n"
TINY = "base_channels: 4\n  num_blocks: [1, 2, 2]\n  d_state: 4\n  encoder_heads: [2, 2]\n  decoder_heads: [2, 2]\n"


@pytest.fixture
def sets(folder, monkeypatch):
    """Prepared datasets (Rain100L with two pairs, CBSD68 with two images) and weights of two tasks."""
    for number in (1, 2):
        clean = picture(number, (40, 48))
        save(folder / f"raw/Rain100L/gt/{number}.png", clean)
        save(folder / f"raw/Rain100L/lq/{number}.png", np.clip(clean.astype(int) + 30, 0, 255).astype(np.uint8))
        save(folder / f"raw/CBSD68/{number}.png", clean)
    for task in ("derain", "denoise"):
        assert main(["prepare", task, "--root", "raw", "--workers", "1"]) == 0
        (folder / "weights").mkdir(exist_ok=True)
        save_tiny(folder / f"weights/restormixer_s_{task}.safetensors")
    monkeypatch.setattr(installed, "WEIGHTS_FOLDER", folder / "weights")
    for name in ("derain", "denoise"):
        text = (card_options(name)).read_text(encoding="utf-8")
        text = text.replace("restormixer_arch/weights/", "weights/").replace(SMALL, TINY)
        (folder / "options").mkdir(exist_ok=True)
        (folder / f"options/test_public_{name}.yml").write_text(text, encoding="utf-8")
    return folder


def card_options(name):
    from restormixer_arch.config.yaml_file import locate_option_file

    return locate_option_file(f"options/test_public_{name}.yml")


def test_tables_contain_existing_datasets_and_missing_ones_are_reported(sets, capsys):
    assert main(["card", "--out", "card.md"]) == 0
    out, err = capsys.readouterr()
    assert "sr_x2: no weights are installed" in err
    assert "left out, not found: Rain100H (datasets/Rain100H/test_gt.lmdb), RainCityscapes" in err
    text = (sets / "card.md").read_text(encoding="utf-8")
    assert text.strip() in out
    lines = text.splitlines()
    assert lines[0] == "| derain | Rain100L | parameters | trained on | source |"
    # The input is 30 levels brighter except where it clips: about 18.6 dB in RGB, and more on Y's smaller range.
    before = float(lines[2].split("|")[2].split("/")[0])
    assert 19 < before < 22
    assert "| Restormer | 38.99 / 0.978 | 26.10 M | Rain13K |" in text
    assert "| RestorMixer (paper, not reproduced) | 39.53 / 0.984 |" in text
    assert next(line for line in lines if "RestorMixer-S" in line).startswith("| **RestorMixer-S** | ")
    noise = next(line for line in lines if line.startswith("| denoise"))
    assert noise.startswith("| denoise | CBSD68_sigma15 | CBSD68_sigma25 | CBSD68_sigma50 | CBSD68_sigma25_8bit |")
    assert "| DnCNN | 33.90 | 31.24 | 27.95 |  |" in text


def test_invalid_arguments(sets, capsys):
    assert main(["card", "--tasks", "derian"]) == 2
    assert "--tasks: unknown task 'derian'" in capsys.readouterr().err
    (sets / "there.md").write_text("mine")
    assert main(["card", "-o", "there.md"]) == 2
    message = "basicsr: error: -o: 'there.md' already exists; remove it first or choose another file\n"
    assert capsys.readouterr().err == message and (sets / "there.md").read_text() == "mine"
    assert main(["card", "-o", "missing/card.md"]) == 2  # before anything is measured
    assert capsys.readouterr() == ("", "basicsr: error: -o: there is no folder 'missing'\n")
    assert main(["card", "--tasks", "sr_x2"]) == 2
    assert "nothing to measure for sr_x2: no weights are installed" in capsys.readouterr().err


def test_published_numbers_are_plausible_and_have_a_source():
    tables = card.read_published(card.PUBLISHED)
    assert set(tables) == {"derain", "sr_x2", "sr_x3", "sr_x4", "denoise", "deblur"}
    for rows in tables.values():
        for (name, method), row in rows.items():
            assert 20 < float(row["psnr"]) < 50, (name, method)
            assert row["source"] and (not row["ssim"] or 0.6 < float(row["ssim"]) < 1)
    assert tables["sr_x2"]["Set5", "VDSR"]["psnr"] == "37.53"


def test_skip_missing_is_rejected_if_all_datasets_are_missing(folder, capsys):
    assert main(["test", "-opt", "options/test_public_sr.yml", "--skip-missing"]) == 2
    assert "datasets: none was found: Set5 (datasets/Set5/test_gt.lmdb)" in capsys.readouterr().err
