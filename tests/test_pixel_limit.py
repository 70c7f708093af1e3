"""A small file that claims to be huge is rejected by every reader before it is decoded."""

import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from restore_cases import RGB

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.data.images import MAX_PIXELS, opencv, pixel_limit, without_pillow_limit
from restormixer_arch.data.images.opencv import claimed_size, decode_color, write_png
from restormixer_arch.data.images.picture import read_picture
from restormixer_arch.data.lmdb_io import LmdbImages, write_lmdb
from restormixer_arch.data.paired_dataset import PairedRestorationDataset
from restormixer_arch.data.preparation.sub_images import _read
from restormixer_arch.errors import UserError

MESSAGE = r"cannot be decoded as an image \(Image size \(600 pixels\) exceeds limit of 599 pixels; "


@pytest.fixture
def place(folder, monkeypatch):
    for kind in ("gt", "lq"):
        (folder / kind).mkdir()
        cv2.imwrite(f"{kind}/a.png", RGB)
    monkeypatch.setenv("RESTORMIXER_MAX_PIXELS", "599")
    return folder


def paired():
    options = {"dataroot_gt": "gt", "dataroot_lq": "lq", "io_backend": {"type": "disk"}, "phase": "val", "scale": 1}
    return PairedRestorationDataset({**options, "name": "x"})[0]


def basicsr_own():
    compat.apply()
    from basicsr.data.paired_image_dataset import PairedImageDataset

    options = {"dataroot_gt": "gt", "dataroot_lq": "lq", "io_backend": {"type": "disk"}, "phase": "val", "scale": 1}
    return PairedImageDataset({**options, "name": "x"})[0]


def prepared(place):
    return _read(place / "gt/a.png")


def stored(place):
    write_lmdb(place / "a.lmdb", [("a", RGB)])
    return LmdbImages(place / "a.lmdb", "x").read("a")


@pytest.mark.parametrize("reader", [paired, basicsr_own, prepared, stored])
def test_every_reader_applies_the_limit(place, reader, monkeypatch):
    arguments = [place] if reader in (prepared, stored) else []
    with pytest.raises(UserError, match=MESSAGE):
        reader(*arguments)
    monkeypatch.setenv("RESTORMIXER_MAX_PIXELS", "600")
    if reader is stored:
        (place / "a.lmdb").rename(place / "old.lmdb")
    assert reader(*arguments) is not None


def test_default_limit_and_environment_variable(monkeypatch):
    assert pixel_limit() == MAX_PIXELS == 178_956_970
    for text, number in (("", MAX_PIXELS), ("600", 600), ("500M", 500_000_000), ("0.5g", 500_000_000)):
        monkeypatch.setenv("RESTORMIXER_MAX_PIXELS", text)
        assert pixel_limit() == number


@pytest.mark.parametrize("text", ["0", "many", "500 M", "-1", "\u00b2"])
def test_invalid_limit_is_rejected(place, monkeypatch, capsys, text):
    monkeypatch.setenv("RESTORMIXER_MAX_PIXELS", text)
    message = f"RESTORMIXER_MAX_PIXELS: expected a number of pixels such as 200M, got {text!r}"
    for read in (
        lambda: pixel_limit(),
        lambda: read_picture("gt/a.png"),
        lambda: decode_color(b"P6 1 1 255\n123", "x"),
    ):
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            read()
    assert cli.main(["restore", "gt/a.png", "-o", "out", "--max-pixels", text]) == 2
    assert f"--max-pixels: {message.partition(': ')[2]}" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_limit_may_exceed_that_of_pillow(monkeypatch, suffix):
    """Pillow's own limit, lowered here, is restored afterwards, even if two overrides overlap as in two threads."""
    content = cv2.imencode(suffix, RGB)[1].tobytes()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setenv("RESTORMIXER_MAX_PIXELS", "600")
    assert claimed_size(content) == (30, 20) and decode_color(content, "x").shape == (20, 30, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setenv("RESTORMIXER_MAX_PIXELS", "599")
    with pytest.raises(UserError, match=r"^x: " + MESSAGE):
        decode_color(content, "x")
    first, second = without_pillow_limit(), without_pillow_limit()
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS is None
    second.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_huge_size_of_a_jpeg_is_read_from_its_header(monkeypatch):
    content = bytearray(cv2.imencode(".jpg", RGB)[1].tobytes())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", 15000, 15000)
    assert claimed_size(bytes(content)) == (15000, 15000)
    with pytest.raises(UserError, match=r"Image size \(225000000 pixels\) exceeds limit of 178956970 pixels; "):
        decode_color(bytes(content), "x")


@pytest.mark.parametrize("damage", ["cut short", "checksum", "header"])
def test_libpng_prints_nothing_for_a_damaged_png(capfd, damage):
    content = cv2.imencode(".png", RGB)[1].tobytes()
    middle = len(content) // 2
    content = {
        "cut short": content[:middle],
        "checksum": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
        "header": content[:30],
    }[damage]
    with pytest.raises(UserError, match=r"^x: cannot be decoded as an image \(\d+ bytes\)$"):
        decode_color(content, "x")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif", ".ppm", ".pgm"])
def test_sizes_are_read_from_the_header(suffix):
    content = cv2.imencode(suffix, RGB[..., 0] if suffix == ".pgm" else RGB)[1].tobytes()
    assert claimed_size(content) == (30, 20) and decode_color(content, "x").shape == (20, 30, 3)


def test_decompression_bomb_is_not_decoded(monkeypatch):
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(20001 * 20000), 9)
    parts = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    coded = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    content = b"\x89PNG\r\n\x1a\n" + b"".join(coded)
    assert len(content) < 400_000
    monkeypatch.setattr(cv2, "imdecode", lambda *arguments: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match="400000000 pixels"):
        decode_color(content, "bomb.png")
    assert claimed_size(b"no image") is None
    with pytest.raises(UserError, match=r"text.png: cannot be decoded as an image \(8 bytes\)"):
        decode_color(b"no image", "text.png")


def test_failed_write_leaves_no_partial_file(folder, monkeypatch):
    write_png(folder / "deep/a.png", RGB)
    with Image.open("deep/a.png") as image:
        np.testing.assert_array_equal(np.asarray(image)[..., ::-1], RGB)

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(folder), "write_bytes", full)
    with pytest.raises(UserError, match=r"b.png: cannot be written \(No space left on device\)"):
        write_png(folder / "b.png", RGB)
    assert not (folder / "b.png").exists()
    with pytest.raises(UserError, match=r"c.png: cannot be written \("):
        write_png(folder / "c.png", np.zeros((0, 5, 3), np.uint8))


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "sr", "--root", "raw", "--out", "out", "--workers", "1"],
        ["degrade", "set", "--gt", "raw/Set5/HR", "--out", "out", "--labels", "noise"],
        ["degrade", "coverage", "--lq", "raw/Set5/HR", "--gt", "raw/Set5/HR", "--labels", "rain"],
        ["degrade", "sheet", "--photo", "raw/Set5/HR/a.png", "--out", "x.png"],
        ["restore", "raw/Set5/HR/a.png", "-o", "out"],
    ],
)
def test_every_command_applies_the_limit(folder, monkeypatch, capsys, arguments):
    Path("raw/Set5/HR").mkdir(parents=True)
    cv2.imwrite("raw/Set5/HR/a.png", np.zeros((48, 48, 3), np.uint8))
    monkeypatch.setenv("RESTORMIXER_MAX_PIXELS", "2000")
    assert cli.main(arguments) == 2
    assert "Image size (2304 pixels) exceeds limit of 2000 pixels" in capsys.readouterr().err


def test_overlapping_overrides_restore_the_log_level_of_opencv():
    before = cv2.utils.logging.getLogLevel()
    first, second = opencv._without_log(), opencv._without_log()
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert cv2.utils.logging.getLogLevel() == cv2.utils.logging.LOG_LEVEL_SILENT
    second.__exit__(None, None, None)
    assert cv2.utils.logging.getLogLevel() == before != cv2.utils.logging.LOG_LEVEL_SILENT
