"""The sample photographs: what is shipped, and that the script that made them makes the same again."""

import random
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.data.preparation import make_samples
from restormixer_arch.errors import UserError

compat.apply()

from basicsr.data.paired_image_dataset import PairedImageDataset  # noqa: E402
from basicsr.utils import FileClient  # noqa: E402

from restormixer_arch.data.paired_dataset import PairedRestorationDataset  # noqa: E402

SAMPLES = Path(make_samples.__file__).parents[1] / "samples"
PARTS = {"rain_train": (128, make_samples.TRAINING), "rain_val": (192, make_samples.VALIDATION)}
PICTURE_KINDS = ("clean", "rainy")


def options(part, **more):
    roots = {"dataroot_gt": str(SAMPLES / f"{part}_gt.lmdb"), "dataroot_lq": str(SAMPLES / f"{part}_lq.lmdb")}
    return {**roots, "io_backend": {"type": "lmdb"}, "scale": 1, "phase": "val", **more}


def decibels(first, second):
    return -10 * np.log10(np.mean((first - second) ** 2))


def photograph_of(name):
    return re.fullmatch(r"(.+)_\d", name)[1]


def test_is_small():
    files = [path for path in SAMPLES.rglob("*") if path.is_file()]
    assert 4_000_000 < sum(path.stat().st_size for path in files) <= 9_000_000
    names = {path.relative_to(SAMPLES).parts[0] for path in files}
    rainy = {f"{part}_{side}.lmdb" for part in PARTS for side in ("gt", "lq")}
    small = {"sr_train_x2_lq.lmdb", "sr_val_x2_lq.lmdb"}
    figures = {"degradations.jpg", "demo.jpg", "restored.jpg", "compare.png"}
    assert names == {"ATTRIBUTION.md", "pictures"} | figures | rainy | small


def read_crops(name, count):
    """The names in an LMDB, and its first images; it is closed before anything is asserted."""
    database = LmdbImages(SAMPLES / name, "x")
    return database.names, [database.read(key) for key in database.names[:count]]


@pytest.mark.parametrize("part", PARTS)
def test_reduced_crops_belong_to_the_clean_ones(part):
    names, clean = read_crops(f"{part}_gt.lmdb", 3)
    small_names, small = read_crops(f"{part.replace('rain_', 'sr_')}_x2_lq.lmdb", 3)
    assert names == small_names
    for image, half in zip(clean, small, strict=True):
        again = make_samples.reduced(np.uint8(np.round(image * 255)), 2)
        # Another processor may round a value that lies between two levels the other way.
        levels = np.abs(half * 255 - again)
        assert levels.max() < 1.01 and np.mean(levels > 0.5) < 1e-3
        assert decibels(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), half) > 25


def test_no_photograph_is_in_two_parts():
    used = {}
    for part, (_, photographs) in PARTS.items():
        for side in ("gt", "lq"):
            names = LmdbImages(SAMPLES / f"{part}_{side}.lmdb", side).names
            used[part, side] = {photograph_of(name) for name in names}
        assert used[part, "gt"] == used[part, "lq"] == set(photographs)
    assert len(used["rain_train", "gt"]) == 14 and len(used["rain_val", "gt"]) == 5
    assert not used["rain_train", "gt"] & used["rain_val", "gt"]
    pictures = {path.stem for path in (SAMPLES / "pictures").rglob("*.png")}
    assert pictures == set(make_samples.PICTURES) and not pictures & used["rain_train", "gt"]


@pytest.mark.parametrize(("part", "count", "low", "high"), [("rain_train", 70, 22, 25), ("rain_val", 10, 22, 25)])
def test_pairs(part, count, low, high):
    dataset = PairedRestorationDataset(options(part))
    assert len(dataset) == count
    values, size = [], PARTS[part][0]
    for item in dataset:
        assert item["gt"].shape == item["lq"].shape == (3, size, size)
        values.append(decibels(item["gt"].numpy(), item["lq"].numpy()))
    assert low < np.mean(values) < high
    assert min(values) > 13 and max(values) < 40  # every crop has rain


@pytest.mark.parametrize("part", PARTS)
def test_basicsr_reads_them(part):
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


def test_pictures():
    names = [{path.name for path in (SAMPLES / "pictures" / kind).iterdir()} for kind in PICTURE_KINDS]
    assert names[0] == names[1] and len(names[0]) == 2
    for name in names[0]:
        clean, rainy = (cv2.imread(str(SAMPLES / "pictures" / kind / name)) / 255 for kind in PICTURE_KINDS)
        assert clean.shape == rainy.shape == (256, 384, 3)
        assert 15 < decibels(clean, rainy) < 30


def test_every_photograph_is_attributed():
    text = (SAMPLES / "ATTRIBUTION.md").read_text(encoding="utf-8")
    rows = {
        line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")
        for line in text.partition("| --- |")[2].splitlines()[1:]
    }
    assert rows.keys() == set(make_samples.TRAINING + make_samples.VALIDATION)
    for name, (_, part, package, file, author, licence, *_) in rows.items():
        assert part.startswith("training" if name in make_samples.TRAINING else "validation")
        assert re.search(r"\d\.\d", package) and file and author
        assert licence.startswith(("CC0-1.0", "public-domain"))


class TestScript:
    @pytest.fixture
    def photos(self, tmp_path):
        """Small stand-ins for all photographs, noise in the lower half."""
        folder = tmp_path / "photos"
        folder.mkdir()
        lines = ["\t".join(("file", "package", "version", "suite", "path_in_package", "licence", "author", "source"))]
        for index, name in enumerate(make_samples.TRAINING + make_samples.VALIDATION):
            image = np.full((420, 600, 3), 128, np.uint8)
            image[210:] = np.random.default_rng(index).integers(0, 256, (210, 600, 3))
            cv2.imwrite(str(folder / f"{name}.png"), cv2.GaussianBlur(image, (0, 0), 3))
            lines.append(f'{name}.png\tpack\t1.{index}\tx\tpath\tCC0-1.0\t"Somebody"\t')
        (folder / "LICENCES.tsv").write_text("\n".join(lines))
        return folder

    def test_one_photograph_twice(self, photos):
        name = make_samples.TRAINING[0]
        first, second = (
            make_samples.make_crops(make_samples.read_photograph(photos, name), name, 128, 3) for _ in range(2)
        )
        assert [pair.name for pair in first] == [f"{name}_{i}" for i in range(3)]
        for one, other in zip(first, second, strict=True):
            assert np.array_equal(one.clean, other.clean) and np.array_equal(one.rainy, other.rainy)
            assert one.rainy.dtype == np.uint8 and not np.array_equal(one.clean, one.rainy)

    def test_all_twice(self, photos, tmp_path, monkeypatch):
        monkeypatch.setattr(make_samples, "TRAINING", make_samples.TRAINING[:1])
        monkeypatch.setattr(make_samples, "VALIDATION", make_samples.PICTURES)
        for out in ("x", "y"):
            random.seed()  # of no influence
            assert make_samples.main(["--photos", str(photos), "--out", str(tmp_path / out)]) == 0
        files = [path.relative_to(tmp_path / "x") for path in (tmp_path / "x").rglob("*") if path.is_file()]
        assert len(files) == 6 * 2 + 4 + 1
        for file in files:
            assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes(), file
        assert 'pack 1.0 (Debian x) | path | "Somebody" | CC0-1.0' in (tmp_path / "x/ATTRIBUTION.md").read_text()

    def test_detailed_squares_are_chosen(self):
        image = np.full((40, 90, 3), 128, np.uint8)
        image[10:30, 60:80] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
        image[5:25, 10:30] = np.random.default_rng(1).integers(96, 160, (20, 20, 3))
        (top, left), (second_top, second_left) = make_samples.most_detailed(image, 22, 2)
        assert (abs(top - 9), abs(left - 59)) <= (1, 1)
        assert (abs(second_top - 4), abs(second_left - 9)) <= (1, 1)
        places = make_samples.most_detailed(image, 22, 100)
        assert len(places) <= 4
        for i, (t, left) in enumerate(places):
            assert all(abs(t - u) >= 22 or abs(left - v) >= 22 for u, v in places[:i])
        assert make_samples.most_detailed(image, 40, 1)[0][0] == 0

    @pytest.mark.parametrize(("shape", "wanted"), [((800, 1200), (480, 720)), ((500, 480), (500, 480))])
    def test_reduction(self, shape, wanted):
        image = np.full((*shape, 3), 77, np.uint8)
        assert make_samples.reduce_to(image, 480).shape == (*wanted, 3)
        assert (make_samples.reduce_to(image, 480) == 77).all()

    def test_mistakes(self, photos, tmp_path, capsys):
        def said(*arguments):
            assert make_samples.main([*map(str, arguments)]) == 2
            return capsys.readouterr().err

        out = tmp_path / "out"
        assert "--photos: '" in said("--photos", tmp_path / "phtos", "--out", out)
        first = make_samples.TRAINING[0]
        (photos / f"{first}.png").write_bytes(b"")
        assert said("--photos", photos, "--out", out) == f"{photos}/{first}.png: no such photograph, or not a PNG\n"
        (photos / "LICENCES.tsv").write_text("file\n")
        assert said("--photos", photos, "--out", out) == f"{photos}/LICENCES.tsv: has no line for {first}.png\n"
        (photos / "LICENCES.tsv").unlink()
        assert "LICENCES.tsv: cannot be read (No such file or directory)" in said("--photos", photos, "--out", out)
        assert not out.exists()
        with pytest.raises(UserError, match="phtos"):
            make_samples.existing_folder(tmp_path / "phtos", "--photos")
