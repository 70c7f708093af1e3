"""``basicsr restore`` keeps an image's metadata and format, and reports what it cannot keep."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageCms
from restore_cases import RGB, SMOOTH, run

from restormixer_arch.data.images import picture as pictures
from restormixer_arch.data.images.exif import exif_of_size
from restormixer_arch.data.images.picture import read_picture
from restormixer_arch.data.images.png import PngFile

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def restored(*names):
    """Restore files of the working directory into ``out``."""
    assert run(*names, "-o", "out") == 0


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(chunks, image=RGB):
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    plain = content.getvalue()
    return plain[:33] + b"".join(chunk(*one) for one in chunks) + plain[33:]


def chunks_of(content):
    found, place = [], 8
    while place < len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        found.append((kind, content[place + 8 : place + 8 + length]))
        place += 12 + length
    return found


EXIF = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 296, 3, 1, 2, 0, 0)
COLORS = [
    (b"cICP", b"\x09\x10\x00\x01"),
    (b"gAMA", struct.pack(">I", 100000)),
    (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)),
    (b"sBIT", b"\5\6\5"),
]
LARGE = os.urandom(16) + bytes(2 * 10**6)
OTHERS = [
    (b"iCCP", b"large\0\0" + zlib.compress(LARGE)),
    (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)),
    (b"tEXt", b"Title\0Ada"),
    (b"zTXt", b"Notes\0\0" + zlib.compress(b"long " * 500_000)),
    (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta/>"),
    (b"eXIf", EXIF),
    (b"prIv", b"private"),
]


@pytest.mark.parametrize("deep", [False, True])
def test_png_chunks_are_kept_byte_for_byte(restore_folder, capsys, deep):
    wanted = [*COLORS, *OTHERS]
    content = _deep_png(wanted) if deep else png_with(wanted)
    (restore_folder / "a.png").write_bytes(content)
    restored("a.png")
    found = chunks_of((restore_folder / "out/a.png").read_bytes())
    assert [one for one in found if one[0] not in (b"IHDR", b"IDAT", b"IEND")] == wanted
    assert [kind for kind, _ in found].index(b"IDAT") > [kind for kind, _ in found].index(b"cICP")
    assert capsys.readouterr().err == ""


def _deep_png(chunks):
    done, content = cv2.imencode(".png", RGB.astype(np.uint16) * 257)
    assert done
    plain = content.tobytes()
    return plain[:33] + b"".join(chunk(*one) for one in chunks) + plain[33:]


def test_dropped_png_chunks_are_reported_once_for_all_files(restore_folder, capsys):
    for name in ("a", "b"):
        (restore_folder / f"in/{name}.png").write_bytes(png_with([(b"caBX", b"signed"), (b"tIME", bytes(7))]))
    broken = bytearray(png_with([(b"tEXt", b"Title\0Ada")]))
    broken[50] ^= 1
    (restore_folder / "in/c.png").write_bytes(broken)
    restored("in")
    assert capsys.readouterr().err == "basicsr: note: PNG: left out caBX (2 files), tEXt\n"


def test_rotated_png_loses_only_its_orientation_tag(restore_folder):
    turned = b"MM\0*" + struct.pack(">IHHHIHHHHIHHI", 8, 2, 274, 3, 1, 6, 0, 296, 3, 1, 2, 0, 0)
    (restore_folder / "a.png").write_bytes(png_with([*COLORS[:3], (b"eXIf", turned), (b"tEXt", b"Title\0Ada")]))
    restored("a.png")
    with Image.open("out/a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.rot90(RGB, -1))
        assert image.getexif().get(274, 1) == 1 and image.getexif()[296] == 2 and image.text == {"Title": "Ada"}
        assert image.info["gamma"] == 1.0


def test_rotated_png_keeps_exif_in_a_text_chunk(restore_folder):
    """ImageMagick writes such chunks."""
    turned = b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHHHIHHI", 8, 2, 274, 3, 1, 6, 0, 296, 3, 1, 2, 0, 0)
    text = f"\nexif\n{len(turned):8}\n{turned.hex()}\n".encode()
    raw = b"Raw profile type exif\0\0" + zlib.compress(text)
    (restore_folder / "a.png").write_bytes(png_with([(b"zTXt", raw)]))
    restored("a.png")
    [exif] = [data for kind, data in chunks_of((restore_folder / "out/a.png").read_bytes()) if kind == b"eXIf"]
    assert exif == turned[6:].replace(
        struct.pack(">HHI", 274, 3, 1) + b"\0\6", struct.pack(">HHI", 274, 3, 1) + b"\0\1"
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_tags_are_kept(restore_folder, capsys, dtype):
    tags = [
        (33434, 5, 1, struct.pack("<2I", 1, 4)),  # exposure time
        (36864, 7, 4, b"0232"),  # version, whose type is UNDEFINED
        (37380, 10, 1, struct.pack("<2i", -2, 6)),  # exposure bias, a signed rational that is not reduced
        (37510, 7, 13, b"ASCII\0\0\0hello"),  # comment
        (40962, 3, 1, struct.pack("<H", 7)),  # width, incorrect
        (42036, 2, 8, "Größe".encode() + b"\0"),  # lens
    ]
    image = RGB.astype(dtype)
    extra = [
        (315, 2, 0, "An Artist", True),
        (33432, 2, 0, "(c) someone", True),
        (700, 1, 37, b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", True),
        (33723, 7, 8, b"\x1c\2\x05\0\3abc", True),
        (33550, 12, 3, (1.0, 2.0, 0.0), True),
    ]
    options = {"description": "scan 12", "datetime": "2020:01:02 03:04:05", "software": "x", "iccprofile": PROFILE}
    tifffile.imwrite(
        "plain.tif", image, photometric="rgb", metadata=None, extratags=extra, resolution=(300, 200), **options
    )
    picture = read_picture("plain.tif")
    picture.metadata["directories"] = {34665: tags, 34853: [(1, 2, 2, b"N\0")]}
    pictures.write_picture(picture, "a.tif")
    restored("a.tif")
    assert capsys.readouterr().err == ""
    with tifffile.TiffFile("out/a.tif") as file:
        page = file.pages[0]
        np.testing.assert_array_equal(page.asarray(), image)
        found = {tag.code: tag.value for tag in page.tags}
    assert (found[270], found[305], found[306]) == ("scan 12", "x", "2020:01:02 03:04:05")
    assert (found[315], found[33432], found[33550]) == ("An Artist", "(c) someone", (1.0, 2.0, 0.0))
    assert found[700] == extra[2][3] and found[33723] == extra[3][3] and found[34675] == PROFILE
    with Image.open("out/a.tif") as opened:
        assert opened.info["dpi"] == (300, 200)
        exif = opened.getexif()
        assert exif.get_ifd(34665)[ExifTags.Base.ExposureTime] == 0.25
        assert exif.get_ifd(34853)[ExifTags.GPS.GPSLatitudeRef] == "N"
    width = (40962, 4, 1, struct.pack("<I", RGB.shape[1]))
    directories = read_picture("out/a.tif").metadata["directories"]
    assert directories[34665] == [width if tag[0] == 40962 else tag for tag in tags]


def test_image_is_saved_without_metadata_that_cannot_be_written(restore_folder, capsys, monkeypatch):
    original = pictures._by_pillow

    def refuse(picture, **metadata):
        if "exif" in metadata:
            raise ValueError("EXIF data is too long")
        return original(picture, **metadata)

    monkeypatch.setattr(pictures, "_by_pillow", refuse)
    Image.fromarray(SMOOTH).save("a.jpg", exif=b"Exif\0\0" + EXIF)
    restored("a.jpg")
    assert capsys.readouterr().err == "basicsr: note: JPEG: left out all metadata (EXIF data is too long)\n"
    monkeypatch.setattr(pictures, "_by_pillow", lambda picture, **metadata: original(picture, quality="none"))
    assert run("a.jpg", "-o", "more") == 2
    assert "a.jpg: the result cannot be written as JPEG (" in capsys.readouterr().err


def test_damaged_tiff_directories_are_reported(restore_folder, capsys):
    picture = pictures.Picture(
        RGB, format="TIFF", metadata={"directories": {34665: [(33434, 5, 1, struct.pack("<2I", 1, 4))]}}
    )
    content = bytearray(pictures.encode_picture(picture))
    with Image.open(io.BytesIO(content)) as image:
        at = image.tag_v2[34665]
    content[at : at + 2] = b"\xff\xff"  # more tags than there is space for
    (restore_folder / "a.tif").write_bytes(content[: at + 9])
    restored("a.tif")
    np.testing.assert_array_equal(tifffile.imread("out/a.tif"), RGB)
    assert capsys.readouterr().err == "basicsr: note: TIFF: left out damaged EXIF tags\n"


@pytest.mark.parametrize(("mode", "bits"), [("RGB", 3), ("L", 1), ("P", 3)])
@pytest.mark.parametrize("before", [True, False])
def test_significant_bits_without_the_new_alpha_channel_are_dropped(restore_folder, capsys, mode, bits, before):
    """The sBIT chunk may come before or after the tRNS chunk."""
    file = io.BytesIO()
    Image.fromarray(RGB).convert(mode).save(file, "PNG", transparency=(1, 2, 3) if mode == "RGB" else 0)
    sbit = bytes([5] * bits)
    content = file.getvalue()
    at = content.index(b"tRNS") - 4 if before else content.index(b"IDAT") - 4
    chunk = struct.pack(">I4s", bits, b"sBIT") + sbit + struct.pack(">I", zlib.crc32(b"sBIT" + sbit))
    png = PngFile(content[:at] + chunk + content[at:], "a.png")
    assert b"sBIT" not in dict(png.chunks) and png.left_out == ["sBIT"]


def test_full_size_page_of_a_tiff_with_thumbnail_is_restored(restore_folder, capsys):
    for name, first in (("first.tif", False), ("last.tif", True)):
        with tifffile.TiffWriter(f"in/{name}") as writer:
            pages = [(RGB, 0), (RGB[::4, ::4], 1)]
            for image, kind in reversed(pages) if first else pages:
                writer.write(image, photometric="rgb", subfiletype=kind, metadata=None)
    restored("in")
    for name in ("first.tif", "last.tif"):
        np.testing.assert_array_equal(tifffile.imread(f"out/{name}"), RGB)
    note = "basicsr: note: TIFF: left out smaller pages, such as a thumbnail (2 files)\n"
    assert capsys.readouterr().err == note


def test_additional_tiff_channel_that_is_not_alpha_is_reported(restore_folder, capsys):
    planes = np.dstack([RGB, RGB[..., 0]])
    tifffile.imwrite("a.tif", planes, photometric="rgb", extrasamples=["unspecified"], metadata=None)
    restored("a.tif")
    np.testing.assert_array_equal(tifffile.imread("out/a.tif"), RGB)
    assert capsys.readouterr().err == "basicsr: note: TIFF: left out channels beyond color and alpha\n"


def test_jpeg_keeps_iptc_and_extended_xmp_and_the_rest_is_reported(restore_folder, capsys):
    iptc = b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\x08\x1c\2\x05\0\3abc"
    long_xmp = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + bytes(8) + b"<x/>"
    other = b"Ducky\0\1\0\4\0\0\0\x3c\0\0"
    extra = b"".join(
        struct.pack(">BBH", 255, kind, len(data) + 2) + data
        for kind, data in ((0xED, iptc), (0xE1, long_xmp), (0xEC, other))
    )
    Image.fromarray(SMOOTH).save("a.jpg", extra=extra, quality=100, subsampling=0, xmp=b"<x:xmpmeta/>")
    restored("a.jpg")
    with Image.open("out/a.jpg") as image:
        assert ("APP13", iptc) in image.applist and ("APP1", long_xmp) in image.applist
        assert image.info["xmp"] == b"<x:xmpmeta/>" and image.layer[1][1:3] == (1, 1)  # 4:4:4
    assert capsys.readouterr().err == "basicsr: note: JPEG: left out APP12 Ducky\n"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "progressive"])
def test_data_after_the_image_is_reported(restore_folder, capsys, kind):
    inner, content = io.BytesIO(), io.BytesIO()
    Image.fromarray(SMOOTH[:8, :8]).save(inner, "JPEG")  # contains an end marker
    exif = b"Exif\0\0" + exif_with_thumbnail(inner.getvalue())
    options = {"progressive": True} if kind == "progressive" else {"restart_marker_rows": 1} if kind == "JPEG" else {}
    kind = "PNG" if kind == "PNG" else "JPEG"
    Image.fromarray(SMOOTH).save(content, kind, exif=exif, **options)
    video = b"\0\0\0\x18ftypmp42" + bytes(500) + b"moov"
    for name, rest in (("a", b""), ("b", bytes(5000) + b"\r\n"), ("c", video), ("d", bytes(64) + video)):
        (restore_folder / f"{name}.{kind.lower()}").write_bytes(content.getvalue() + rest)
    restored(f"a.{kind.lower()}", f"b.{kind.lower()}")
    assert capsys.readouterr().err == ""
    restored(f"c.{kind.lower()}", f"d.{kind.lower()}")
    named = "data behind the image, such as a motion photo's video (2 files)"
    assert capsys.readouterr().err == f"basicsr: note: {kind}: left out {named}\n"


def exif_with_thumbnail(thumbnail, width=10, height=20, order="<"):
    """Return EXIF with the size in two directories (widths as SHORT), an artist, and a thumbnail."""

    def directory(start, *entries, following=0):
        packed = b"".join(
            struct.pack(f"{order}HHI", tag, kind, count)
            + (value if isinstance(value, bytes) else struct.pack(f"{order}I", value))
            for tag, kind, count, value in entries
        )
        return struct.pack(f"{order}H", len(entries)) + packed + struct.pack(f"{order}I", following)

    short = struct.pack(f"{order}HH", width, 0)
    places = [8, 8 + 2 + 4 * 12 + 4]
    places += [places[1] + 2 + 2 * 12 + 4]
    places += [places[2] + 2 + 2 * 12 + 4]
    first = directory(
        8, (256, 3, 1, short), (257, 4, 1, height), (315, 2, 4, b"Ada\0"), (34665, 4, 1, places[1]), following=places[2]
    )
    further = directory(places[1], (40962, 3, 1, short), (40963, 4, 1, height))
    last = directory(places[2], (513, 4, 1, places[3]), (514, 4, 1, len(thumbnail)))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return head + first + further + last + thumbnail


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("size", [(64, 48), (70000, 3)])
def test_exif_of_size_changes_only_size_and_thumbnail(order, size):
    thumbnail = b"\xff\xd8 a small picture \xff\xd9"
    before = exif_with_thumbnail(thumbnail, order=order)
    after = exif_of_size(b"Exif\0\0" + before, *size)
    assert after[:6] == b"Exif\0\0" and len(after) == 6 + len(before)
    wanted = Image.Exif()
    wanted.load(after)
    assert {**wanted} == {256: size[0], 257: size[1], 315: "Ada", 34665: wanted[34665]}
    assert wanted.get_ifd(34665) == {40962: size[0], 40963: size[1]} and not wanted.get_ifd(1)
    changed = [place for place, pair in enumerate(zip(before, after[6:], strict=True)) if pair[0] != pair[1]]
    assert changed and all(8 <= place < len(before) - len(thumbnail) for place in changed)
    assert exif_of_size(after, *size) == after
    for length in range(len(before)):  # truncated EXIF does not fail
        assert len(exif_of_size(before[:length], *size)) == length


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_of_a_result_has_its_size_and_no_thumbnail(restore_folder, suffix):
    inner = io.BytesIO()
    Image.fromarray(SMOOTH[:8, :8]).save(inner, "JPEG")
    Image.fromarray(SMOOTH).save(f"a.{suffix}", exif=b"Exif\0\0" + exif_with_thumbnail(inner.getvalue()))
    restored(f"a.{suffix}")
    with Image.open(f"out/a.{suffix}") as image:
        tags = image.getexif()
        assert (tags[256], tags[257], tags[315]) == (64, 48, "Ada") and not tags.get_ifd(1)
        assert tags.get_ifd(34665) == {40962: 64, 40963: 48}


@pytest.mark.parametrize("alpha", [False, True])
def test_lossless_and_lossy_webp_keep_their_compression(restore_folder, alpha):
    planes = np.dstack([RGB, np.where(RGB[..., 0] > 99, 255, 0).astype(np.uint8)]) if alpha else RGB
    image = Image.fromarray(planes)
    image.save("a.webp", lossless=True, exact=True, icc_profile=PROFILE, exif=EXIF, xmp=b"<x/>")
    image.save("b.webp", quality=90)
    restored("a.webp", "b.webp")
    with Image.open("out/a.webp") as result:
        np.testing.assert_array_equal(np.asarray(result), planes)
        assert result.info["icc_profile"] == PROFILE and result.info["xmp"] == b"<x/>"
    assert (
        b"VP8L" in (restore_folder / "out/a.webp").read_bytes()
        and b"VP8L" not in (restore_folder / "out/b.webp").read_bytes()
    )


def test_bmp_alpha_is_kept(restore_folder):
    planes = np.dstack([RGB, RGB[..., 1]])
    cv2.imwrite("a.bmp", planes[..., [2, 1, 0, 3]])
    restored("a.bmp")
    np.testing.assert_array_equal(read_picture("out/a.bmp").planes, planes)


@pytest.mark.parametrize("alpha", [False, True])
def test_bmp_resolution_is_kept(restore_folder, alpha):
    planes = np.dstack([RGB, RGB[..., 1]]) if alpha else RGB
    content = cv2.imencode(".bmp", planes)[1].tobytes()
    (restore_folder / "a.bmp").write_bytes(content[:38] + struct.pack("<2I", 11811, 2835) + content[46:])
    restored("a.bmp")
    assert struct.unpack("<2I", (restore_folder / "out/a.bmp").read_bytes()[38:46]) == (11811, 2835)


def test_gray_avif_is_saved_as_gray(restore_folder):
    gray = np.array(Image.fromarray(SMOOTH).convert("L"))
    Image.fromarray(gray).save("a.avif", quality=95)
    restored("a.avif")
    with Image.open("out/a.avif") as result:
        assert result.mode == "L" and np.abs(np.asarray(result).astype(int) - gray).mean() < 3


def test_avif_is_read_and_written(restore_folder):
    Image.fromarray(SMOOTH).save("a.avif", quality=95, subsampling="4:4:4", icc_profile=PROFILE, exif=EXIF)
    restored("a.avif")
    with Image.open("out/a.avif") as result:
        assert result.format == "AVIF" and result.info["icc_profile"] == PROFILE and result.getexif()[296] == 2
        assert np.abs(np.asarray(result).astype(int) - SMOOTH).mean() < 3


def test_gray_heic_of_more_than_8_bits_keeps_its_levels(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (32, 1))
    Image.fromarray(ramp).save(tmp_path / "gray.heic", quality=-1)
    pixels = read_picture(tmp_path / "gray.heic").pixels
    assert pixels.dtype == np.uint8 and np.abs(pixels[..., 0].astype(int) - (ramp >> 8)).max() <= 1


def test_heic_is_read_and_written(restore_folder, capsys):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.fromarray(SMOOTH).save("a.heic", "HEIF", quality=95, chroma=444, icc_profile=PROFILE, exif=b"Exif\0\0" + EXIF)
    restored("a.heic")
    with Image.open("out/a.heic") as result:
        assert result.format == "HEIF" and result.info["icc_profile"] == PROFILE
        assert np.abs(np.asarray(result).astype(int) - SMOOTH).mean() < 3
    assert capsys.readouterr().err == ""
