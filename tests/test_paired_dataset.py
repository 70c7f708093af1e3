"""PairedRestorationDataset: values, order, equality with BasicSR's dataset, and error messages."""

import copy
import os
import random
import re
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from pair_cases import blown_up, for_training, make_folders, make_lmdbs, noise, options, refusal, same_items, write
from torch.utils.data import DataLoader

from restormixer_arch.basicsr_adapter import compat

compat.apply()

from basicsr.data import build_dataset  # noqa: E402
from basicsr.data.paired_image_dataset import PairedImageDataset  # noqa: E402

from restormixer_arch.data.images.folder import FolderImages  # noqa: E402
from restormixer_arch.data.images.opencv import enlarge  # noqa: E402
from restormixer_arch.data.lmdb_io import write_lmdb  # noqa: E402
from restormixer_arch.data.paired_dataset import PairedRestorationDataset  # noqa: E402
from restormixer_arch.data.pairing import result_names  # noqa: E402
from restormixer_arch.errors import UserError  # noqa: E402
from restormixer_arch.training.loader import start_worker  # noqa: E402


class TestValues:
    def test_red_is_channel_0(self, tmp_path):
        red = np.zeros((4, 5, 3), np.uint8)
        red[..., 2] = 255  # OpenCV writes BGR
        red[1, 3] = (51, 102, 0)
        write(tmp_path / "gt" / "x.png", red)
        write(tmp_path / "lq" / "x.png", red // 3)
        item = PairedRestorationDataset(options(tmp_path / "gt", tmp_path / "lq"))[0]
        assert item["gt"].shape == (3, 4, 5) and item["gt"].dtype == torch.float32
        assert torch.equal(item["gt"][:, 0, 0], torch.tensor([1.0, 0, 0]))
        torch.testing.assert_close(item["gt"][:, 1, 3], torch.tensor([0.0, 0.4, 0.2]))
        torch.testing.assert_close(item["lq"][:, 1, 3], torch.tensor([0.0, 34 / 255, 17 / 255]))
        assert item["gt_path"] == str(tmp_path / "gt" / "x.png")
        assert item["lq_path"] == str(tmp_path / "lq" / "x.png")

    def test_gray_alpha_and_16_bits_become_rgb(self, tmp_path):
        write(tmp_path / "gt" / "x.png", np.full((3, 3), 51, np.uint8))
        write(tmp_path / "lq" / "x.png", np.full((3, 3, 4), 257 * 102, np.uint16))
        item = PairedRestorationDataset(options(tmp_path / "gt", tmp_path / "lq"))[0]
        torch.testing.assert_close(item["gt"], torch.full((3, 3, 3), 0.2))
        torch.testing.assert_close(item["lq"], torch.full((3, 3, 3), 0.4))

    def test_luma(self, tmp_path):
        write(tmp_path / "gt" / "x.png", np.full((2, 2, 3), (0, 0, 255), np.uint8))
        write(tmp_path / "lq" / "x.png", np.full((2, 2, 3), 255, np.uint8))
        item = PairedRestorationDataset(options(tmp_path / "gt", tmp_path / "lq", color="y"))[0]
        torch.testing.assert_close(item["gt"], torch.full((1, 2, 2), (16 + 65.481) / 255))
        torch.testing.assert_close(item["lq"], torch.full((1, 2, 2), 235 / 255))

    def test_mean_and_std(self, tmp_path):
        opt = make_folders(tmp_path)
        plain = PairedRestorationDataset(opt)[1]
        mean, std = [0.5, 0.25, 0.0], [0.5, 1.0, 2.0]
        item = PairedRestorationDataset({**opt, "mean": mean, "std": std})[1]
        wanted = (plain["lq"] - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(item["lq"], wanted)

    @pytest.mark.parametrize("make", [make_folders, make_lmdbs])
    def test_items_equal_those_of_basicsr(self, tmp_path, make):
        opt = make(tmp_path)
        for phase in (opt, for_training(opt, gt_size=6)):
            ours, theirs = [], []
            for items, kind in ((ours, PairedRestorationDataset), (theirs, PairedImageDataset)):
                random.seed(4)
                dataset = kind(copy.deepcopy(phase))
                if kind is PairedImageDataset:  # its order is that of the file system
                    dataset.paths.sort(key=lambda paths: paths["gt_path"])
                items += [dataset[i] for i in range(2)]
                del dataset
            for first, second in zip(ours, theirs, strict=True):
                same_items(first, second)

    def test_build_dataset_finds_it_by_name(self, tmp_path):
        opt = make_lmdbs(tmp_path)
        before = copy.deepcopy(opt)
        dataset = build_dataset(opt)
        assert type(dataset) is PairedRestorationDataset and len(dataset) == 2
        direct = PairedRestorationDataset(opt)
        same_items(direct[1], dataset[1])
        assert opt == before
        assert direct[1]["lq_path"] == direct[1]["gt_path"] == "b"


class TestTraining:
    @pytest.mark.parametrize(("scale", "gt_size"), [(1, 7), (2, 8), (3, 6)])
    def test_crops_flips_and_rotations_are_the_same_for_both_images(self, tmp_path, scale, gt_size):
        """Each pixel of the degraded image stores its own position, each of the clean one that of its source."""
        rows, columns = np.mgrid[:15, :11].astype(np.uint8)
        lq = np.stack([rows, columns, rows * 0], axis=2)  # BGR: blue is the row, green the column
        write(tmp_path / "lq" / "x.png", lq)
        write(tmp_path / "gt" / "x.png", blown_up(lq, scale))
        dataset = PairedRestorationDataset(
            for_training(options(tmp_path / "gt", tmp_path / "lq", scale=scale), gt_size)
        )
        random.seed(0)
        corners, orientations = set(), set()
        for _ in range(120):
            item = dataset[0]
            assert item["gt"].shape == (3, gt_size, gt_size)
            assert torch.equal(item["gt"], item["lq"].repeat_interleave(scale, 1).repeat_interleave(scale, 2))
            places = (item["lq"] * 255).round().int()
            row, column = places[2], places[1]
            side = gt_size // scale
            assert sorted(row.unique().tolist()) == list(range(row.min(), row.min() + side))
            assert sorted(column.unique().tolist()) == list(range(column.min(), column.min() + side))
            corners.add((row.min().item(), column.min().item()))
            first, end = (row[0, 0], column[0, 0]), (row[0, -1], column[0, -1])
            orientations.add(tuple((b - a).sign().item() for a, b in zip(first, end, strict=True)))
        assert {r for r, _ in corners} == set(range(15 - side + 1))
        assert {c for _, c in corners} == set(range(11 - side + 1))
        assert orientations == {(0, 1), (0, -1), (1, 0), (-1, 0)}

    @pytest.mark.parametrize(("hflip", "rot", "wanted"), [(False, False, {1}), (True, False, {1, -1})])
    def test_images_stay_upright_without_use_rot(self, tmp_path, hflip, rot, wanted):
        image = np.zeros((9, 9, 3), np.uint8)
        image[...] = np.arange(9)[None, :, None] + 20 * np.arange(9)[:, None, None]
        for side in ("gt", "lq"):
            write(tmp_path / side / "x.png", image)
        opt = for_training(options(tmp_path / "gt", tmp_path / "lq"), 4, hflip, rot)
        dataset = PairedRestorationDataset(opt)
        random.seed(1)
        pictures = [(dataset[0]["gt"][0] * 255).round() for _ in range(20)]
        assert {(p[0, 1] - p[0, 0]).item() for p in pictures} == wanted
        assert {(p[1, 0] - p[0, 0]).item() for p in pictures} == {20}

    def test_small_images_are_mirror_padded(self, tmp_path):
        opt = make_folders(tmp_path, names=("x.png",), size=(5, 7))
        item = PairedRestorationDataset(for_training(opt, 16, False, False))[0]
        image = noise(5, 7)[..., ::-1].astype(np.float32).transpose(2, 0, 1) / 255
        wanted = np.pad(image, ((0, 0), (0, 11), (0, 9)), "symmetric")
        np.testing.assert_array_equal(item["gt"].numpy(), wanted)
        np.testing.assert_array_equal(item["lq"].numpy(), wanted)

    def test_mirror_padded_pairs_remain_aligned(self, tmp_path):
        opt = make_folders(tmp_path, names=("x.png",), size=(3, 4), scale=2)
        item = PairedRestorationDataset(for_training(opt, 32))[0]
        assert item["gt"].shape == (3, 32, 32)
        assert torch.equal(item["gt"], item["lq"].repeat_interleave(2, 1).repeat_interleave(2, 2))

    def test_single_pixel_is_enlarged(self):
        assert np.array_equal(enlarge(np.full((1, 1, 3), 0.3, np.float32), 5), np.full((5, 5, 3), 0.3, np.float32))

    @pytest.mark.parametrize("make", [make_folders, make_lmdbs])
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_worker_crops_differ_between_epochs_and_repeat_with_the_torch_seed(self, tmp_path, make):
        dataset = PairedRestorationDataset(for_training(make(tmp_path), gt_size=4))
        dataset[0]  # opens the images before the fork
        options = {"worker_init_fn": start_worker, "multiprocessing_context": "fork"}
        loader = DataLoader(dataset, batch_size=1, num_workers=2, **options)
        epochs = []
        for seed in (5, None, 5):
            if seed is not None:
                torch.manual_seed(seed)
            epochs.append(torch.cat([batch["gt"] for batch in loader]))
        assert not torch.equal(epochs[0], epochs[1])
        assert torch.equal(epochs[0], epochs[2])

    @pytest.mark.slow
    def test_spawned_workers_return_the_same_items(self, tmp_path):
        dataset = PairedRestorationDataset(make_lmdbs(tmp_path))
        before = [dataset[i] for i in range(2)]
        loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="spawn")
        for item, wanted in zip(loader, before, strict=True):
            same_items(item, wanted)


class TestPairs:
    def test_only_images_are_listed_in_sorted_order(self, tmp_path):
        opt = make_folders(tmp_path, names=("c.png", "B.PNG", "a.jpg", "10.png", "9.png"))
        for name in ("notes.txt", ".hidden.png", "Thumbs.db"):
            (tmp_path / "gt" / name).write_bytes(b"no image")
        dataset = PairedRestorationDataset(opt)
        assert [Path(dataset[i]["gt_path"]).name for i in range(5)] == ["10.png", "9.png", "B.PNG", "a.jpg", "c.png"]
        assert [Path(dataset[i]["lq_path"]).name for i in range(5)] == ["10.png", "9.png", "B.PNG", "a.jpg", "c.png"]

    def test_filename_template_and_other_extension(self, tmp_path):
        opt = make_folders(tmp_path, lq_name=lambda name: name.replace(".png", "_rain.bmp"))
        dataset = PairedRestorationDataset({**opt, "filename_tmpl": "{}_rain"})
        assert [pair[1] for pair in dataset.pairs] == ["a_rain.bmp", "b_rain.bmp"]
        assert torch.equal(dataset[1]["gt"], dataset[1]["lq"])

    def test_same_stem_with_two_extensions(self, tmp_path):
        opt = make_folders(tmp_path, names=("a.png", "a.bmp"))
        assert PairedRestorationDataset(opt).pairs == [("a.bmp", "a.bmp"), ("a.png", "a.png")]
        (tmp_path / "lq" / "a.png").unlink()
        assert "has no partner for 1 of 2 images" in refusal(opt)

    def test_recursive_reads_subfolders(self, tmp_path):
        opt = make_folders(tmp_path, names=("two/a.png", "one/a.png"))
        assert "contains no images" in refusal(opt) and "2 in its subfolders" in refusal(opt)
        dataset = PairedRestorationDataset({**opt, "recursive": True, "filename_tmpl": "{}"})
        assert [pair[1] for pair in dataset.pairs] == ["one/a.png", "two/a.png"]
        assert torch.equal(dataset[1]["gt"], dataset[1]["lq"])

    @pytest.mark.parametrize(("make", "known"), [(make_folders, "c.png"), (make_lmdbs, "c")])
    def test_meta_info_file(self, tmp_path, make, known):
        names = [f"{letter}{Path(known).suffix}" for letter in "abc"]
        listing = tmp_path / "list.txt"
        opt = {**make(tmp_path, names=names), "meta_info_file": str(listing)}
        listing.write_text("c.png (12,10,3)\n\na.png (12,10,3)\n")
        assert [Path(gt).stem for gt, _ in PairedRestorationDataset(opt).pairs] == ["a", "c"]
        listing.write_text(f"cc{Path(known).suffix}\n")
        assert re.search(
            rf"list.txt' lists 1 images that dataroot_gt .* lacks, .*Did you mean '{known}'\?", refusal(opt)
        )
        listing.write_text("\n")
        assert refusal(opt) == f"{listing}: lists no image"
        listing.unlink()
        assert refusal(opt) == f"meta_info_file: '{listing}' is not a file"

    def test_missing_degraded_image_is_rejected(self, tmp_path):
        opt = make_folders(tmp_path, names=("snow.png", "stone.png"))
        (tmp_path / "lq" / "stone.png").rename(tmp_path / "lq" / "stnoe.png")
        assert refusal(opt) == (
            f"dataroot_lq '{tmp_path}/lq' has no partner for 1 of 2 images in dataroot_gt '{tmp_path}/gt', "
            "the first is 'stone.png'. Did you mean 'stnoe.png'?"
        )

    def test_extra_degraded_image_is_rejected(self, tmp_path):
        opt = make_folders(tmp_path)
        write(tmp_path / "lq" / "z.png", noise(4, 4))
        assert refusal(opt) == (
            f"dataroot_gt '{tmp_path}/gt' has no partner for 1 of 3 images in dataroot_lq '{tmp_path}/lq', "
            "the first is that of 'z.png'"
        )

    def test_missing_lmdb_key_is_rejected(self, tmp_path):
        opt = make_lmdbs(tmp_path)
        write_lmdb(tmp_path / "more.lmdb", [("a", noise(3, 3)), ("b", noise(3, 3)), ("see", noise(3, 3))])
        message = refusal({**opt, "dataroot_gt": str(tmp_path / "more.lmdb")})
        assert message.endswith("images in dataroot_gt '" + str(tmp_path / "more.lmdb") + "', the first is 'see'.")


class TestImages:
    def test_pair_of_different_sizes_is_rejected(self, tmp_path):
        opt = make_folders(tmp_path)
        write(tmp_path / "lq" / "b.png", noise(12, 9))
        dataset = PairedRestorationDataset(opt)
        dataset[0]
        with pytest.raises(UserError) as caught:
            dataset[1]
        assert str(caught.value) == (
            f"{tmp_path}/gt/b.png is 12x10 (height x width), expected 12x9: 1 times 12x9 of {tmp_path}/lq/b.png"
        )

    def test_remainder_is_cropped_only_in_validation(self, tmp_path):
        lq = noise(5, 6)
        write(tmp_path / "lq" / "x.png", lq)
        write(tmp_path / "gt" / "x.png", np.pad(blown_up(lq, 3), ((0, 2), (0, 1), (0, 0))))
        opt = options(tmp_path / "gt", tmp_path / "lq", scale=3)
        item = PairedRestorationDataset(opt)[0]
        assert torch.equal(item["gt"], item["lq"].repeat_interleave(3, 1).repeat_interleave(3, 2))
        with pytest.raises(UserError, match=r"is 17x19 .*, expected 15x18: 3 times 5x6"):
            PairedRestorationDataset(for_training(opt, 6))[0]
        with pytest.raises(UserError, match=r"is 17x19 .*, expected 10x12: 2 times 5x6"):
            PairedRestorationDataset({**opt, "scale": 2})[0]

    @pytest.mark.parametrize("content", [b"", b"no image", noise(2, 2).tobytes()])
    def test_undecodable_file_is_named_in_the_error(self, tmp_path, content):
        opt = make_folders(tmp_path)
        (tmp_path / "lq" / "a.png").write_bytes(content)
        message = f"{tmp_path}/lq/a.png: cannot be decoded as an image ({len(content)} bytes)"
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            PairedRestorationDataset(opt)[0]

    def test_deleted_file_is_named_in_the_error(self, tmp_path):
        dataset = PairedRestorationDataset(make_folders(tmp_path))
        (tmp_path / "gt" / "a.png").unlink()
        with pytest.raises(UserError, match=r"gt/a.png: cannot be read \(No such file or directory\)"):
            dataset[0]

    def test_damaged_and_missing_lmdb_values_are_named_in_the_error(self, tmp_path):
        opt = make_lmdbs(tmp_path)
        with lmdb.open(opt["dataroot_lq"]) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"a", b"no image")
            transaction.delete(b"b")
        dataset = PairedRestorationDataset(opt)
        with pytest.raises(UserError, match=r"lq.lmdb: image 'a': cannot be decoded as an image \(8 bytes\)$"):
            dataset[0]
        with pytest.raises(
            UserError, match=r"lq.lmdb: image 'b' is not in the LMDB, though its meta_info.txt lists it"
        ):
            dataset[1]


def test_result_names_do_not_contain_the_home_folder(tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    opt = make_folders(tmp_path, names=("a/x.png", "b/x.png"))
    data = PairedRestorationDataset({**opt, "dataroot_gt": "~/gt", "dataroot_lq": "~/lq", "recursive": True})
    assert [data[number]["result_name"] for number in range(2)] == ["a_x", "b_x"]


def test_duplicate_result_names_are_numbered():
    """A name composed of folder and file name can be that of another file."""
    names = result_names(["a/x.png", "b/x.png", "a_x.png"], "")
    assert names == ["a_x_png_1", "b_x", "a_x_png_2"]
    names = result_names(["a/x.png", "a_x.png", "x.png", "a_x_png_1.png"], "")
    assert names == ["a_x_png_2", "a_x_png_3", "x", "a_x_png_1"]


class TestOptions:
    @pytest.mark.parametrize("key", ["dataroot_gt", "dataroot_lq", "io_backend", "phase", "scale"])
    def test_missing_option_is_rejected(self, tmp_path, key):
        opt = make_folders(tmp_path)
        del opt[key]
        assert refusal(opt) == f"{key} is missing in the options of PairedRestorationDataset 'pairs'"

    @pytest.mark.parametrize("key", ["gt_size", "use_hflip", "use_rot"])
    def test_missing_training_option_is_rejected(self, tmp_path, key):
        opt = {**for_training(make_folders(tmp_path), 4), key: None}
        assert refusal(opt) == f"{key} is missing in the options of PairedRestorationDataset 'pairs'"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                {"io_backend": {"type": "lmbd"}},
                "io_backend.type is 'lmbd', expected disk or lmdb. Did you mean 'lmdb'?",
            ),
            ({"io_backend": "disc"}, "io_backend is 'disc', expected a table such as {type: disk}"),
            ({"io_backend": "disk"}, "io_backend is 'disk', expected a table such as {type: disk}"),
            ({"phase": "training"}, "phase is 'training', expected train, val or test"),
            ({"filename_tmpl": "rain"}, "filename_tmpl is 'rain', expected one {} for the clean image's name"),
            ({"filename_tmpl": 3}, "filename_tmpl is 3, expected one {} for the clean image's name"),
            ({"filename_tmpl": ["{}"]}, "filename_tmpl is ['{}'], expected one {} for the clean image's name"),
            ({"mean": 0.5, "std": [1, 1, 1]}, "mean is 0.5, expected 3 values"),
            ({"mean": [0, 0, 0], "std": "abc"}, "std is 'abc', expected 3 values that are not 0"),
            ({"scale": "2"}, "scale is '2', expected a whole number from 1"),
            ({"scale": 0}, "scale is 0, expected a whole number from 1"),
            ({"dataroot_lq": ["lq"]}, "dataroot_lq is ['lq'], expected the name of a file or folder"),
            ({"dataroot_lq": ""}, "dataroot_lq: expected the name of a folder, got an empty string"),
            ({"meta_info_file": 3}, "meta_info_file is 3, expected the name of a file or folder"),
            (
                {"phase": "train", "gt_size": "48", "use_hflip": True, "use_rot": True},
                "gt_size: got '48', expected a whole number of pixels",
            ),
            ({"color": "x"}, "color is 'x', expected y or nothing"),
            ({"mean": [0, 0, 0]}, "mean is [0, 0, 0] and std is None, expected both or neither"),
            ({"mean": [0], "std": [1]}, "mean is [0], expected 3 values"),
            ({"mean": [0, 0, 0], "std": [1, 1]}, "std is [1, 1], expected 3 values that are not 0"),
            ({"mean": [0, 0, 0], "std": [1, 0, 1]}, "std is [1, 0, 1], expected 3 values that are not 0"),
            (
                {"phase": "train", "gt_size": 9, "scale": 2, "use_hflip": True, "use_rot": True},
                "gt_size: got 9, expected a multiple of scale 2",
            ),
        ],
    )
    def test_invalid_values_are_rejected(self, tmp_path, change, message):
        assert refusal({**make_folders(tmp_path), **change}) == message

    def test_invalid_folders_are_rejected(self, tmp_path):
        opt = make_folders(tmp_path)
        message = refusal({**opt, "dataroot_gt": str(tmp_path / "gtt")})
        assert message.startswith(f"dataroot_gt: '{tmp_path}/gtt' does not exist") and "Did you mean" in message
        assert refusal({**opt, "dataroot_lq": str(tmp_path / "lq/a.png")}) == (
            f"dataroot_lq: '{tmp_path}/lq/a.png' is a file, a folder was expected"
        )
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "a.txt").write_text("")
        assert refusal({**opt, "dataroot_lq": str(tmp_path / "empty")}).startswith(
            f"dataroot_lq: '{tmp_path}/empty' contains no images (.bmp .jpeg"
        )


class TestFileSystem:
    def test_meta_info_file_with_a_byte_order_mark(self, tmp_path):
        opt = {**make_folders(tmp_path), "meta_info_file": str(tmp_path / "list.txt")}
        (tmp_path / "list.txt").write_text("a.png\r\nb.png\n", encoding="utf-8-sig")
        assert PairedRestorationDataset(opt).pairs == [("a.png", "a.png"), ("b.png", "b.png")]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
    @pytest.mark.parametrize("recursive", [False, True])
    def test_broken_links_pipes_and_unreadable_subfolders_are_reported(self, tmp_path, monkeypatch, capsys, recursive):
        opt, original = make_folders(tmp_path), os.scandir
        for number in range(2):
            (tmp_path / f"gt/lost_{number}.png").symlink_to("nowhere")
        (tmp_path / "gt/lost.txt").symlink_to("nowhere")  # not an image by its name
        os.mkfifo(tmp_path / "gt/pipe.png")
        (tmp_path / "gt/closed").mkdir()

        def scandir(path):
            if str(path).endswith(("closed", "lq")):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        monkeypatch.setattr(os, "scandir", scandir)
        images = FolderImages(tmp_path / "gt", "dataroot_gt", recursive)
        assert images.names == ["a.png", "b.png"]
        closed = "1 folder that cannot be read (Permission denied), " if recursive else ""
        text = f"left out {closed}2 links to missing files, 1 pipe, socket or device"
        assert capsys.readouterr().err == f"basicsr: note: dataroot_gt: '{tmp_path}/gt': {text}\n"
        assert refusal({**opt, "recursive": recursive}) == (
            f"dataroot_lq: '{tmp_path}/lq' cannot be read (Permission denied)"
        )

    @pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
    def test_linked_subfolders_are_reported_as_skipped(self, tmp_path, capsys):
        opt = make_folders(tmp_path, names=("one/a.png",))
        for side in ("gt", "lq"):
            (tmp_path / side / "linked").symlink_to(tmp_path / side / "one")
            (tmp_path / side / "one/loop").symlink_to(tmp_path / side)
        assert PairedRestorationDataset({**opt, "recursive": True}).pairs == [("one/a.png", "one/a.png")]
        text = "left out 2 linked subfolders, which 'recursive: true' does not read"
        assert capsys.readouterr().err.splitlines() == [
            f"basicsr: note: dataroot_{side}: '{tmp_path}/{side}': {text}" for side in ("gt", "lq")
        ]
        (tmp_path / "gt/one/a.png").unlink()
        assert refusal({**opt, "recursive": True}).endswith(
            "; it has 2 linked subfolders, which 'recursive: true' does not read"
        )
