"""Image files: what is kept when an image is read and written, and which files are rejected."""

import struct
import zlib
from io import BytesIO

import cv2
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from restormixer_arch.data.images.exif import UPRIGHT
from restormixer_arch.data.images.picture import Picture, as_png, picture_size, read_picture, write_picture
from restormixer_arch.errors import UserError

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9, 4), np.uint16)
SMOOTH = cv2.resize(RGB, (90, 60), interpolation=cv2.INTER_CUBIC)  # survives JPEG


def exif(orientation=1):
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    tags[ExifTags.Base.Artist] = "Ada"
    return tags


def round_trip(path, tmp_path):
    target = tmp_path / f"written_{path.name}"
    picture = read_picture(path)
    write_picture(picture, target)
    return picture, target


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm"])
def test_8_bit_colors_round_trip_exactly(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path)
    picture, target = round_trip(path, tmp_path)
    assert picture.pixels.dtype == np.uint8 and picture.alpha is None
    np.testing.assert_array_equal(picture.pixels, RGB)
    with Image.open(target) as again:
        assert again.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(again), RGB)


@pytest.mark.parametrize(("suffix", "loss"), [("jpg", 2.0), ("webp", 3.0)])
def test_lossy_formats_round_trip_with_a_small_error(tmp_path, suffix, loss):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(SMOOTH).save(path, quality=95, subsampling=0)
    picture, target = round_trip(path, tmp_path)
    with Image.open(target) as again:
        error = np.abs(np.asarray(again).astype(int) - picture.pixels).mean()
        assert again.format == {"jpg": "JPEG", "webp": "WEBP"}[suffix]
    assert 0 < error < loss


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_metadata_is_kept(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    lossless = {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0}
    Image.fromarray(SMOOTH).save(path, exif=exif(orientation), icc_profile=PROFILE, dpi=(300, 300), **lossless)
    picture, target = round_trip(path, tmp_path)
    wanted = UPRIGHT[orientation](SMOOTH)
    assert picture.pixels.shape == wanted.shape
    assert np.abs(picture.pixels.astype(int) - wanted).mean() < 1.5
    with Image.open(target) as again:
        assert again.getexif().get(ExifTags.Base.Orientation, 1) == 1
        assert again.getexif()[ExifTags.Base.Artist] == "Ada"
        assert again.info["icc_profile"] == PROFILE
        if suffix != "webp":
            assert again.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert again.size == wanted.shape[1::-1]


def test_upright_equals_pillow_exif_transpose():
    from PIL import ImageOps

    for orientation, upright in UPRIGHT.items():
        image = Image.fromarray(RGB)
        image.getexif()[ExifTags.Base.Orientation] = orientation
        np.testing.assert_array_equal(upright(RGB), np.asarray(ImageOps.exif_transpose(image)))


def test_first_image_of_an_mpo_file_is_read(tmp_path):
    Image.fromarray(SMOOTH).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.fromarray(RGB)])
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.format == "MPO" and opened.n_frames == 2
    picture, target = round_trip(tmp_path / "a.jpg", tmp_path)
    assert picture.pixels.shape == SMOOTH.shape
    with Image.open(target) as again:
        assert again.format == "JPEG"


def test_exif_of_upright_images_is_kept_byte_for_byte(tmp_path):
    content = exif().tobytes() + b"a maker's note behind it"
    Image.fromarray(RGB).save(tmp_path / "a.jpg", exif=content)
    assert read_picture(tmp_path / "a.jpg").metadata["exif"] == content


def test_png_texts_and_jpeg_comment_and_xmp_are_kept(tmp_path):
    texts = PngInfo()
    texts.add_text("Title", "Mühle")
    texts.add_itxt("Description", "grün", "de")
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=texts)
    _, target = round_trip(tmp_path / "a.png", tmp_path)
    with Image.open(target) as again:
        assert again.text == {"Title": "Mühle", "Description": "grün"}
    Image.fromarray(RGB).save(tmp_path / "a.jpg", comment=b"hello", xmp=b"<x:xmpmeta/>")
    _, target = round_trip(tmp_path / "a.jpg", tmp_path)
    with Image.open(target) as again:
        assert again.info["comment"] == b"hello" and again.info["xmp"] == b"<x:xmpmeta/>"


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "1"])
def test_gray_and_alpha_are_kept(tmp_path, mode):
    image = Image.fromarray(np.dstack([RGB, RGB[..., 0]])).convert(mode)
    image.save(tmp_path / "a.png")
    picture, target = round_trip(tmp_path / "a.png", tmp_path)
    assert picture.pixels.shape[2] == (3 if mode.startswith("RGB") else 1)
    assert (picture.alpha is not None) == mode.endswith("A")
    with Image.open(target) as again:
        assert again.mode == {"1": "L"}.get(mode, mode)
        np.testing.assert_array_equal(np.asarray(again), np.asarray(image.convert(again.mode)))


def test_palette_with_transparency_becomes_rgba(tmp_path):
    image = Image.fromarray(RGB).quantize(8)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == "P"
        wanted = np.asarray(opened.convert("RGBA"))
    assert set(np.unique(wanted[..., 3])) == {0, 128, 255}
    _, target = round_trip(tmp_path / "a.png", tmp_path)
    with Image.open(target) as again:
        assert again.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(again), wanted)


def test_cmyk_becomes_srgb(tmp_path):
    cmyk = Image.fromarray(SMOOTH).convert("CMYK")
    cmyk.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    picture, target = round_trip(tmp_path / "a.jpg", tmp_path)
    assert np.abs(picture.pixels.astype(int) - SMOOTH).mean() < 3
    cmyk.save(tmp_path / "b.jpg", quality=100, icc_profile=b"not a profile")
    assert "icc_profile" not in read_picture(tmp_path / "b.jpg").metadata
    with Image.open(target) as again:
        assert again.mode == "RGB"


# --- 16 bits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_values_round_trip_exactly(tmp_path, suffix, channels):
    planes = DEEP[..., :channels]
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), planes if channels == 1 else planes[..., [2, 1, 0, 3][:channels]])
    picture, target = round_trip(path, tmp_path)
    assert picture.pixels.dtype == np.uint16
    np.testing.assert_array_equal(picture.pixels, planes[..., :3])
    if channels == 4:
        np.testing.assert_array_equal(picture.alpha, planes[..., 3])
    again = cv2.imread(str(target), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(again, cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def test_16_bit_profiles_and_exif_are_kept(tmp_path):
    bgr = np.ascontiguousarray(DEEP[..., 2::-1])
    kinds, values = [cv2.IMAGE_METADATA_EXIF, cv2.IMAGE_METADATA_ICCP], [exif(6).tobytes()[6:], PROFILE]
    done, content = cv2.imencodeWithMetadata(".png", bgr, kinds, [np.frombuffer(v, np.uint8) for v in values])
    assert done
    (tmp_path / "a.png").write_bytes(content.tobytes())
    picture, target = round_trip(tmp_path / "a.png", tmp_path)
    np.testing.assert_array_equal(picture.pixels, np.rot90(DEEP[..., :3], -1))
    with Image.open(target) as again:
        assert again.info["icc_profile"] == PROFILE
        assert again.getexif()[ExifTags.Base.Artist] == "Ada"
        assert again.getexif().get(ExifTags.Base.Orientation, 1) == 1
    np.testing.assert_array_equal(read_picture(target).pixels, picture.pixels)
    tifffile.imwrite(tmp_path / "a.tif", DEEP[..., :3], photometric="rgb", iccprofile=PROFILE, resolution=(300, 300))
    picture, target = round_trip(tmp_path / "a.tif", tmp_path)
    with Image.open(target) as again:
        assert again.info["icc_profile"] == PROFILE and again.info["dpi"] == (300, 300)
    np.testing.assert_array_equal(tifffile.imread(target), DEEP[..., :3])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_tiff_is_applied(tmp_path, dtype, orientation, channels):
    planes = DEEP[..., :channels].astype(dtype)
    tag = (274, "H", 1, orientation, True)
    options = {"photometric": "minisblack"} if channels == 1 else {"photometric": "rgb", "planarconfig": "contig"}
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    tifffile.imwrite(tmp_path / "a.tif", np.squeeze(planes), extratags=[tag], metadata=None, **options, **extra)
    picture, target = round_trip(tmp_path / "a.tif", tmp_path)
    np.testing.assert_array_equal(picture.planes, UPRIGHT[orientation](planes))
    np.testing.assert_array_equal(read_picture(target).planes, picture.planes)


def test_rotated_tiff_has_the_expected_pixels(tmp_path):
    gray = np.array([[0, 1, 2], [3, 4, 5]], np.uint8)
    tag = (274, "H", 1, 6, True)
    tifffile.imwrite(tmp_path / "a.tif", gray, photometric="minisblack", extratags=[tag], metadata=None)
    assert read_picture(tmp_path / "a.tif").pixels[..., 0].tolist() == [[3, 0], [4, 1], [5, 2]]


def png(header, data, *more):
    """Build a PNG of its header fields, its rows (each after its filter type) and additional chunks."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", *header)), *more, (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    coded = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def test_16_bit_gray_with_alpha_is_kept(tmp_path):
    planes = DEEP[..., :2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in planes)
    (tmp_path / "a.png").write_bytes(png((9, 6, 16, 4, 0, 0, 0), rows))
    picture, target = round_trip(tmp_path / "a.png", tmp_path)
    np.testing.assert_array_equal(picture.planes, planes)
    assert target.read_bytes()[24:26] == b"\x10\x04"  # 16 bits, gray with alpha
    again = cv2.imread(str(target), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(again, planes[..., [0, 0, 0, 1]])


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_gray_of_png_becomes_alpha(tmp_path, depth):
    """Samples of less than 8 bits are scaled to 8 bits, and so are the transparent and background values."""
    samples, white = [0, 1] if depth == 1 else [0, 1, 2, 3], 2**depth - 1
    bits = "".join(f"{sample:0{depth}b}" for sample in samples)
    row = b"\0" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    more = ((b"tRNS", b"\0\1"), (b"bKGD", white.to_bytes(2, "big")))
    (tmp_path / "a.png").write_bytes(png((len(samples), 1, depth, 0, 0, 0, 0), row, *more))
    picture, target = round_trip(tmp_path / "a.png", tmp_path)
    step = 1 if depth >= 8 else 255 // white
    assert picture.pixels[0, :, 0].tolist() == [step * sample for sample in samples]
    full = np.iinfo(picture.pixels.dtype).max
    assert picture.alpha.tolist() == [[0 if sample == 1 else full for sample in samples]]
    assert (b"bKGD", int(full).to_bytes(2, "big")) in picture.metadata["chunks"]
    np.testing.assert_array_equal(read_picture(target).planes, picture.planes)


# --- rejected --------------------------------------------------------------------------------------------------------


BOMB = png((60000, 60000, 8, 2, 0, 0, 0), b"0")  # less than 100 bytes


def encoded(kind, **options):
    buffer = BytesIO()
    Image.fromarray(SMOOTH).save(buffer, kind, **options)
    return buffer.getvalue()


FRAMES = [Image.fromarray(SMOOTH // n) for n in (2, 3)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.png", b"", "is empty"),
        ("text.jpg", b"no picture at all", r"is not a readable image \(JPEG, "),
        ("cut.png", encoded("PNG")[:300], "cannot be read as an image"),
        ("cut.jpg", encoded("JPEG")[:900], r"cannot be read as an image \(.*truncated"),
        ("bomb.png", BOMB, r"cannot be read as an image \(Image size \(3600000000 pixels\) exceeds"),
        ("cut.pgm", b"P5 9 9 65535 " + bytes(20), r"cannot be (read|decoded) as "),
        ("still.gif", encoded("GIF"), "GIF images are not supported, expected one of JPEG, "),
        ("moving.png", encoded("PNG", save_all=True, append_images=FRAMES), "holds 3 images, expected one"),
        ("moving.webp", encoded("WEBP", save_all=True, append_images=FRAMES), "holds 3 images"),
        ("pages.tif", encoded("TIFF", save_all=True, append_images=FRAMES), "holds 3 images"),
    ],
)
def test_unsupported_and_damaged_files_are_rejected(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: {message}"):
        read_picture(path)


@pytest.mark.parametrize("shape", [(6, 9), (6, 9, 3)])
@pytest.mark.parametrize("dtype", ["float32", "uint32", "int16"])
def test_other_sample_types_are_rejected(tmp_path, shape, dtype):
    tifffile.imwrite(tmp_path / "a.tif", np.ones(shape, dtype), photometric="rgb" if len(shape) == 3 else "minisblack")
    with pytest.raises(UserError, match=f"a.tif: has samples of type {dtype}, expected 8- or 16-bit integers"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("width", [b"\3\0\1\0\0\0\0\0\0\0", b"\3\0\2\0\0\0\x08\0\x08\0"], ids=["none", "two"])
def test_tiff_with_no_or_two_widths_is_rejected(tmp_path, width):
    """Two widths would multiply the rows, so a small file could exhaust the memory."""
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, byteorder="<")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place = file.pages[0].tags[256].offset
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[place + 2 : place + 12] = width
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif: cannot be read as an image \(its width or height is not one number"):
        read_picture(tmp_path / "a.tif")


def test_tiff_with_image_depth_is_rejected(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", DEEP[..., 0], metadata=None, extratags=[(65000, 4, 1, 100_000, True)])
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        place = file.pages[0].tags[65000].offset
    content = bytearray((tmp_path / "a.tif").read_bytes())
    content[place : place + 2] = struct.pack("<H", 32997)  # ImageDepth, which tifffile does not write
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif: cannot be read as an image \(it has layers of depth"):
        read_picture(tmp_path / "a.tif")


def test_missing_and_unwritable_files_are_rejected(tmp_path):
    with pytest.raises(UserError, match=r"none\.png: cannot be read as an image \(No such file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(UserError, match=r"x\.png: cannot be written \(No such file"):
        write_picture(Picture(RGB), tmp_path / "folder/x.png")
    with pytest.raises(UserError, match=r"x\.tif: cannot be written \(No such file"):
        write_picture(Picture(DEEP[..., :3], format="TIFF"), tmp_path / "folder/x.tif")


def test_image_of_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").pixels.tolist() == [[[1, 2, 3]]]


def test_conversion_to_png_keeps_pixels_and_metadata(folder):
    kept = {"icc_profile": PROFILE, "exif": exif(), "dpi": (300, 300), "comment": b"words", "xmp": b"<x:xmpmeta/>"}
    Image.new("RGB", (4, 3), "red").save("a.jpg", **kept)
    assert picture_size("a.jpg") == (4, 3)
    write_picture(as_png(read_picture("a.jpg")), "a.png")
    with Image.open("a.png") as image:
        assert image.format == "PNG" and image.info["icc_profile"] == PROFILE
        assert image.getexif()[ExifTags.Base.Artist] == "Ada" and image.info["dpi"] == pytest.approx(
            (300, 300), abs=0.1
        )
        assert image.text == {"Comment": "words", "XML:com.adobe.xmp": "<x:xmpmeta/>"}
    np.testing.assert_array_equal(read_picture("a.png").pixels, read_picture("a.jpg").pixels)


def test_image_size_is_read_without_decoding(folder):
    Image.new("RGB", (500, 300)).save("a.png")
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:60])  # only the header
    assert picture_size("a.png") == (500, 300)
    (folder / "a.png").write_bytes(b"no")
    with pytest.raises(UserError, match="a.png: is not a readable image"):
        picture_size("a.png")


@pytest.mark.parametrize("white", [255, 65535])
def test_tiff_palette_of_8_or_16_bits_is_applied(tmp_path, white):
    """The standard requires 16 bits; libtiff reads a palette without values above 255 as one of 8 bits."""
    places = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    colors = np.zeros((3, 256), np.uint16)
    colors[:, :3] = np.array([[10, 100, 255], [20, 90, 0], [30, 60, 255]]) * (white // 255)
    tifffile.imwrite(tmp_path / "a.tif", places, photometric="palette", colormap=colors, metadata=None)
    wanted = np.array([[10, 20, 30], [100, 90, 60], [255, 0, 255]], np.uint8)[places]
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").pixels, wanted)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["strips", "tiles"])
def test_tiff_with_missing_strips_or_tiles_is_rejected(tmp_path, kind, compression):
    """The directory lists 5 of 8 segments; a decoder leaves the rest black."""
    segments = {"rowsperstrip": 8} if kind == "strips" else {"tile": (16, 16)}
    file, pixels = BytesIO(), np.full((64, 32, 3), 200, np.uint8)
    tifffile.imwrite(file, pixels, photometric="rgb", metadata=None, compression=compression, **segments)
    content = bytearray(file.getvalue())
    with tifffile.TiffFile(BytesIO(content)) as tiff:
        for code in (273, 279) if kind == "strips" else (324, 325):
            tag = tiff.pages[0].tags[code]
            assert tag.count == 8
            content[tag.offset + 4 : tag.offset + 8] = struct.pack("<I", 5)
    (tmp_path / "a.tif").write_bytes(file.getvalue())
    assert (read_picture(tmp_path / "a.tif").pixels == 200).all()
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(UserError, match=rf"a.tif: cannot be read as an image \(it has 5 of 8 {kind} of pixels\)$"):
        read_picture(tmp_path / "a.tif")


@pytest.mark.parametrize("imagej", [False, True])
def test_stack_with_a_single_page_is_rejected(tmp_path, imagej):
    """ImageJ stores stacks of more than 4 GB in this way."""
    path, stack = tmp_path / "a.tif", np.arange(5 * 4 * 6, dtype=np.uint8).reshape(5, 4, 6)
    with tifffile.TiffWriter(path, imagej=imagej) as writer:
        writer.write(stack, photometric="minisblack", truncate=True)
    with pytest.raises(UserError, match=r"a\.tif: holds 5 images, expected one; write each to its own file$"):
        read_picture(path)
    path.write_bytes(path.read_bytes()[:-1])  # the last image is incomplete: the description is wrong
    np.testing.assert_array_equal(read_picture(path).pixels[..., 0], stack[0])
