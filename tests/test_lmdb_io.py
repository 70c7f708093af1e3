"""LMDBs: BasicSR's format, several readers of a file, damaged files, and names that cannot be stored."""

import copy
import os
import pickle
import re
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
import torch
from pair_cases import make_folders, make_lmdbs, noise, refusal, same_items

from restormixer_arch.basicsr_adapter import compat

compat.apply()

from basicsr.utils import FileClient  # noqa: E402

from restormixer_arch.data.lmdb_io import LmdbImages, read_names, write_lmdb  # noqa: E402
from restormixer_arch.data.paired_dataset import PairedRestorationDataset  # noqa: E402
from restormixer_arch.errors import UserError  # noqa: E402


class TestLmdb:
    def test_format_matches_basicsr(self, tmp_path):
        write_lmdb(tmp_path / "x.lmdb", [("b", noise(4, 6)), ("a", noise(3, 5)[..., 0])], compression=3)
        assert (tmp_path / "x.lmdb" / "meta_info.txt").read_text() == "a.png (3,5,1) 3\nb.png (4,6,3) 3\n"
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["data.mdb", "meta_info.txt", "x.lmdb"]
        assert (tmp_path / "x.lmdb" / "data.mdb").stat().st_size <= 6 * 16384  # two meta pages, a leaf, the images
        client = FileClient("lmdb", db_paths=str(tmp_path / "x.lmdb"), client_keys="default")
        content = np.frombuffer(client.get("b"), np.uint8)
        assert np.array_equal(cv2.imdecode(content, cv2.IMREAD_UNCHANGED), noise(4, 6))

    def test_writing_is_deterministic_and_does_not_overwrite(self, tmp_path):
        for name in ("x.lmdb", "y.lmdb"):
            write_lmdb(tmp_path / name, [(f"{i}", noise(20, 20, i)) for i in range(5)])
        assert (tmp_path / "x.lmdb/data.mdb").read_bytes() == (tmp_path / "y.lmdb/data.mdb").read_bytes()
        with pytest.raises(UserError, match="x.lmdb: already exists; remove it first"):
            write_lmdb(tmp_path / "x.lmdb", [])

    def test_keys_with_dots_and_spaces(self, tmp_path):
        opt = make_lmdbs(tmp_path, names=("img.v2", "no 3 (x)"))
        dataset = PairedRestorationDataset(opt)
        assert [dataset[i]["gt_path"] for i in range(2)] == ["img.v2", "no 3 (x)"]

    def test_two_readers_of_the_same_file(self, tmp_path):
        opt = make_lmdbs(tmp_path)
        first, second = (PairedRestorationDataset(opt) for _ in range(2))
        same_items(first[1], second[1])
        mirrored = PairedRestorationDataset({**opt, "dataroot_lq": opt["dataroot_gt"]})
        assert torch.equal(mirrored[0]["lq"], mirrored[0]["gt"])
        del first
        assert len(second[0]) == 4

    def test_lmdb_is_closed_with_its_last_reader(self, tmp_path):
        opt = make_lmdbs(tmp_path)
        dataset = PairedRestorationDataset(opt)
        dataset[0]
        with pytest.raises(lmdb.Error, match="already open in this process"):
            lmdb.open(opt["dataroot_gt"], readonly=True, lock=False)
        del dataset
        lmdb.open(opt["dataroot_gt"], readonly=True, lock=False).close()

    def test_lmdb_that_is_already_open_is_reported(self, tmp_path):
        opt = make_lmdbs(tmp_path)
        with lmdb.open(opt["dataroot_gt"], readonly=True, lock=False):
            assert "gt.lmdb: cannot be opened as an LMDB" in refusal(opt) and "already open" in refusal(opt)

    @pytest.mark.parametrize("make", [make_folders, make_lmdbs])
    def test_dataset_can_be_pickled_and_copied_after_use(self, tmp_path, make):
        dataset = PairedRestorationDataset(make(tmp_path))
        item = dataset[1]
        for other in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
            same_items(other[1], item)

    def test_missing_files_and_wrong_backend_are_reported(self, tmp_path):
        opt = make_lmdbs(tmp_path)
        root = tmp_path / "lq.lmdb"
        assert "gt.lmdb'?" in refusal({**opt, "dataroot_gt": str(tmp_path / "gtt.lmdb")})
        for file in ("meta_info.txt", "data.mdb"):
            (root / file).rename(tmp_path / file)
            assert refusal(opt) == f"dataroot_lq: '{root}' is not a BasicSR LMDB: {file} is missing"
            (tmp_path / file).rename(root / file)
        assert refusal({**opt, "dataroot_lq": str(tmp_path)}) == (
            f"dataroot_lq: '{tmp_path}' must end in '.lmdb' because io_backend.type is 'lmdb'"
        )
        assert refusal({**opt, "io_backend": {"type": "disk"}}) == (
            f"dataroot_gt: '{tmp_path}/gt.lmdb' is an LMDB, which needs io_backend.type 'lmdb', got 'disk'"
        )

    def test_damaged_data_is_reported(self, tmp_path):
        opt = make_lmdbs(tmp_path, size=(700, 700))
        data = tmp_path / "lq.lmdb" / "data.mdb"
        content = data.read_bytes()
        data.write_bytes(b"x" * 10_000)
        assert "lq.lmdb: cannot be opened as an LMDB" in refusal(opt)
        data.write_bytes(content[:-2_000_000])
        size = len(content)
        assert refusal(opt).endswith(f"lq.lmdb: data.mdb is truncated: it has {size - 2_000_000} of {size} bytes")

    def test_damaged_meta_info_is_reported(self, tmp_path):
        opt = make_lmdbs(tmp_path)
        meta = tmp_path / "lq.lmdb" / "meta_info.txt"
        meta.write_text("a.png (12,10,3) 9\nb.png (12,10,3) 9\na.png (12,10,3) 9\n")
        assert refusal(opt) == f"{meta}: lists 'a' 2 times"
        meta.write_text("")
        assert refusal(opt) == f"{meta}: lists no image"
        meta.write_bytes(b"\xff\xfe\x00")
        assert refusal(opt).startswith(f"{meta}: cannot be read as text")

    def test_names_may_start_with_a_space(self, tmp_path):
        names = [" a", "b\u00a0c", "\u3000d", "e f"]
        write_lmdb(tmp_path / "x.lmdb", [(name, noise(4, 4)) for name in names])
        images = LmdbImages(tmp_path / "x.lmdb", "x")
        assert images.names == sorted(names) and all(images.read(name).shape == (4, 4, 3) for name in names)
        (tmp_path / "list.txt").write_bytes(b" a.png\r\n b.png (4,4,3) 1 \r\n \r\nc.png\t\n")
        assert read_names(tmp_path / "list.txt") == [" a.png", " b.png", "c.png"]

    def test_invalid_keys_are_rejected(self, tmp_path):
        image = noise(4, 4)
        with pytest.raises(UserError, match=r"x\.lmdb: 2 images would be stored as 'a'; rename them"):
            write_lmdb(tmp_path / "x.lmdb", [("a", image), ("b", image), ("a", image)])
        with pytest.raises(UserError, match=r"x\.lmdb: the name 'caf\\udce9' is not UTF-8; rename the image"):
            write_lmdb(tmp_path / "x.lmdb", [("caf\udce9", image)])
        for name in ("a\nb", "x\u2028y", "\x1b"):
            message = f"x.lmdb: the name {name!r} has a control character or a line break in it; rename the image"
            with pytest.raises(UserError, match=f"{re.escape(message)}$"):
                write_lmdb(tmp_path / "x.lmdb", [(name, image)])
        assert not list(tmp_path.iterdir())

    def test_file_instead_of_a_folder_is_rejected(self, tmp_path):
        (tmp_path / "x.lmdb").write_bytes(b"")
        with pytest.raises(UserError, match="dataroot_gt: '.*x.lmdb' is a file, a folder was expected"):
            LmdbImages(tmp_path / "x.lmdb", "dataroot_gt")


def test_lmdbs_on_a_drive_without_inode_numbers_are_distinguished(tmp_path, monkeypatch):
    """Some Windows network drives report inode number 0 for every file; gt and lq must still be different LMDBs."""
    make_lmdbs(tmp_path)
    original = Path.stat

    def numberless(self, **options):
        status = original(self, **options)
        return os.stat_result((*status[:1], 0, 0, *status[3:10])) if self.name == "data.mdb" else status

    monkeypatch.setattr(Path, "stat", numberless)
    gt, lq = (LmdbImages(tmp_path / f"{kind}.lmdb", kind) for kind in ("gt", "lq"))
    assert gt.content("a") != lq.content("a")
