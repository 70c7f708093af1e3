"""16-bit images are read like their 8-bit versions, for every internal layout of the file."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_network import save_identity

from restormixer_arch.data.images.exif import UPRIGHT
from restormixer_arch.data.images.opencv import decode
from restormixer_arch.data.images.picture import picture_size, read_picture, write_picture
from restormixer_arch.errors import UserError
from restormixer_arch.inference.restore import restore


def png(planes, transparent=None, orientation=None):
    """Encode uint8 or uint16 (H, W, 1 to 4) as PNG."""
    height, width, channels = planes.shape
    depth, kind = 8 * planes.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(planes.dtype.newbyteorder(">")).tobytes() for row in planes)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    if transparent is not None:
        chunks.append((b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    if orientation:
        chunks.append((b"eXIf", b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)))
    chunks += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    coded = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def tiff(path, planes, **options):
    channels = planes.shape[2]
    planes = planes[..., 0] if channels == 1 else planes
    if options.get("planarconfig") == "separate":
        planes = planes.transpose(2, 0, 1)
    elif channels > 1:
        options["planarconfig"] = "contig"
    options.setdefault("photometric", "rgb" if channels >= 3 else "minisblack")
    tifffile.imwrite(path, np.ascontiguousarray(planes), metadata=None, **options)


def write_png(path, planes):
    path.write_bytes(png(planes))


def write_keyed_png(path, planes):
    """Write a gray PNG in which the value of the first pixel is transparent."""
    path.write_bytes(png(planes[..., :1], transparent=planes[0, 0, :1].tolist()))


def write_keyed_rgb(path, planes):
    path.write_bytes(png(planes, transparent=planes[0, 0].tolist()))


def write_pnm(path, planes):
    white = np.iinfo(planes.dtype).max
    kind = "P5" if planes.shape[2] == 1 else "P6"
    content = planes.astype(planes.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(f"{kind}\n{planes.shape[1]} {planes.shape[0]}\n{white}\n".encode() + content)


def write_lzw(path, planes):
    assert cv2.imwrite(str(path), planes if planes.shape[2] == 1 else planes[..., [2, 1, 0, 3][: planes.shape[2]]])


def write_lzw_planes(path, planes):
    """Write separate LZW planes, each compressed by OpenCV."""
    parts = []
    for channel in range(3):
        write_lzw(path, planes[..., channel : channel + 1])
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            assert len(page.dataoffsets) == 1
            file.filehandle.seek(page.dataoffsets[0])
            parts.append(file.filehandle.read(page.databytecounts[0]))
            predictor = int(page.predictor)
    tags = {256: (planes.shape[1],), 257: (planes.shape[0],), 258: (8 * planes.itemsize,) * 3, 259: (5,), 262: (2,)}
    tags |= {277: (3,), 278: (planes.shape[0],), 284: (2,), 317: (predictor,)}
    size = 8 + 2 + 12 * (len(tags) + 2) + 4
    start = size + 3 * 2 + 2 * 3 * 4  # after the values that do not fit into the directory
    places = [start + sum(map(len, parts[:number])) for number in range(3)]
    tags |= {273: tuple(places), 279: tuple(map(len, parts))}
    entries, extra, at = b"", b"", size
    for code, values in sorted(tags.items()):
        kind, letter = (4, "I") if code in (273, 279) else (3, "H")
        data = struct.pack(f"<{len(values)}{letter}", *values)
        if len(data) > 4:
            entries += struct.pack("<HHII", code, kind, len(values), at)
            extra += data
            at += len(data)
        else:
            entries += struct.pack("<HHI4s", code, kind, len(values), data)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + extra + b"".join(parts))


def tiff_kind(**options):
    return lambda path, planes: tiff(path, planes, **options)


def turned(number):
    return lambda path, planes: tiff(path, planes, extratags=[(274, 3, 1, number, True)])


KINDS = {  # name -> (channels, suffix, writer)
    "gray": (1, "tif", tiff_kind()),
    "gray, white is zero": (1, "tif", tiff_kind(photometric="miniswhite")),
    "gray with alpha": (2, "tif", tiff_kind(extrasamples=["unassalpha"])),
    "gray with premultiplied alpha": (2, "tif", tiff_kind(extrasamples=["assocalpha"])),
    "RGB": (3, "tif", tiff_kind()),
    "RGB, planes apart": (3, "tif", tiff_kind(planarconfig="separate")),
    "RGBA": (4, "tif", tiff_kind(extrasamples=["unassalpha"])),
    "RGBA, planes apart": (4, "tif", tiff_kind(planarconfig="separate", extrasamples=["unassalpha"])),
    "RGBA, premultiplied": (4, "tif", tiff_kind(extrasamples=["assocalpha"])),
    "RGB and an unknown channel": (4, "tif", tiff_kind(extrasamples=["unspecified"])),
    "RGB, big-endian": (3, "tif", tiff_kind(byteorder=">")),
    "gray, big-endian": (1, "tif", tiff_kind(byteorder=">")),
    "RGB, deflate": (3, "tif", tiff_kind(compression="zlib", predictor=True)),
    "RGB, planes apart, deflate": (3, "tif", tiff_kind(planarconfig="separate", compression="zlib", predictor=True)),
    "RGB, strips": (3, "tif", tiff_kind(rowsperstrip=3)),
    "RGB, tiles": (3, "tif", tiff_kind(tile=(16, 16))),
    "RGB, BigTIFF": (3, "tif", tiff_kind(bigtiff=True)),
    "gray, LZW": (1, "tif", write_lzw),
    "RGB, LZW": (3, "tif", write_lzw),
    "RGBA, LZW": (4, "tif", write_lzw),
    "RGB, planes apart, LZW": (3, "tif", write_lzw_planes),
    "RGB, turned": (3, "tif", turned(6)),
    "PNG, gray": (1, "png", write_png),
    "PNG, gray with alpha": (2, "png", write_png),
    "PNG, RGB": (3, "png", write_png),
    "PNG, RGBA": (4, "png", write_png),
    "PNG, gray, one transparent": (1, "png", write_keyed_png),
    "PNG, RGB, one transparent": (3, "png", write_keyed_rgb),
    "PNG, turned": (3, "png", lambda path, planes: path.write_bytes(png(planes, orientation=5))),
    "PGM": (1, "pgm", write_pnm),
    "PPM": (3, "ppm", write_pnm),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 999))
def test_16_bit_image_equals_its_8_bit_version(tmp_path, kind, height, width, seed):
    """An image written with 8 bits and with 16 bits (each value times 257) is read as the same image."""
    channels, suffix, write = KINDS[kind]
    planes = np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)
    if "premultiplied" in kind:
        planes[..., :-1] = np.minimum(planes[..., :-1], planes[..., -1:])
    shallow, deep = tmp_path / f"shallow.{suffix}", tmp_path / f"deep.{suffix}"
    write(shallow, planes)
    write(deep, planes.astype(np.uint16) * 257)
    wanted, found = read_picture(shallow), read_picture(deep)
    assert found.planes.dtype == np.uint16 and wanted.planes.dtype == np.uint8
    assert found.planes.shape == wanted.planes.shape
    difference = np.abs(found.planes / 257 - wanted.planes)
    # Pillow rounds premultiplied colors down, by up to one level.
    assert difference.max() <= (1.001 if "premultiplied" in kind else 0), kind
    assert found.left_out == wanted.left_out
    write_picture(found, deep)
    again = read_picture(deep)
    np.testing.assert_array_equal(again.planes, found.planes)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 65535)])
def test_values_of_miniswhite_premultiplied_and_color_keyed_files(tmp_path, dtype, white):
    planes = np.array([[[0], [1]], [[white // 3], [white]]], dtype)
    tiff(tmp_path / "a.tif", planes, photometric="miniswhite")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, white - planes)
    half = np.array([[[white // 4, 0, white // 2, white // 2], [9, 9, 9, 0]]], dtype)
    tiff(tmp_path / "a.tif", half, extrasamples=["assocalpha"])
    picture = read_picture(tmp_path / "a.tif")
    straight = [(white // 4) * white / (white // 2), 0, white]
    np.testing.assert_allclose(picture.pixels[0, 0], straight, atol=1)
    assert picture.alpha.tolist() == [[white // 2, 0]]
    key = np.array([[[5, 6, 7], [5, 6, 8]]], dtype)
    (tmp_path / "a.png").write_bytes(png(key, transparent=(5, 6, 7)))
    assert read_picture(tmp_path / "a.png").alpha.tolist() == [[0, white]]


def test_white_of_pnm_is_scaled_and_12_bit_tiff_is_rejected(tmp_path):
    """The maximum value of a PGM or PPM, such as 1023, becomes 65535."""
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 1023 " + np.array([0, 511, 1023], ">u2").tobytes())
    assert read_picture(tmp_path / "a.pgm").pixels[..., 0].tolist() == [[0, 32735, 65535]]
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 4095 " + np.array([0, 2048, 4095], ">u2").tobytes())
    assert read_picture(tmp_path / "a.ppm").pixels.tolist() == [[[0, 32776, 65535]]]
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 8), np.uint16), photometric="minisblack", metadata=None)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place = file.pages[0].tags[258].valueoffset
    content[place : place + 2] = struct.pack("<H", 12)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match="a.tif: has 12 bits per sample, expected one of 1, 2, 4, 8, 16"):
        read_picture(tmp_path / "a.tif")


def test_16_bit_cmyk_becomes_8_bit_srgb_and_the_loss_is_recorded(tmp_path):
    cmyk = np.array([[[0, 0, 0, 0], [65535, 0, 0, 0], [0, 0, 0, 65535]]], np.uint16)
    tiff(tmp_path / "a.tif", cmyk, photometric="separated")
    picture = read_picture(tmp_path / "a.tif")
    assert picture.pixels.tolist() == [[[255, 255, 255], [0, 255, 255], [0, 0, 0]]]
    assert picture.left_out == ("8 of the 16 bits of CMYK",)


def test_missing_or_failed_decompression_is_reported_in_one_line(tmp_path):
    """tifffile reports each of them differently."""
    samples = np.random.default_rng(0).integers(0, 65536, (64, 64), np.uint16)
    Image.fromarray(samples).save(tmp_path / "a.tif", compression="lzma")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[content.index(b"\xfd7zXZ") + 14] ^= 255  # in a header with a checksum
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif: cannot be read as an image \(Corrupt input data\)$"):
        read_picture(tmp_path / "a.tif")

    Image.fromarray(samples).save(tmp_path / "b.tif", compression="zstd")
    try:
        np.testing.assert_array_equal(read_picture(tmp_path / "b.tif").pixels[..., 0], samples)
    except UserError as error:  # neither tifffile nor OpenCV was built with Zstandard
        assert str(error).endswith("b.tif: ZSTD compression of such a TIFF cannot be read; store it uncompressed")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_16_bit_png_is_applied(tmp_path, orientation):
    planes = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png(planes, orientation=orientation))
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.pixels, UPRIGHT[orientation](planes))
    write_picture(picture, tmp_path / "b.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "b.png").pixels, picture.pixels)


# --- restormixer_arch.restore ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def identity(tmp_path_factory):
    return save_identity(tmp_path_factory.mktemp("weights") / "identity.safetensors")


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<f4", ">f4", "f8", "f2"])
@pytest.mark.parametrize("shape", [(9, 12), (9, 12, 1), (9, 12, 2), (9, 12, 3), (9, 12, 4)])
def test_restore_keeps_dtype_byte_order_and_shape_of_arrays(identity, dtype, shape):
    values = np.random.default_rng(0).integers(0, 256, shape)
    image = (values / 255).astype(dtype) if "f" in dtype else (values * (257 if "2" in dtype else 1)).astype(dtype)
    result = restore(image, identity)
    assert result.dtype == image.dtype and result.shape == shape
    np.testing.assert_allclose(result.astype(float), image.astype(float), atol=1e-3 if "f" in dtype else 0)


@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 9, 12), (2, 3, 9, 12)])
def test_identity_network_returns_uint16_tensors_unchanged(identity, shape):
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16))
    result = restore(values, identity)
    assert result.dtype == torch.uint16 and torch.equal(result.to(torch.int32), values.to(torch.int32))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_16_bit_pillow_images_keep_values_and_transparency(identity, mode, tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (9, 12)).astype("<u2")
    stored = values.astype(">u2") if mode == "I;16B" else values
    image = Image.frombytes(mode, (12, 9), stored.tobytes())
    image.info["transparency"] = int(values[4, 5])
    result = restore(image, identity)
    np.testing.assert_array_equal(np.asarray(result), values)
    assert result.mode == "I;16" and result.info["transparency"] == int(values[4, 5])
    result.save(tmp_path / "a.png")
    alpha = read_picture(tmp_path / "a.png").alpha
    np.testing.assert_array_equal(alpha == 0, values == values[4, 5])


def test_opencv_out_of_memory_raises_memory_error(monkeypatch):
    """A large 16-bit image causes this error if the memory of the process is limited."""

    def imdecode(content, flags):
        error = cv2.error("Failed to allocate 1000 bytes")
        error.code = cv2.Error.StsNoMem
        raise error

    monkeypatch.setattr(cv2, "imdecode", imdecode)
    with pytest.raises(MemoryError):
        decode(b"II*\0")


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16)}])
@pytest.mark.parametrize(
    ("channels", "extra", "kept"),
    [(2, ["unassalpha"], 1), (4, ["unassalpha"], 3), (5, ["unassalpha", "unspecified"], 3), (4, ["unspecified"], 3)],
)
def test_8_bit_tiff_with_separate_planes_and_extra_channels_is_exact(tmp_path, channels, extra, kept, options):
    """Pillow mixes up the planes of such files."""
    planes = np.random.default_rng(channels).integers(0, 256, (channels, 20, 30), np.uint8)
    photometric = "rgb" if kept == 3 else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.tif", planes, photometric=photometric, extrasamples=extra, planarconfig="separate", **options
    )
    picture = read_picture(tmp_path / "a.tif")
    gray = np.repeat(planes[:1], 3, axis=0) if picture.pixels.shape[2] > kept else planes[:kept]
    np.testing.assert_array_equal(picture.pixels, gray.transpose(1, 2, 0))
    if extra[0] == "unassalpha":
        np.testing.assert_array_equal(picture.alpha, planes[kept])
    else:
        assert picture.alpha is None
    assert ("channels beyond color and alpha" in picture.left_out) == ("unspecified" in extra)
    assert picture_size(tmp_path / "a.tif") == (30, 20)


@pytest.mark.parametrize("compression", [None, "zlib", "lzma"])
def test_8_bit_premultiplied_colors_are_rounded(tmp_path, compression):
    """Multiplied with alpha again, they are those of the file."""
    planes = np.random.default_rng(0).integers(0, 256, (40, 30, 4), np.uint8)
    alpha = planes[..., 3:]
    planes[..., :3] = np.rint(planes[..., :3] * (alpha / 255))
    options = {"photometric": "rgb", "extrasamples": ["assocalpha"], "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", planes, metadata=None, **options)
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.alpha, planes[..., 3])
    np.testing.assert_array_equal(np.rint(picture.pixels * (alpha / 255)), planes[..., :3])
