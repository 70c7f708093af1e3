"""Malformed metadata: the image and valid metadata are kept, and metadata that describes pixels is adapted to them."""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from restore_cases import RGB, SMOOTH

from restormixer_arch.data.images.exif import exif_of_size, upright_exif
from restormixer_arch.data.images.metadata import TRAILING_DATA
from restormixer_arch.data.images.picture import (
    Picture,
    encode_picture,
    read_picture,
    with_writable_metadata,
    write_picture,
)

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(*entries, order=">", behind=b""):
    """Return EXIF with a single directory; each value has four bytes."""
    packed = b"".join(struct.pack(f"{order}HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return b"Exif\0\0" + head + packed + struct.pack(f"{order}I", 0) + behind


# --- EXIF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
def test_maker_note_of_a_rotated_image_is_not_moved(tmp_path, order):
    """Its tables contain offsets within the EXIF, so it must not be moved."""
    turned = (274, 3, 1, struct.pack(f"{order}HH", 6, 0))
    note = (37500, 7, 5, struct.pack(f"{order}I", 8 + 2 + 2 * 12 + 4))
    before = exif(turned, note, order=order, behind=b"maker")
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=before, quality=100)
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.pixels.shape == (RGB.shape[1], RGB.shape[0], 3)
    upright = (274, 3, 1, struct.pack(f"{order}HH", 1, 0))
    assert picture.metadata["exif"] == exif(upright, note, order=order, behind=b"maker") == upright_exif(before)


def test_exif_orientation_of_any_type_becomes_1():
    wanted = exif((274, 3, 1, b"\0\1\0\0"))
    for odd in ((274, 4, 1, b"\0\0\0\6"), (274, 1, 1, b"\6\0\0\0"), (274, 2, 2, b"6\0\0\0")):
        assert upright_exif(exif(odd)) == wanted
    others = exif((296, 3, 1, b"\0\2\0\0"))
    assert upright_exif(others) == others
    turned = exif((274, 3, 1, b"\0\6\0\0"))
    assert upright_exif(b"Exif\0\0" + turned) == b"Exif\0\0" + wanted  # duplicate prefix
    assert upright_exif(turned[:14] + b"\0\5" + turned[16:]) == wanted[:14] + b"\0\5" + wanted[16:]  # truncated
    for length in range(len(wanted)):
        assert len(upright_exif(wanted[:length])) == length


def test_rotated_image_with_a_tag_of_the_wrong_type_is_read(tmp_path):
    odd = exif((256, 2, 4, b"640\0"), (274, 3, 1, b"\0\6\0\0"))  # a width stored as text
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=odd, quality=100)
    assert read_picture(tmp_path / "a.jpg").pixels.shape == (RGB.shape[1], RGB.shape[0], 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("damage", ["twice", "cut"])
def test_image_with_damaged_exif_is_rotated_only_once(tmp_path, suffix, damage):
    turned = exif((274, 3, 1, b"\0\6\0\0"), (296, 3, 1, b"\0\2\0\0"))
    turned = b"Exif\0\0" + turned if damage == "twice" else turned[:14] + b"\0\5" + turned[16:28]
    path, target = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    lossless = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
    Image.fromarray(SMOOTH).save(path, exif=turned, **lossless)
    picture = read_picture(path)
    write_picture(picture, target)
    with Image.open(path) as before, Image.open(target) as after:
        assert before.getexif()[274] == 6 and after.getexif().get(274, 1) == 1
        assert after.size == before.size[::-1] == picture.pixels.shape[1::-1]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_damaged_exif_is_kept_unchanged(tmp_path, suffix):
    Image.fromarray(RGB).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0no TIFF at all")
    picture = read_picture(tmp_path / f"a.{suffix}")
    assert picture.pixels.shape == RGB.shape and picture.left_out == ()
    write_picture(picture, tmp_path / f"b.{suffix}")
    assert b"no TIFF at all" in (tmp_path / f"b.{suffix}").read_bytes()
    assert exif_of_size(b"Exif\0\0no TIFF at all", 1, 1) == b"Exif\0\0no TIFF at all"


@pytest.mark.parametrize("form", ['tiff:Orientation="{}"', "<tiff:Orientation>{}</tiff:Orientation>"])
def test_xmp_orientation_becomes_1(tmp_path, form):
    Image.fromarray(RGB).save(tmp_path / "a.webp", xmp=b"<x>" + form.format(6).encode() + b"</x>", lossless=True)
    picture = read_picture(tmp_path / "a.webp")
    np.testing.assert_array_equal(picture.pixels, np.rot90(RGB, -1))
    assert picture.metadata["xmp"] == b"<x>" + form.format(1).encode() + b"</x>"


# --- TIFF ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "value", "dtype", "wanted"),
    [
        (282, 300, "I", ((300, 1), (200, 1))),
        (282, 72.5, "f", ((145, 2), (200, 1))),
        (282, (0, 0), "2I", None),
        (254, (0, 0), "2I", ((300, 1), (200, 1))),
    ],
)
def test_invalid_tiff_tag_does_not_affect_other_metadata(tmp_path, code, value, dtype, wanted):
    path = tmp_path / "a.tif"
    options = {"photometric": "rgb", "metadata": None, "iccprofile": PROFILE, "subfiletype": 0}
    tifffile.imwrite(path, SMOOTH, resolution=(300, 200), resolutionunit="INCH", **options)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[code].overwrite(value, dtype=dtype)
    picture = with_writable_metadata(read_picture(path), path)
    np.testing.assert_array_equal(picture.pixels, SMOOTH)
    assert picture.metadata["icc_profile"] == PROFILE
    assert picture.metadata.get("resolution") == wanted
    assert picture.left_out == (() if wanted else ("the resolution, which is not a number",))
    write_picture(picture, tmp_path / "b.tif")


def test_sub_images_of_a_tiff_are_reported_as_skipped(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(SMOOTH, photometric="rgb", metadata=None, subifds=1)
        writer.write(np.ascontiguousarray(SMOOTH[::2, ::2]), photometric="rgb", metadata=None, subfiletype=1)
    picture = read_picture(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, SMOOTH)
    assert picture.left_out == ("sub-images, such as a pyramid",)


def test_color_profile_is_kept_if_other_metadata_cannot_be_written(tmp_path):
    metadata = {"icc_profile": PROFILE, "extratags": [(65000, 99, 1, 0, True)]}
    picture = with_writable_metadata(Picture(SMOOTH, None, "TIFF", metadata), "a.tif")
    assert picture.metadata == {"icc_profile": PROFILE}
    assert picture.left_out[0].startswith("all metadata but the color profile (")


def geo_tiff(path, *, points=False):
    """Write a GeoTIFF with 10 m per pixel, and with the pixel in column 4 and row 2 at (500, 1000)."""
    transformation = (10, 0, 0, 460, 0, -10, 0, 1020, 0, 0, 0, 0, 0, 0, 0, 1)
    tags = [
        (33550, 12, 3, (10.0, 10.0, 0.0), True),
        (33922, 12, 6, (4.0, 2.0, 0.0, 500.0, 1000.0, 0.0), True),
        (34264, 12, 16, tuple(map(float, transformation)), True),
        (34735, 3, 8, (1, 1, 0, 1, 1025, 0, 1, 2 if points else 1), True),
    ]
    tifffile.imwrite(path, SMOOTH, photometric="rgb", metadata=None, extratags=tags)


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_upsampled_geotiff_keeps_its_location(tmp_path, points, scale):
    """Two opposite corners keep their coordinates, according to both kinds of tags."""
    geo_tiff(tmp_path / "a.tif", points=points)
    picture = read_picture(tmp_path / "a.tif")
    picture.pixels = np.repeat(np.repeat(picture.pixels, scale, 0), scale, 1)
    write_picture(picture, tmp_path / "b.tif")

    def corners(path):
        with tifffile.TiffFile(path) as file:
            tags = {tag.code: np.array(tag.value) for tag in file.pages[0].tags if tag.code in (33550, 33922, 34264)}
            height, width = file.pages[0].shape[:2]
        first = 0.5 if points else 0.0
        for column, row in ((-first, -first), (width - first, height - first)):
            tie = tags[33922]
            yield tie[3:5] + (np.array([column, row]) - tie[:2]) * tags[33550][:2] * [1, -1]
            yield (tags[34264].reshape(4, 4) @ [column, row, 0, 1])[:2]

    np.testing.assert_allclose(list(corners(tmp_path / "b.tif")), list(corners(tmp_path / "a.tif")))


@pytest.mark.parametrize(
    "odd", [(34735, 3, 5, (1, 1, 0, 1, 1025), True), (34264, 12, 12, (1.0,) * 12, True), (33550, 3, 3, (1, 2, 3), True)]
)
def test_invalid_geotiff_tags_are_kept_unchanged(tmp_path, odd):
    tifffile.imwrite(tmp_path / "a.tif", SMOOTH, photometric="rgb", metadata=None, extratags=[odd], description="map")
    picture = with_writable_metadata(read_picture(tmp_path / "a.tif"), "a.tif")
    assert picture.left_out == ()
    picture.pixels = np.repeat(np.repeat(picture.pixels, 2, 0), 2, 1)
    write_picture(picture, tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.pages[0].tags[odd[0]].value == odd[3] and file.pages[0].description == "map"


@pytest.mark.parametrize("options", [{}, {"description": "scan"}, {"metadata": {"axes": "YXS", "unit": "mm"}}])
def test_shape_in_a_description_is_that_of_the_result(tmp_path, options):
    tifffile.imwrite(tmp_path / "a.tif", SMOOTH, photometric="rgb", **options)
    picture = read_picture(tmp_path / "a.tif")
    write_picture(picture, tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as before, tifffile.TiffFile(tmp_path / "b.tif") as after:
        first, second = ([tag.value for tag in file.pages[0].tags if tag.code == 270] for file in (before, after))
    assert first == second and len(first) == 1 + ("description" in options)
    picture.pixels = np.repeat(np.repeat(picture.pixels, 2, 0), 2, 1)
    write_picture(picture, tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        wanted = options.get("metadata", {}) | {"shape": [96, 128, 3]}
        assert file.shaped_metadata == (wanted,) and file.series[0].shape == (96, 128, 3)
    picture.pixels = picture.pixels[..., :1]
    write_picture(picture, tmp_path / "b.tif")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        assert file.shaped_metadata[0]["shape"] == [96, 128] and "axes" not in file.shaped_metadata[0]


def test_sizes_in_an_ome_description_are_those_of_the_result(tmp_path):
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 2.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", SMOOTH, photometric="rgb", metadata={"axes": "YXS", **size})
    picture = read_picture(tmp_path / "a.ome.tif")
    picture.pixels = np.repeat(np.repeat(picture.pixels, 2, 0), 2, 1)
    write_picture(picture, tmp_path / "b.ome.tif")
    with tifffile.TiffFile(tmp_path / "b.ome.tif") as file:
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert file.series[0].kind == "ome" and file.series[0].shape == (96, 128, 3)
    assert (pixels["SizeX"], pixels["SizeY"], pixels["SizeC"]) == (128, 96, 3)
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (0.25, 1.0)


def test_damaged_pointer_to_exif_is_reported(tmp_path):
    tags = [(33434, 5, 1, struct.pack("<2I", 1, 4))]
    content = bytearray(encode_picture(Picture(SMOOTH, None, "TIFF", {"directories": {34665: tags}})))
    entry = content.index(struct.pack("<HHI", 34665, 4, 1))
    content[entry + 8 : entry + 12] = struct.pack("<I", len(content) + 9)
    (tmp_path / "a.tif").write_bytes(content)
    picture = read_picture(tmp_path / "a.tif")
    assert picture.left_out == ("damaged EXIF tags",) and picture.metadata["directories"] == {}
    np.testing.assert_array_equal(picture.pixels, SMOOTH)


@pytest.mark.parametrize("offset", [2**40, 2**60, 2**64 - 1])
def test_pointer_to_exif_far_outside_a_bigtiff_is_reported(tmp_path, offset):
    deep = SMOOTH.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb", bigtiff=True, extratags=[(65000, 16, 1, 8, True)])
    content = bytearray((tmp_path / "a.tif").read_bytes())
    entry = content.index(struct.pack("<HHQ", 65000, 16, 1))
    struct.pack_into("<H", content, entry, 34665)
    struct.pack_into("<Q", content, entry + 12, offset)
    (tmp_path / "a.tif").write_bytes(content)
    picture = read_picture(tmp_path / "a.tif")
    assert "damaged EXIF tags" in picture.left_out
    np.testing.assert_array_equal(picture.pixels, deep)


@pytest.mark.parametrize("description", ['{"shape": [20,30', '{"shape": null}', "ImageJ=1.53\nimages=abc\n"])
def test_damaged_description_of_a_stack_is_ignored(tmp_path, description):
    tifffile.imwrite(tmp_path / "a.tif", SMOOTH, photometric="rgb", description=description, metadata=None)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, SMOOTH)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_quarter_turns_swap_the_two_resolutions(tmp_path, suffix, orientation):
    path, target = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    tags = Image.Exif()
    tags[274], tags[282], tags[283] = orientation, 300.0, 200.0
    Image.fromarray(SMOOTH).save(path, exif=tags, dpi=(300, 200))
    write_picture(read_picture(path), target)
    wanted = (200, 300) if orientation > 4 else (300, 200)
    with Image.open(target) as image:
        assert tuple(map(round, image.info["dpi"])) == wanted
        assert (image.getexif()[282], image.getexif()[283]) == wanted or suffix == "tif"


# --- HEIF and MPO ----------------------------------------------------------------------------------------------------


def test_color_space_of_heic_is_kept(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener(thumbnails=False)
    wide = {"color_primaries": 9, "transfer_characteristics": 16, "matrix_coefficients": 9}
    Image.fromarray(SMOOTH).save(tmp_path / "a.heic", quality=95, chroma=444, **wide)
    picture = read_picture(tmp_path / "a.heic")
    write_picture(picture, tmp_path / "b.heic")
    with Image.open(tmp_path / "b.heic") as image:
        assert image.info["nclx_profile"].items() >= wide.items()
        assert np.abs(np.asarray(image).astype(int) - picture.pixels).mean() < 2


@pytest.mark.parametrize("behind", [b"", b"ftypmp4 a video"])
def test_data_after_the_last_image_of_an_mpo_is_reported_as_skipped(tmp_path, behind):
    path = tmp_path / "a.jpg"
    Image.fromarray(SMOOTH).save(path, "MPO", save_all=True, append_images=[Image.fromarray(RGB)])
    path.write_bytes(path.read_bytes() + behind)
    picture = read_picture(path)
    assert (TRAILING_DATA in picture.left_out) == bool(behind) and len(picture.left_out) == 1 + bool(behind)


def test_last_of_several_jpeg_comments_is_kept(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.jpg", comment=b"second")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:2] + b"\xff\xfe\x00\x07first" + content[2:])
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.metadata["comment"] == b"second" and picture.left_out == ("comments but the last one",)
