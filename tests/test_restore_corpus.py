"""At least 150 bad images, videos and arguments: one-line messages, no hang, no partial result, low memory."""

import json
import os
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from tiny_network import save_identity

MIN_CASES = 150
SECONDS = 60  # per case, on a busy machine
MEMORY = 3 * 10**9  # bytes, peak of the process
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 56, 3), np.uint8)
DEEP = RGB.astype(np.uint16) * 257

DRIVER = """
import json, os, resource, signal, sys, time, traceback
from pathlib import Path
from restormixer_arch import cli

def late(number, frame):
    raise RuntimeError("a hang")

signal.signal(signal.SIGALRM, late)
for line in sys.stdin:
    arguments = json.loads(line)
    with open("said.txt", "w+b") as said:
        kept = os.dup(1), os.dup(2)
        os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
        start = time.monotonic()
        signal.alarm(int(sys.argv[1]))
        try:
            code = cli.main(arguments)
        except SystemExit as error:
            code = error.code
        except BaseException:
            code = "error"
            traceback.print_exc()
        signal.alarm(0)
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(kept[0], 1), os.dup2(kept[1], 2)
        os.close(kept[0]), os.close(kept[1])
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([code, text, time.monotonic() - start, peak]), flush=True)
"""


def saved(kind, image=RGB, **options):
    content = BytesIO()
    Image.fromarray(image).save(content, kind, **options)
    return content.getvalue()


def encoded(suffix, image):
    return cv2.imencode(suffix, image)[1].tobytes()


def tiff(image=RGB, **options):
    content = BytesIO()
    tifffile.imwrite(content, image, metadata=None, **options)
    return content.getvalue()


def saved_palette():
    content = BytesIO()
    Image.fromarray(RGB).quantize(8).save(content, format="PNG")
    return content.getvalue()


def good_files(folder):
    """Return name -> content of valid files of every format."""
    files = {
        "rgb.png": saved("PNG"),
        "palette.png": saved_palette(),
        "gray.png": saved("PNG", np.asarray(Image.fromarray(RGB).convert("L"))),
        "deep.png": encoded(".png", DEEP),
        "a.jpg": saved("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0", icc_profile=b"no profile", comment=b"x"),
        "progressive.jpg": saved("JPEG", progressive=True),
        "lossy.webp": saved("WEBP"),
        "lossless.webp": saved("WEBP", lossless=True),
        "a.bmp": saved("BMP"),
        "alpha.bmp": encoded(".bmp", np.dstack([RGB, RGB[..., 0]])),
        "a.ppm": saved("PPM"),
        "deep.ppm": encoded(".ppm", DEEP),
        "rgb.tif": tiff(photometric="rgb"),
        "deep.tif": tiff(DEEP, photometric="rgb", compression="zlib"),
        "planar.tif": tiff(DEEP.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"),
        "lzw.tif": encoded(".tif", DEEP),
        "a.avif": saved("AVIF"),
    }
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
        files["a.heic"] = saved("HEIF")
    except ImportError:
        pass
    try:
        from test_video import patches, write_video

        for suffix in (".mp4", ".mkv", ".webm", ".avi", ".mov"):
            files[f"film{suffix}"] = write_video(
                folder / f"x{suffix}", frames=patches(4), sound=suffix == ".mp4"
            ).read_bytes()
    except ImportError:
        pass
    return files


def damaged(content, seed):
    """Yield (description, content) of damaged copies of a file."""
    rng = np.random.default_rng(seed)
    size = len(content)
    yield "empty", b""
    yield "cut to its start", content[:13]
    yield "cut to half", content[: size // 2]
    yield "cut near its end", content[: size - 7]
    for number in range(3):
        changed = bytearray(content)
        for place in rng.integers(0, size if number else min(size, 200), 1 + 6 * number):
            changed[place] = rng.integers(0, 256)
        yield f"changed {number}", bytes(changed)
    yield "zeros", content[: size // 3] + bytes(size // 3) + content[2 * (size // 3) :]


def png_of_size(width, height, depth=8, data=b"\0"):
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)), (b"IDAT", zlib.compress(data)))
    coded = (
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in (*parts, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(coded)


def bombs():
    """Return name -> content of small files that claim to be large, refer to other files or have a wrong format."""
    huge = bytearray(saved("BMP"))
    huge[18:26] = struct.pack("<ii", 60000, 60000)
    wide = bytearray(saved("JPEG"))
    at = wide.index(b"\xff\xc0")
    wide[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    with_tag = bytearray(tiff(photometric="rgb"))
    with tifffile.TiffFile(BytesIO(bytes(with_tag))) as file:
        for code in (256, 257):
            place = file.pages[0].tags[code].valueoffset
            with_tag[place : place + 4] = (
                struct.pack("<I", 90000) if file.pages[0].tags[code].dtype == 4 else b"\xff\xff"
            )
    loop = bytearray(tiff(photometric="rgb"))
    start = struct.unpack("<I", loop[4:8])[0]
    count = struct.unpack("<H", loop[start : start + 2])[0]
    loop[start + 2 + 12 * count : start + 6 + 12 * count] = struct.pack("<I", start)
    text = png_of_size(4, 4, data=(b"\0" + bytes(12)) * 4)
    ztxt = b"zTXt" + b"XML:com.adobe.xmp\0\0" + zlib.compress(bytes(10**8))
    chunk = struct.pack(">I", len(ztxt) - 4) + ztxt + struct.pack(">I", zlib.crc32(ztxt))
    return {
        "bomb.png": png_of_size(60000, 60000),
        "deep_bomb.png": png_of_size(40000, 40000, 16),
        "gray_bomb.png": png_of_size(2**31 - 1, 1),
        "none.png": png_of_size(0, 5),
        "text_bomb.png": text[:33] + chunk + text[33:],
        "bomb.bmp": bytes(huge),
        "bomb.jpg": bytes(wide),
        "bomb.ppm": b"P6 90000 90000 255\n",
        "bomb.pgm": b"P5 90000 90000 65535\n",
        "no_white.ppm": b"P6 2 2 0\n" + bytes(12),
        "bomb.tif": bytes(with_tag),
        "loop.tif": bytes(loop),
        "pages.tif": saved("TIFF", save_all=True, append_images=[Image.fromarray(RGB)]),
        "float.tif": tiff(RGB.astype(np.float32), photometric="rgb"),
        "moving.webp": saved("WEBP", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        "moving.png": saved("PNG", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        "still.jpg": saved("GIF"),
        "list.mp4": b"#EXTM3U\n#EXTINF:1,\nx.mp4\n",
        "list.mkv": b"ffconcat version 1.0\nfile x.mp4\n",
        "page.webm": b"<html></html>",
        "picture.mp4": saved("PNG"),
        "sound.avi": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        "short.mov": b"\0\0\0\x08ftyp",
        "film.png": b"\0\0\0\x18ftypisom" + bytes(40),
        "line\nbreak.png": b"x",
        "esc\x1b[2J.jpg": b"x",
    }


def argument_lists():
    ok = ["good.png", "-o", "out"]
    return [
        [],
        ["good.png"],
        ["-o", "out"],
        ["", "-o", "out"],
        ["none.png", "-o", "out"],
        ["*.nothing", "-o", "out"],
        ["[", "-o", "out"],
        ["good.png", "-o", "good.png"],
        ["good.png", "-o", "."],
        ["good.png", "-o", "/proc/none"],
        ["w.safetensors", "-o", "out"],
        [*ok, "--tile", "0"],
        [*ok, "--tile", "1"],
        [*ok, "--tile", "63"],
        [*ok, "--tile", "99999999999999999999x"],
        [*ok, "--tile", "128", "--overlap", "128"],
        [*ok, "--overlap", "-1"],
        [*ok, "--strength", "nan"],
        [*ok, "--strength", "inf"],
        [*ok, "--precision", "fp8"],
        [*ok, "--device", "cuda:99"],
        [*ok, "--device", "\x1b"],
        [*ok, "--max-memory", "1K"],
        [*ok, "--max-memory", "-1G"],
        [*ok, "--max-pixels", "0"],
        [*ok, "--max-pixels", "9"],
        [*ok, "--max-pixels", "1e9"],
        [*ok, "--video-quality", "52"],
        [*ok, "--video-quality", "-1"],
        [*ok, "--blend", "cubic"],
        [*ok, "--task", "../../etc"],
        [*ok, "--taks", "derain"],
        ["good.png", "x/good.png", "-o", "out"],
    ]


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.skipif(os.name != "posix", reason="needs alarms and the size of a process")
def test_bad_inputs_are_reported_in_one_line(folder):
    save_identity(folder / "w.safetensors")
    good = good_files(folder)
    (folder / "bad").mkdir()
    (folder / "x").mkdir()
    (folder / "good.png").write_bytes(good["rgb.png"])
    (folder / "x/good.png").write_bytes(good["rgb.png"])
    cases = []
    for number, (name, content) in enumerate(good.items()):
        for word, bad in damaged(content, number):
            place = Path("bad", f"{name.partition('.')[0]} {word} {number}{Path(name).suffix}")
            place.write_bytes(bad)
            cases.append([str(place), "-o", "out"])
    for name, content in bombs().items():
        Path("bad", name).write_bytes(content)
        cases.append([f"bad/{name}", "-o", "out"])
    cases += argument_lists()
    assert len(cases) >= MIN_CASES
    weights = ["--weights", "w.safetensors", "--device", "cpu"]
    lines = [
        json.dumps(["restore", *case, *([] if "--task" in case or "--device" in case else weights)]) for case in cases
    ]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(SECONDS)],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=2900,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(cases), (cases[len(results)], done.stderr[-2000:])
    problems = []
    for case, (code, text, seconds, peak) in zip(cases, results, strict=True):
        source = Path(case[0]) if case else Path("none")
        said = text.splitlines()
        foreign = [line for line in said if not line.startswith(("basicsr: ", "out: ", "restore: ", "\r"))]
        written = Path("out", source.name).is_file() and source.parent.name == "bad"
        if code not in (0, 2) or "Traceback" in text:
            problems.append((case, "an error", text[-300:]))
        elif [line for line in foreign if line.strip()]:
            problems.append((case, "foreign lines", foreign[:3]))
        elif code == 2 and not any("basicsr: error: " in line for line in said):
            problems.append((case, "no line", text))
        elif source.parent.name == "bad" and written != (code == 0):
            problems.append((case, "a result is there" if written else "no result", text))
        elif seconds > SECONDS or peak > MEMORY:
            problems.append((case, f"{seconds:.0f} s, {peak / 1e9:.1f} GB", ""))
    left = [str(path) for path in Path("out").rglob(".part-*")]
    peak = max(result[3] for result in results) / 1e9
    print(f"{len(cases)} cases, {sum(r[0] == 0 for r in results)} restored, at most {peak:.2f} GB")  # noqa: T201
    assert not problems and not left, "\n".join(map(str, [*problems, *left]))
