"""The sample photographs: which files exist, and that the recorded parameters reproduce the rain."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.data import lmdb_io
from restormixer_arch.data.degradations.compose import add_composition, read_compositions
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.data.preparation.sub_images import reduce_image

compat.apply()

from basicsr.data.paired_image_dataset import PairedImageDataset  # noqa: E402
from basicsr.utils import FileClient  # noqa: E402

from restormixer_arch.data.paired_dataset import PairedRestorationDataset  # noqa: E402

SAMPLES = Path(lmdb_io.__file__).parent / "samples"
PARTS = {"rain_train": (128, 14, 5), "rain_val": (192, 5, 2)}  # side, photographs, crops of each photograph
PICTURES = {"budgie-backgrounds__perched-osprey", "budgie-backgrounds__roman-colosseum"}
PICTURE_KINDS = ("clean", "rainy")


def options(part, **more):
    roots = {"dataroot_gt": str(SAMPLES / f"{part}_gt.lmdb"), "dataroot_lq": str(SAMPLES / f"{part}_lq.lmdb")}
    return {**roots, "io_backend": {"type": "lmdb"}, "scale": 1, "phase": "val", **more}


def decibels(first, second):
    return -10 * np.log10(np.mean((first - second) ** 2))


def photograph_of(name):
    return re.fullmatch(r"(.+)_\d", name)[1]


def test_sample_files_are_complete_and_small():
    files = [path for path in SAMPLES.rglob("*") if path.is_file()]
    assert 4_000_000 < sum(path.stat().st_size for path in files) <= 9_000_000
    names = {path.relative_to(SAMPLES).parts[0] for path in files}
    rainy = {f"{part}_{side}.lmdb" for part in PARTS for side in ("gt", "lq")}
    small = {"sr_train_x2_lq.lmdb", "sr_val_x2_lq.lmdb"}
    figures = {"degradations.jpg", "demo.jpg", "restored.jpg", "compare.png"}
    assert names == {"ATTRIBUTION.md", "compositions.json", "pictures"} | figures | rainy | small


def read_crops(name, count):
    """Return the names in an LMDB and its first images. It is closed before anything is asserted."""
    database = LmdbImages(SAMPLES / name, "x")
    return database.names, [database.read(key) for key in database.names[:count]]


@pytest.mark.parametrize("part", PARTS)
def test_downsampled_crops_match_the_clean_ones(part):
    names, clean = read_crops(f"{part}_gt.lmdb", 3)
    small_names, small = read_crops(f"{part.replace('rain_', 'sr_')}_x2_lq.lmdb", 3)
    assert names == small_names
    for image, half in zip(clean, small, strict=True):
        again = reduce_image(np.uint8(np.round(image * 255)), 2)
        # Another processor may round a value between two levels differently.
        levels = np.abs(half * 255 - again)
        assert levels.max() < 1.01 and np.mean(levels > 0.5) < 1e-3
        assert decibels(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), half) > 25


def test_no_photograph_is_in_two_parts():
    used = {}
    for part, (_, count, _) in PARTS.items():
        for side in ("gt", "lq"):
            names = LmdbImages(SAMPLES / f"{part}_{side}.lmdb", side).names
            used[part, side] = {photograph_of(name) for name in names}
        assert used[part, "gt"] == used[part, "lq"] and len(used[part, "gt"]) == count
    assert not used["rain_train", "gt"] & used["rain_val", "gt"]
    pictures = {path.stem for path in (SAMPLES / "pictures").rglob("*.png")}
    assert pictures == PICTURES and not pictures & used["rain_train", "gt"]


@pytest.mark.parametrize("part", PARTS)
def test_recorded_parameters_reproduce_the_rainy_crops(part):
    dataset = PairedRestorationDataset(options(part))
    size, photographs, crops = PARTS[part]
    assert len(dataset) == photographs * crops
    recorded, values = read_compositions(SAMPLES / "compositions.json")["rain"], []
    for item in dataset:
        gt, lq = (item[key].permute(1, 2, 0).numpy() for key in ("gt", "lq"))
        assert gt.shape == lq.shape == (size, size, 3)
        again = add_composition(gt, recorded[Path(item["lq_path"]).stem])
        levels = np.abs(np.round(again * 255) - lq * 255)
        assert levels.max() < 1.01 and np.mean(levels > 0.5) < 1e-3  # rounding depends on the processor
        values.append(decibels(gt, lq))
    assert 22 < np.mean(values) < 25
    assert min(values) > 13 and max(values) < 40  # every crop has rain


@pytest.mark.parametrize("part", PARTS)
def test_basicsr_reads_the_samples(part):
    def items(kind):
        dataset = kind(options(part))
        return [dataset[index] for index in range(2)]

    for ours, theirs in zip(items(PairedRestorationDataset), items(PairedImageDataset), strict=True):
        assert (ours["gt"].numpy() == theirs["gt"].numpy()).all() and (ours["lq"].numpy() == theirs["lq"].numpy()).all()
        assert ours["lq_path"] == theirs["lq_path"]
    root = SAMPLES / f"{part}_gt.lmdb"
    client = FileClient("lmdb", db_paths=str(root), client_keys="gt")
    for line in (root / "meta_info.txt").read_text().splitlines():
        key, height, width = re.fullmatch(r"(\S+)\.png \((\d+),(\d+),3\) 9", line).groups()
        image = cv2.imdecode(np.frombuffer(client.get(key, "gt"), np.uint8), cv2.IMREAD_UNCHANGED)
        assert image.shape == (int(height), int(width), 3)


def test_recorded_parameters_reproduce_the_rainy_pictures():
    names = [{path.name for path in (SAMPLES / "pictures" / kind).iterdir()} for kind in PICTURE_KINDS]
    assert names[0] == names[1] and len(names[0]) == 2
    for name in names[0]:
        images = [cv2.imread(str(SAMPLES / "pictures" / kind / name))[..., ::-1] for kind in PICTURE_KINDS]
        clean, rainy = (np.float32(image / np.float32(255)) for image in images)
        assert clean.shape == rainy.shape == (256, 384, 3)
        again = add_composition(clean, read_compositions(SAMPLES / "compositions.json")["rain"][Path(name).stem])
        assert np.abs(np.round(again * 255) - images[1]).max() <= 1
        assert 15 < decibels(clean, rainy) < 30


def test_every_photograph_is_attributed():
    text = (SAMPLES / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert all(f"pictures/hazy/{path.name}" in text for path in (SAMPLES / "pictures/hazy").iterdir())
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")
        for line in text.partition("| --- |")[2].splitlines()[1:]
    }
    crops = [(part, {photograph_of(name) for name in read_crops(f"{part}_gt.lmdb", 0)[0]}) for part in PARTS]
    assert rows.keys() == set.union(*(names for _, names in crops))
    for name, (_, part, package, file, author, licence, *_) in rows.items():
        assert part.startswith("training" if name in crops[0][1] else "validation")
        assert re.search(r"\d\.\d", package) and file and author
        assert licence.startswith(("CC0-1.0", "public-domain"))
