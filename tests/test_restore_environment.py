"""``basicsr restore``: selection of files, limits, and the terminal."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from restore_cases import ARGUMENTS, RGB, SMOOTH, run
from tiny_network import save_identity
from video_cases import patches, read_video, write_video

from restormixer_arch import cli
from restormixer_arch.data.images import picture as pictures
from restormixer_arch.data.images.picture import read_picture
from restormixer_arch.inference import jobs, restore

COMMAND = [sys.executable, "-m", "restormixer_arch.cli", "restore"]


# --- selection of files ----------------------------------------------------------------------------------------------


def test_skipped_files_of_a_folder_are_counted(restore_folder, capsys):
    Image.fromarray(RGB).save("in/a.png")
    Image.fromarray(SMOOTH).save("in/b.jfif", "JPEG")
    for name in ("c.gif", "d.GIF", "e.svg", "f.txt"):
        (restore_folder / "in" / name).write_bytes(b"x")
    (restore_folder / "elsewhere").mkdir()
    (restore_folder / "in/link").symlink_to("../elsewhere")
    assert run("in", "-o", "out") == 0
    out, err = capsys.readouterr()
    assert out == "out: 2 restored\n"
    links = "1 linked folder (as an input of its own it is read)"
    assert err == f"basicsr: note: in: left out 2 .gif (not supported), 1 .svg (not supported), {links}\n"
    assert sorted(path.name for path in (restore_folder / "out").iterdir()) == ["a.png", "b.jfif"]
    assert run("in/*.[gs]*", "-o", "out") == 2
    assert "matches no image or video" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "suffix", "extra"), [("pillow_heif", ".heic", "heif"), ("av", ".mp4", "video")])
def test_missing_package_is_named(restore_folder, capsys, monkeypatch, module, suffix, extra):
    Image.fromarray(RGB).save("in/a.png")
    (restore_folder / f"in/b{suffix}").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    for name in list(sys.modules):
        if name.partition(".")[0] == module or name.startswith("restormixer_arch.data.images.video"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(jobs.importlib.util, "find_spec", lambda name: None if name == module else True)
    assert run("in", "-o", "out") == 0
    assert f"left out 1 {suffix} (pip install 'restormixer[{extra}]' to read them)" in capsys.readouterr().err
    assert run(f"in/b{suffix}", "-o", "out") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(f"pip install 'restormixer[{extra}]'")


@pytest.mark.parametrize("name", ["12:30.mp4", "rtsp:x.mp4", "concat:a|b.mp4", "-x.mp4", "file%03d.mp4"])
def test_video_names_are_not_interpreted_as_urls_or_options(restore_folder, name):
    (restore_folder / "folder").mkdir()
    write_video(restore_folder / "folder/plain.mp4").rename(restore_folder / "folder" / name)
    assert run("folder", "-o", "out") == 0
    assert len(read_video(restore_folder / "out" / name)) == 4


def test_tilde_is_expanded_to_the_home_folder(restore_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(restore_folder))
    Image.fromarray(RGB).save("a.png")
    assert cli.main(["restore", "~/a.png", "-o", "~/out", "--weights", "~/w.safetensors"]) == 0
    assert (restore_folder / "out/a.png").is_file() and not (restore_folder / "~").exists()


# --- limits ----------------------------------------------------------------------------------------------------------


def test_pixel_limit_can_be_raised(restore_folder, capsys, monkeypatch):
    Image.fromarray(RGB).save("a.png")
    Image.fromarray(RGB).save("a.tif")
    Image.fromarray(RGB).save("a.jpg")
    monkeypatch.setenv("RESTORMIXER_MAX_PIXELS", "599")
    for name in ("a.png", "a.tif", "a.jpg"):
        assert run(name, "-o", "out") == 2
        assert "Image size (600 pixels) exceeds limit of 599 pixels" in capsys.readouterr().err
        assert run(name, "-o", "out", "--max-pixels", "0.6k") == 0
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's own limit is overridden
    assert run("a.jpg", "-o", "more", "--max-pixels", "600") == 0
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize("tile", ["64", "100", "128"])
def test_small_tile_works_without_an_overlap_option(restore_folder, tile):
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)
    Image.fromarray(image).save("a.png")
    assert run("a.png", "-o", "out", "--tile", tile) == 0
    np.testing.assert_array_equal(read_picture("out/a.png").pixels, image)
    np.testing.assert_array_equal(restore.restore(image, "w.safetensors", tile=int(tile)), image)


def test_result_is_written_even_if_the_compare_image_is_too_wide(restore_folder, capsys, monkeypatch):
    monkeypatch.setitem(pictures.MAX_SIDE, "JPEG", 100)
    Image.fromarray(SMOOTH).save("a.jpg")
    assert run("a.jpg", "-o", "out", "--compare") == 2
    out, err = capsys.readouterr()
    problem = "cannot be written: 128 x 48 pixels are more than JPEG can hold (100 on a side)"
    assert out == "out: 1 failed\n" and err == f"basicsr: error: out/a_compare.jpg: {problem}\n"
    assert [path.name for path in (restore_folder / "out").iterdir()] == ["a.jpg"]


def test_too_large_result_is_rejected_before_restoring(restore_folder, capsys, monkeypatch):
    save_identity(restore_folder / "w.safetensors", upscale=4)
    monkeypatch.setitem(pictures.MAX_SIDE, "WEBP", 200)
    monkeypatch.setattr(restore, "restore_picture", lambda *arguments: pytest.fail("it was restored"))
    Image.fromarray(SMOOTH).save("a.webp")
    assert run("a.webp", "-o", "out") == 2
    assert "a.webp: the result cannot be written: 256 x 192 pixels are more than WEBP" in capsys.readouterr().err


def test_result_name_may_have_the_maximum_length(restore_folder, capsys):
    name = "n" * 251 + ".png"
    Image.fromarray(RGB).save(name)
    assert run(name, "-o", "out") == 0
    assert [path.name for path in (restore_folder / "out").iterdir()] == [name]
    assert run(name, "-o", "more", "--compare") == 2
    assert "cannot be written (File name too long)" in capsys.readouterr().err
    assert [path.name for path in (restore_folder / "more").iterdir()] == [name]


# --- the terminal ----------------------------------------------------------------------------------------------------


def test_control_characters_in_names_are_escaped(restore_folder, capsys):
    name = "a\x1b[2J\x9b31m\u202ecod.png"
    (restore_folder / name).write_bytes(b"no picture")
    assert run(name, "-o", "out\x1b]0;title\x07") == 2
    out, err = capsys.readouterr()
    assert "a\\x1b[2J\\x9b31m\\u202ecod.png: is not a readable image" in err
    assert out == "out\\x1b]0;title\\x07: 1 failed\n"


def test_names_that_the_console_cannot_encode_are_escaped(restore_folder):
    for name in ("Mühle.png", "日本.png"):
        Image.fromarray(RGB).save(restore_folder / "in" / name)
    (restore_folder / "in/böse.png").write_bytes(b"")
    (restore_folder / "in" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}
    command = [*COMMAND, "in", "-o", "öut", *ARGUMENTS]
    done = subprocess.run(command, capture_output=True, timeout=110, env=environment, check=False)
    assert done.returncode == 2 and done.stdout == b"\\xf6ut: 2 restored, 2 failed\n"
    assert b"b\\xf6se.png: is empty" in done.stderr and b"\\udcff.png: is empty" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="closes a stream by the shell")
@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "> /dev/full"])
def test_unwritable_output_streams_do_not_stop_the_command(restore_folder, closing):
    Image.fromarray(RGB).save("in/a.png")
    command = f"{' '.join([*COMMAND, 'in', '-o', 'out', *ARGUMENTS])} {closing}"
    done = subprocess.run(command, shell=True, capture_output=True, timeout=110, check=False)
    assert done.returncode == 0 and b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    assert (restore_folder / "out/a.png").is_file()
    if "full" in closing:
        assert done.stderr == b"basicsr: stdout cannot be written (No space left on device)\n"


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_stopped_video_leaves_no_partial_file(restore_folder, name):
    write_video(restore_folder / "in/film.mp4", 200, frames=patches(200, (96, 128)))
    command = [*COMMAND, "in", "-o", "out", "--self-ensemble", *ARGUMENTS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not list(restore_folder.glob("out/.part-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped after 0 of 1 files" in err
    assert list((restore_folder / "out").iterdir()) == []


def test_video_progress_shows_frames_and_remaining_time(restore_folder, monkeypatch):
    from restormixer_arch.cli import restore as command

    write_video(restore_folder / "film.mp4", 3)
    seen = []
    monkeypatch.setattr(command.tqdm, "set_postfix_str", lambda self, text, *more: seen.append(text))
    assert run("film.mp4", "-o", "out", "--video-quality", "30") == 0
    assert seen[1].startswith("film.mp4, frame 1/3, 00:0") and seen[1].endswith(" left")
    assert seen[3] == "film.mp4, frame 3/3"
