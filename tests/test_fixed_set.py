"""A fixed dataset on disk equals the on-the-fly dataset in validation."""

import json
import os
import tracemalloc

import cv2
import numpy as np
import pytest
import torch

from restormixer_arch.data import lmdb_io
from restormixer_arch.data.degradations.compose import read_compositions
from restormixer_arch.data.degraded_dataset import DegradedDataset
from restormixer_arch.data.lmdb_io import LmdbImages, read_meta_info, write_lmdb
from restormixer_arch.data.paired_dataset import PairedRestorationDataset
from restormixer_arch.data.preparation import fixed_set
from restormixer_arch.data.preparation.fixed_set import check_fixed_set, difference_of_set, write_fixed_set
from restormixer_arch.errors import UserError


@pytest.fixture
def clean(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "clean"
    (folder / "b").mkdir(parents=True)
    for name in ("a.png", "b/c.png"):
        cv2.imwrite(str(folder / name), cv2.GaussianBlur(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8), (0, 0), 2))
    return folder


@pytest.mark.parametrize("lmdb", [False, True])
@pytest.mark.parametrize(("labels", "scale"), [(["low", "haze_snow"], 1), (["down", "down_jpeg"], 2)])
def test_fixed_set_equals_the_on_the_fly_dataset(clean, tmp_path, lmdb, labels, scale):
    out = tmp_path / "fixed"
    count, written = write_fixed_set(str(clean), out, labels, seed=5, scale=scale, recursive=True, lmdb=lmdb)
    assert count == 4 and written == tuple(labels)
    end, backend = (".lmdb", "lmdb") if lmdb else ("", "disk")
    shared = {"phase": "val", "scale": scale, "name": "v", "recursive": not lmdb}
    roots = {"dataroot_gt": str(out / f"gt{end}"), "dataroot_lq": str(out / f"lq{end}")}
    pairs = PairedRestorationDataset({**shared, **roots, "io_backend": {"type": backend}})
    source = {"dataroot_gt": str(clean), "io_backend": {"type": "disk"}, "degradations": labels, "seed": 5}
    made = DegradedDataset({**shared, **source, "recursive": True})
    by_name = {item["lq_path"]: item for item in made}
    assert len(pairs) == 4
    for item in pairs:
        label, _, name = item["lq_path"].replace(".png", "").split(f"lq{end}/")[-1].partition("/")
        fresh = by_name[f"{label}/{name.replace('b_c_', 'c_')}.png"]
        torch.testing.assert_close(item["lq"], fresh["lq"], atol=1e-6, rtol=0)
        torch.testing.assert_close(item["gt"], fresh["gt"], atol=1e-6, rtol=0)
    record = json.loads((out / "made_with.json").read_text())
    assert record["degradations"] == labels and record["seed"] == 5 and record["scale"] == scale
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "fixed"]
    assert record["format"] == ("lmdb" if lmdb else "folder")
    assert record["images"] == {name: (clean / name).stat().st_size for name in ("a.png", "b/c.png")}
    given = {"degradations": labels, "seed": 5, "scale": scale, "recursive": True}
    assert difference_of_set(out, str(clean), given, lmdb) == ""
    assert difference_of_set(out, str(clean), {**given, "seed": 6}, lmdb) == "was made with other settings"
    other = "folder" if lmdb else "lmdb"
    assert difference_of_set(out, str(clean), given, not lmdb) == f"was made with another --format than {other}"
    cv2.imwrite(str(clean / "b/c.png"), np.zeros((20, 24, 3), np.uint8))
    assert difference_of_set(out, str(clean), given, lmdb) == "was made of other clean images"


def test_lmdbs_are_written_without_holding_all_images_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(fixed_set, "BATCH", 10**6)
    rng, peaks = np.random.default_rng(0), []
    for count in (2, 12):
        clean = tmp_path / f"clean{count}"
        clean.mkdir()
        for number in range(count):
            cv2.imwrite(str(clean / f"{number}.png"), rng.integers(0, 256, (512, 512, 3), dtype=np.uint8))
        tracemalloc.start()
        assert write_fixed_set(str(clean), tmp_path / str(count), ["jpeg"], lmdb=True) == (count, ("jpeg",))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 3e6  # for ten more pairs with 1.5 MB of PNG files each


def test_invalid_arguments(clean, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there: already exists; remove it first"):
        write_fixed_set(str(clean), tmp_path / "there", ["rain"])
    with pytest.raises(UserError, match="'rian' is not a degradation label"):
        write_fixed_set(str(clean), tmp_path / "new", ["rian"])
    cv2.imwrite(str(clean / "b_c.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="more than one image would be named 'rain/b_c_rain'"):
        write_fixed_set(str(clean), tmp_path / "new", ["rain"], recursive=True)
    (clean / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="a.png: cannot be decoded"):
        write_fixed_set(str(clean), tmp_path / "new", ["rain"])
    with pytest.raises(UserError, match="dataroot_gt: 'nowhere'"):
        write_fixed_set("nowhere", tmp_path / "deep/er/set", ["rain"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "there"]


def test_recorded_parameters_reproduce_the_pairs_without_new_draws(clean, tmp_path, monkeypatch):
    labels = ["haze_rain", "noise", "defocus", "camera", "snow", "low", "jpeg", "poisson", "blur"]
    write_fixed_set(str(clean), tmp_path / "one", labels, seed=5, recursive=True)
    compositions = read_compositions(tmp_path / "one" / "compositions.json")
    write_fixed_set(str(clean), tmp_path / "two", labels, seed=77, recursive=True, compositions=compositions)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.png"))
    assert len(files) == 2 * 2 * len(labels)
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    monkeypatch.setattr("restormixer_arch.data.degraded_dataset.draw_composition", None)
    assert check_fixed_set(str(clean), tmp_path / "two", lmdb=False) == (2 * 2 * len(labels), [])


def test_values_outside_the_range_are_clipped(clean, tmp_path):
    """Unclipped noise on black and white exceeds both ends of the range and must not wrap around."""
    cv2.imwrite(str(clean / "a.png"), np.repeat(np.uint8([[0] * 12 + [255] * 12]), 20, axis=0)[..., None].repeat(3, 2))
    (clean / "b/c.png").unlink()
    noise = {"noise": {"sigma": 0.05, "seed": 1, "clip": False}}
    (tmp_path / "c.json").write_text(json.dumps({"noise": {"a": noise}}))
    write_fixed_set(str(clean), tmp_path / "x", ["noise"], compositions=read_compositions(tmp_path / "c.json"))
    (file,) = (tmp_path / "x/lq").rglob("*.png")
    image = cv2.imread(str(file))
    assert image[:, :12].max() < 100 and image[:, 12:].min() > 155


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "holds no parameters"),
        ("[]", "holds no parameters"),
        ('{"rain": {"a": {"rain": {"angel": 3}}}}', "unexpected keyword argument 'angel'"),
        ('{"rain": {"a": {"rian": {}}}}', "'rian'"),
        ('{"noise": {"a": {"noise": {"sigma": -1}}}}', "sigma must not be negative"),
    ],
)
def test_invalid_recorded_parameters_are_reported(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(UserError, match=f"c.json: .*{message}"):
        read_compositions(tmp_path / "c.json")


@pytest.mark.parametrize("lmdb", [False, True])
def test_folder_with_a_similar_name_is_kept(clean, tmp_path, lmdb):
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial/f").write_text("precious")
    write_fixed_set(str(clean), tmp_path / "x", ["rain"], lmdb=lmdb)
    assert (tmp_path / "x.partial/f").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "x", "x.partial"]


def test_folder_next_to_an_lmdb_is_kept(tmp_path):
    (tmp_path / "x.lmdb.partial").mkdir()
    write_lmdb(tmp_path / "x.lmdb", [("a", np.zeros((1, 1, 3), np.uint8))])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.lmdb", "x.lmdb.partial"]


def test_lmdb_of_many_small_images_can_be_written(tmp_path):
    """A value of half a page occupies one or two complete pages."""
    rng = np.random.default_rng(0)
    images = [
        (f"{n:05}", rng.integers(0, 256, (25, side, 3), np.uint8)) for n, side in enumerate(rng.integers(1, 28, 4500))
    ]
    write_lmdb(tmp_path / "x.lmdb", images, compression=0)
    write_lmdb(tmp_path / "tiny.lmdb", [(key * 80, np.zeros((1, 1, 3), np.uint8)) for key, _ in images])
    reader = LmdbImages(tmp_path / "x.lmdb", "x")
    assert (
        len(reader.content("00000")) < 2200 and (reader.read("04499") * 255).round().tolist() == images[-1][1].tolist()
    )
    assert len(read_meta_info(tmp_path / "tiny.lmdb/meta_info.txt")) == 4500


def test_lmdb_is_written_without_a_lock_file(tmp_path, monkeypatch):
    """A lock file is memory-mapped: on a full disk, the system would kill the process that writes to it."""
    opened, open_lmdb = [], lmdb_io.lmdb.open

    def recorded(path, **options):
        environment = open_lmdb(path, **options)
        opened.append(sorted(os.listdir(path)))
        return environment

    monkeypatch.setattr(lmdb_io.lmdb, "open", recorded)
    write_lmdb(tmp_path / "x.lmdb", [("a", np.zeros((1, 1, 3), np.uint8))])
    assert opened == [["data.mdb"]]


def test_lmdb_keys_contain_no_dots(clean, tmp_path, monkeypatch):
    """BasicSR truncates keys at their first dot; LMDBs of earlier versions with dots can still be compared."""
    (clean / "a.png").rename(clean / "a.b.png")
    write_fixed_set(str(clean), tmp_path / "new", ["noise"], lmdb=True)
    write_fixed_set(str(clean), tmp_path / "folder", ["noise"])
    assert read_meta_info(tmp_path / "new/lq.lmdb/meta_info.txt") == ["noise/a_b_noise"]
    assert (tmp_path / "folder/lq/noise/a.b_noise.png").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(fixed_set, "stored_name", lambda stem: stem)
        write_fixed_set(str(clean), tmp_path / "old", ["noise"], lmdb=True)
    assert read_meta_info(tmp_path / "old/lq.lmdb/meta_info.txt") == ["noise/a.b_noise"]
    for name in ("new", "old", "folder"):
        assert check_fixed_set(str(clean), tmp_path / name, lmdb=name != "folder") == (2, [])
        without_images(tmp_path / name)
        assert difference_of_set(tmp_path / name, str(clean), {}, lmdb=name != "folder") == ""
    cv2.imwrite(str(clean / "a_b.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="more than one image would be named 'noise/a_b_noise'"):
        write_fixed_set(str(clean), tmp_path / "x", ["noise"], lmdb=True)
    write_fixed_set(str(clean), tmp_path / "x", ["noise"])


def without_images(out):
    """Rewrite the record in the format of an earlier version."""
    made = json.loads((out / "made_with.json").read_text())
    (out / "made_with.json").write_text(json.dumps({key: made[key] for key in made if key not in ("format", "images")}))


def test_set_of_an_earlier_version_with_default_labels_is_recognized(clean, tmp_path):
    write_fixed_set(str(clean), tmp_path / "x", gt_size=16)
    without_images(tmp_path / "x")
    assert difference_of_set(tmp_path / "x", str(clean), {"gt_size": 16}, lmdb=False) == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", ""),
        ('{"degradations": 5}', "expected a list or a table of labels, got 5"),
        ('{"degradations": ["rian"]}', "'rian'"),
        ('{"scale": "x"}', ""),
    ],
)
def test_damaged_record_is_reported(tmp_path, text, message):
    record = json.loads(text)
    if record:
        record = {**dict.fromkeys(fixed_set.OPTIONS), "degradations": ["rain"], "scale": 1, **record}
    (tmp_path / "made_with.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"is not a fixed set of pairs: made_with.json cannot be read \(.*{message}"):
        fixed_set.recorded_options(tmp_path)
