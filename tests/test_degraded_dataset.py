"""Degradation on the fly: a sample depends only on (seed, epoch, index)."""

import pickle
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from restormixer_arch.data import degraded_dataset
from restormixer_arch.data.degradations.compose import add_composition, draw_composition
from restormixer_arch.data.degraded_dataset import DegradedDataset
from restormixer_arch.data.lmdb_io import write_lmdb
from restormixer_arch.errors import UserError
from restormixer_arch.training.loader import ResumableSampler, SeededSamples, build_training_loader

LABELS = ["low_haze", "rain", "noise", "snow"]


@pytest.fixture
def clean(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "clean"
    folder.mkdir()
    for number, (height, width) in enumerate([(40, 50), (36, 36), (20, 61)]):
        image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 2)
        cv2.imwrite(str(folder / f"{number}.png"), image)
    return folder


def options(root, **changes):
    base = {"dataroot_gt": str(root), "io_backend": {"type": "disk"}, "degradations": LABELS, "phase": "train"}
    return {**base, "scale": 1, "gt_size": 32, "use_hflip": True, "use_rot": True, "seed": 3, "name": "x", **changes}


def same(one, two):
    equal = [torch.equal(one[key], two[key]) for key in ("lq", "gt")]
    return all(equal) and all(one[key] == two[key] for key in ("label", "lq_path", "gt_path"))


def epochs(dataset, workers, persistent=False, count=2, ratio=2):
    """Return the list of items of each epoch, loaded as in training."""
    sampler = ResumableSampler(dataset, 1, 0, ratio, seed=0)
    loader = DataLoader(
        SeededSamples(dataset),
        sampler=sampler,
        batch_size=None,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
    )
    items = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        items.append(list(loader))
    return items


def test_samples_do_not_depend_on_the_number_of_workers(clean):
    dataset = DegradedDataset(options(clean))
    expected = epochs(dataset, 0)
    for workers, persistent in ((1, False), (2, False), (2, True)):
        for ours, theirs in zip(expected, epochs(dataset, workers, persistent), strict=True):
            assert len(ours) == 6 and all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def test_samples_differ_between_epochs_seeds_and_repetitions(clean):
    dataset = DegradedDataset(options(clean))
    items = [dataset[key] for key in ((0, 1), (1, 1), (0, 4), (0, 1))]  # sample 4 repeats image 1
    items.append(DegradedDataset(options(clean, seed=4))[0, 1])
    assert same(items[0], items[3]) and same(items[0], dataset[1])
    assert {item["gt_path"] for item in items} == {str(clean / "1.png")}
    assert len({item["lq"].numpy().tobytes() for item in items}) == 4


def test_item_is_a_crop_with_an_8_bit_lq_named_by_its_label(clean):
    dataset = DegradedDataset(options(clean, use_hflip=False, use_rot=False, gt_size=16))
    for number in range(12):
        item, sample = dataset[0, number], dataset.sample(0, number)
        assert item["lq"].shape == item["gt"].shape == (3, 16, 16) and item["lq"].dtype == torch.float32
        np.testing.assert_array_equal(item["gt"].numpy().transpose(1, 2, 0), sample.gt)
        whole = cv2.imread(str(clean / sample.name))[..., ::-1].astype(np.float32) / 255
        found = cv2.matchTemplate(whole, np.ascontiguousarray(sample.gt), cv2.TM_SQDIFF)
        assert found.min() < 1e-4  # the crop is part of the image
        levels = item["lq"] * 255
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
        assert item["label"] in LABELS and 0 <= item["lq"].min() and item["lq"].max() <= 1
        stem = sample.name[:-4]
        assert item["lq_path"] == f"{item['label']}/{stem}_{item['label']}.png"


def test_flips_and_rotations_precede_the_degradation(tmp_path, monkeypatch):
    """A horizontal ramp shows how it was flipped and rotated; rain must not be rotated with the image."""
    cv2.imwrite(str(tmp_path / "r.png"), np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))[..., None].repeat(3, 2))
    degraded = []
    monkeypatch.setattr(degraded_dataset, "add_composition", lambda image, steps: degraded.append(image) or image)
    for hflip, rot, kinds in ((False, False, 1), (True, False, 2), (True, True, 4)):
        dataset = DegradedDataset(options(tmp_path, use_hflip=hflip, use_rot=rot, degradations=["rain"]))
        directions = set()
        for number in range(40):
            gt = dataset.sample(0, number).gt
            assert np.array_equal(degraded[-1], gt)
            directions.add((np.sign(gt[0, -1, 0] - gt[0, 0, 0]), np.sign(gt[-1, 0, 0] - gt[0, 0, 0])))
        assert len(directions) == kinds


def test_labels_are_drawn_by_weight(clean):
    table = {"noise": {"weight": 3, "strength": 0.1}, "clean": {"weight": 1}}
    dataset = DegradedDataset(options(clean, degradations=table, gt_size=4))
    drawn = Counter(dataset.sample(0, number).label for number in range(800))
    assert drawn["noise"] / 800 == pytest.approx(0.75, abs=0.05)
    assert dataset.labels == ("noise", "clean")


def test_strength_is_taken_from_the_degradations_table(clean):
    dataset = DegradedDataset(options(clean, degradations={"noise": {"strength": 0.3}}, phase="val", gt_size=None))
    deviations = [(dataset.sample(0, n).lq - dataset.sample(0, n).gt).std() for n in range(3)]
    assert np.mean(deviations) == pytest.approx(0.3 * 55 / 255, rel=0.05)


def test_validation_has_every_image_with_every_label(clean):
    dataset = DegradedDataset(options(clean, phase="val", gt_size=None, use_hflip=None, use_rot=None))
    assert len(dataset) == 12
    items = [dataset[n] for n in range(12)]
    assert [item["label"] for item in items] == LABELS * 3
    assert [item["gt"].shape[1:] for item in items[::4]] == [(40, 50), (36, 36), (20, 61)]
    assert len({item["lq_path"] for item in items}) == 12
    assert all(same(dataset[5, n], items[n]) for n in range(12))  # all epochs are the same
    small = DegradedDataset(options(clean, phase="test", gt_size=24))
    assert small[0]["gt"].shape == (3, 24, 24) and small[8]["gt"].shape == (3, 20, 24)
    torch.testing.assert_close(small[0]["gt"], items[0]["gt"][:, 8:32, 13:37])


def test_image_sizes_for_super_resolution(clean):
    dataset = DegradedDataset(options(clean, scale=4, degradations=["down", "blur_down_jpeg"], gt_size=16))
    item = dataset[0]
    assert item["lq"].shape == (3, 4, 4) and item["gt"].shape == (3, 16, 16)
    whole = DegradedDataset(options(clean, scale=3, degradations=["down"], phase="val", gt_size=None))
    assert whole[2]["lq"].shape == (3, 6, 20) and whole[2]["gt"].shape == (3, 18, 60)


def test_lmdb_gives_the_same_samples_as_a_folder(clean, tmp_path):
    write_lmdb(tmp_path / "clean.lmdb", [(f"{n}", cv2.imread(str(clean / f"{n}.png"))) for n in range(3)])
    folder = DegradedDataset(options(clean))
    database = DegradedDataset(options(tmp_path / "clean.lmdb", io_backend={"type": "lmdb"}))
    again = pickle.loads(pickle.dumps(database))
    for number in range(3):
        assert torch.equal(folder[number]["lq"], database[number]["lq"])
        assert torch.equal(folder[number]["lq"], again[number]["lq"])
    assert database[0]["gt_path"] == "0"


def test_validation_sample_matches_its_manually_computed_degradation(clean):
    """The generator is seeded with (seed, 0, 0); it draws a strength, then the parameters of the label."""
    dataset = DegradedDataset(options(clean, phase="val", gt_size=None))
    rng = np.random.default_rng([3, 0, 0])
    rng.uniform()
    clean_image = cv2.imread(str(clean / "0.png"))[..., ::-1].astype(np.float32) / 255
    wanted = add_composition(np.ascontiguousarray(clean_image), draw_composition(rng, "low_haze"))
    np.testing.assert_allclose(dataset.sample(0, 0).lq, np.round(wanted * 255) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataroot_gt": None}, "dataroot_gt is missing in the options of DegradedDataset 'x'"),
        ({"degradations": None}, "degradations is missing"),
        ({"use_rot": None}, "use_rot is missing"),
        ({"degradations": ["rian"]}, r"degradations: 'rian' .* Did you mean 'rain'\?"),
        ({"io_backend": {"type": "zip"}}, "io_backend.type is 'zip', expected disk or lmdb"),
        ({"io_backend": "disk"}, r"io_backend is 'disk', expected a table such as \{type: disk\}"),
        ({"phase": "training"}, "phase is 'training'"),
        ({"gt_size": 0}, "gt_size: got 0, expected a multiple of scale 1"),
        ({"gt_size": 10, "scale": 4, "degradations": ["down"]}, "gt_size: got 10, expected a multiple of scale 4"),
        ({"scale": 2}, "scale 2 needs 'down' or 'blind' in every label"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"dataroot_gt": "nowhere"}, "dataroot_gt: 'nowhere'"),
        ({"dataroot_gt": "x.lmdb"}, "dataroot_gt: 'x.lmdb' is an LMDB, which needs io_backend.type 'lmdb', got 'disk'"),
    ],
)
def test_missing_or_invalid_options(clean, changes, message):
    with pytest.raises(UserError, match=message):
        DegradedDataset(options(clean, **changes))


def test_index_beyond_the_end_is_rejected(clean):
    with pytest.raises(IndexError, match=r"index must be in \[0, 3\), got 3"):
        DegradedDataset(options(clean))[3]


def test_unusable_images_are_rejected(clean):
    (clean / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png: cannot be decoded as an image \(8 bytes\)"):
        DegradedDataset(options(clean))[1]
    cv2.imwrite(str(clean / "1.png"), np.zeros((3, 9, 3), np.uint8))
    dataset = DegradedDataset(options(clean, scale=4, degradations=["down"], phase="val", gt_size=None))
    with pytest.raises(UserError, match=r"1\.png: is 3x9, expected at least scale 4 on each side"):
        dataset[1]


def test_downsized_crops_cover_more_of_the_image_and_enlarged_ones_less(tmp_path):
    """A crop of 32 of 96 columns covers a third of a ramp, two thirds if downsized by 2, a sixth if enlarged by 2."""
    ramp = np.repeat(np.arange(96, dtype=np.uint8)[None, :, None] * 2, 96, axis=0).repeat(3, axis=2)
    (tmp_path / "ramps").mkdir()
    cv2.imwrite(str(tmp_path / "ramps/ramp.png"), ramp)
    for resize, span in (([1, 1], 62), ([0.5, 0.5], 124), ([2, 2], 30)):
        dataset = DegradedDataset(
            options(tmp_path / "ramps", degradations=["clean"], resize=resize, use_rot=False, use_hflip=False)
        )
        gt = dataset[0]["gt"] * 255
        assert gt.shape == (3, 32, 32)
        assert (gt[0, 0, -1] - gt[0, 0, 0]).item() == pytest.approx(span, abs=1)


def test_downsizing_is_limited_by_the_image_size(clean):
    dataset = DegradedDataset(options(clean, degradations=["clean"], resize=[0.01, 1.0]))
    assert {tuple(dataset.sample(epoch, 0).gt.shape) for epoch in range(8)} == {(32, 32, 3)}


def test_enlarged_area_has_at_least_one_pixel(clean):
    dataset = DegradedDataset(options(clean, degradations=["clean"], gt_size=1, resize=[2, 2]))
    originals = {tuple(pixel) for name in sorted(clean.iterdir()) for pixel in cv2.imread(str(name)).reshape(-1, 3)}
    crops = [dataset.sample(epoch, index).gt for epoch in range(3) for index in range(3)]
    assert all(tuple(np.round(crop[0, 0] * 255).astype(np.uint8)[::-1]) in originals for crop in crops)


@pytest.mark.parametrize(("own", "differ"), [(None, True), (7, False)])
def test_manual_seed_changes_the_samples_unless_the_dataset_has_a_seed(clean, own, differ):
    def first(seed):
        loading = {"type": "DegradedDataset", "batch_size_per_gpu": 1, "num_worker_per_gpu": 0}
        section = options(clean, seed=own, gt_size=16, **loading)
        opt = {"datasets": {"train": section}, "manual_seed": seed, "num_gpu": 0, "dist": False}
        loader, _ = build_training_loader(opt | {"world_size": 1, "rank": 0, "train": {"total_iter": 1}}, "x.yml")
        dataset = loader.dataset.dataset
        return [dataset.sample(0, number) for number in range(4)]

    again, one, two = first(42), first(42), first(43)
    assert all((a.lq == b.lq).all() and (a.gt == b.gt).all() for a, b in zip(again, one, strict=True))
    assert any(a.gt.tobytes() != b.gt.tobytes() for a, b in zip(one, two, strict=True)) is differ


def test_exposure_is_applied_before_the_degradation(clean):
    rain = {"rain": {"strength": 1.0}}
    plain = DegradedDataset(options(clean, degradations=["clean"]))
    half = DegradedDataset(options(clean, degradations=["clean"], exposure=[0.5, 0.5]))
    bright = DegradedDataset(options(clean, degradations=["clean"], exposure=[2, 2]))
    for index in range(3):
        gt = plain[index]["gt"]
        torch.testing.assert_close(half[index]["gt"], gt * 0.5)
        torch.testing.assert_close(bright[index]["gt"], (gt * 2).clamp(max=1))
        assert (half[index]["lq"] - half[index]["gt"]).abs().max() <= 0.5 / 255 + 1e-6  # rounding to 8 bits
    dark = DegradedDataset(options(clean, degradations=rain, exposure=[0.01, 0.01])).sample(0, 0)
    assert dark.gt.max() <= 0.0101 and dark.lq.max() > 0.1  # rain is not darkened


def test_exposure_is_uniform_in_stops(clean):
    ranged = DegradedDataset(options(clean, degradations=["clean"], exposure=[0.25, 1]))
    plain = DegradedDataset(options(clean, degradations=["clean"]))
    stops = [np.log2(ranged.sample(epoch, 0).gt.mean() / plain.sample(epoch, 0).gt.mean()) for epoch in range(200)]
    assert min(stops) >= -2 - 1e-4 and max(stops) <= 1e-4
    assert np.mean(stops) == pytest.approx(-1, abs=0.15) and np.std(stops) == pytest.approx(2 / 12**0.5, abs=0.1)


def test_unclipped_noise_is_the_share_of_samples_that_are_not_rounded(clean):
    shares = {}
    for share in (0.0, 0.5, 1.0):
        dataset = DegradedDataset(
            options(clean, degradations={"noise": {"strength": 1.0}}, unclipped_noise=share, gt_size=16)
        )
        samples = [dataset.sample(epoch, 0).lq for epoch in range(40)]
        rounded = [np.allclose(lq * 255, np.round(lq * 255), atol=1e-3) for lq in samples]
        shares[share] = 1 - np.mean(rounded)
    assert shares[0.0] == 0 and shares[1.0] == 1 and 0.2 < shares[0.5] < 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize": [0.5]}, r"resize is \[0.5\], expected \[low, high\]"),
        ({"resize": [0.8, 2.5]}, r"resize is \[0.8, 2.5\], expected"),
        ({"exposure": [0, 1]}, r"exposure is \[0, 1\], expected \[low, high\] with 0 < low"),
        ({"exposure": [1.2, 1.0]}, r"exposure is \[1.2, 1.0\], expected"),
        ({"unclipped_noise": 2}, r"unclipped_noise is 2, expected a share in \[0, 1\]"),
        ({"resize": 2}, r"resize is 2, expected \[low, high\]"),
        ({"resize": "12"}, r"resize is '12', expected \[low, high\]"),
        ({"exposure": [1, "x"]}, r"exposure is \[1, 'x'\], expected \[low, high\]"),
        ({"unclipped_noise": "x"}, "unclipped_noise is 'x', expected a share"),
        ({"gt_size": "48"}, "gt_size: got '48', expected a whole number"),
        ({"scale": "2"}, "scale is '2', expected a whole number from 1"),
        ({"dataroot_gt": 3}, "dataroot_gt is 3, expected the name of a file or folder"),
        ({"dataroot_gt": ""}, "dataroot_gt: expected the name of a folder, got an empty string"),
        ({"compositions": 3}, "compositions is 3, expected the name"),
        ({"seed": "x"}, "seed is 'x', expected a whole number from 0"),
        ({"compositions": "nowhere.json"}, "nowhere.json: cannot be read"),
    ],
)
def test_invalid_ranges_and_types_of_options(clean, changes, message):
    with pytest.raises(UserError, match=message):
        DegradedDataset(options(clean, **changes))


def test_numpy_numbers_are_accepted_as_options(clean):
    numpys = {
        "seed": np.int64(3),
        "gt_size": np.int32(32),
        "exposure": np.array([0.5, 1]),
        "resize": (1, np.float32(1)),
    }
    plain = options(clean, exposure=[0.5, 1], resize=[1, 1])
    assert same(DegradedDataset(options(clean, **numpys))[0], DegradedDataset(plain)[0])
