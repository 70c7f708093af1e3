"""``basicsr restore`` if results already exist, and if it is interrupted."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from restore_cases import RGB, make_place, pixels
from restore_cases import run_in_tiles as run
from video_cases import write_video

from restormixer_arch.cli import restore as command
from restormixer_arch.data.images import picture as picture_files
from restormixer_arch.inference.restore import restore


@pytest.fixture
def place(folder):
    return make_place(folder)


def test_existing_results_are_kept_without_overwrite(place, capsys):
    (place / "out").mkdir()
    (place / "out/a.png").write_bytes(b"mine")
    options = ("in", "-o", "out", "--weights", "w.safetensors")
    assert (
        run(*options) == 0
        and capsys.readouterr().out
        == "out: 1 restored, 1 already there (perhaps made with other weights; --overwrite restores it again)\n"
    )
    assert (
        run(*options) == 0
        and capsys.readouterr().out
        == "out: 2 already there (perhaps made with other weights; --overwrite restores them again)\n"
    )
    assert (place / "out/a.png").read_bytes() == b"mine"
    assert run(*options, "--overwrite") == 0 and capsys.readouterr().out == "out: 2 restored\n"
    np.testing.assert_array_equal(pixels("out/a.png"), restore(RGB, "w.safetensors"))


def test_comparison_image_contains_the_existing_result(place, capsys, monkeypatch):
    """Not a new result, since the weights of this run may be different."""
    options = ("in", "-o", "out", "--compare", "--weights", "w.safetensors")
    (place / "out/sub").mkdir(parents=True)
    Image.fromarray(255 - RGB).save("out/a.png")
    Image.fromarray(RGB).resize((60, 40)).save("out/sub/b.png")
    monkeypatch.setattr("restormixer_arch.inference.restore.restore_picture", None)
    assert (
        run(*options) == 0
        and capsys.readouterr().out
        == "out: 2 compared with what was there (perhaps made with other weights; --overwrite restores them again)\n"
    )
    np.testing.assert_array_equal(pixels("out/a_compare.png"), np.hstack([RGB, 255 - RGB]))
    np.testing.assert_array_equal(pixels("out/sub/b_compare.png")[:, 60:], pixels("out/sub/b.png"))
    assert (
        run(*options) == 0
        and capsys.readouterr().out
        == "out: 2 already there (perhaps made with other weights; --overwrite restores them again)\n"
    )
    for path in place.glob("out/**/*_compare.png"):
        path.unlink()
    Image.fromarray(RGB[..., 0]).save("out/a.png")
    (place / "out/sub/b.png").write_bytes(b"")
    assert run(*options) == 2
    assert capsys.readouterr() == (
        "out: 2 failed\n",
        "basicsr: error: out/a.png: already exists and was not restored from in/a.png; --overwrite replaces it\n"
        "basicsr: error: out/sub/b.png: is empty; --overwrite replaces it\n",
    )


def test_comparison_with_an_existing_video_is_rejected(place, capsys):
    write_video(place / "film.mp4", count=1)
    options = ("film.mp4", "-o", "out", "--weights", "w.safetensors")
    assert run(*options) == 0
    capsys.readouterr()
    assert run(*options, "--compare") == 2
    message = "out/film_compare.mp4: is made together with out/film.mp4, which exists already; --overwrite makes both"
    assert capsys.readouterr() == ("out: 1 failed\n", f"basicsr: error: {message}\n")


def test_results_written_by_another_process_during_the_run_are_kept(place, capsys, monkeypatch):
    """Two runs may share a folder: existing results are neither computed again nor counted as restored."""
    Image.fromarray(RGB).save("in/c.png")
    original, seen = command.restore_file, []

    def restore_file(job, *arguments, **options):
        seen.append(job.source.name)
        for name in ("c.png", "sub/b.png"):
            (place / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "out" / name).write_bytes(b"theirs")
        return original(job, *arguments, **options)

    monkeypatch.setattr(command, "restore_file", restore_file)
    assert run("in", "-o", "out", "--weights", "w.safetensors") == 0
    said = "out: 1 restored, 2 already there (perhaps made with other weights; --overwrite restores them again)\n"
    assert capsys.readouterr().out == said and len(seen) == 3
    assert (place / "out/c.png").read_bytes() == b"theirs"


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        (["--task", "dreain"], "--task: no weights for 'dreain'; installed are: "),
        (["--weights", "x.safetensors"], "x.safetensors: does not exist. Did you mean 'w.safetensors'?"),
        (["--weights", "in"], "in: this folder holds no model.safetensors"),
    ],
)
def test_misspelled_names_are_errors_even_if_all_results_exist(place, capsys, switches, message):
    options = ("in/a.png", "-o", "out")
    assert run(*options, "--weights", "w.safetensors") == 0
    capsys.readouterr()
    assert run(*options, *switches) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"basicsr: error: {message}")


@pytest.mark.parametrize("switches", [[], ["--task", "derain"], ["--task", "auto"], ["--weights", "someone/network"]])
def test_no_weights_are_loaded_if_all_results_exist(place, capsys, monkeypatch, switches):
    options = ("in/a.png", "-o", "out")
    assert run(*options, "--weights", "w.safetensors") == 0
    capsys.readouterr()
    monkeypatch.setattr(command, "restorer_of", None)
    assert run(*options, *switches) == 0
    whose = "perhaps made with other weights; " if switches else ""
    assert capsys.readouterr() == (f"out: 1 already there ({whose}--overwrite restores it again)\n", "")


def test_ctrl_c_leaves_only_complete_files(place, capsys, monkeypatch):
    original = picture_files.write_picture

    def write(picture, path):
        original(picture, path)
        if "b.png" in path.name:
            raise KeyboardInterrupt

    monkeypatch.setattr(picture_files, "write_picture", write)
    assert run("in", "-o", "out", "--weights", "w.safetensors") == 130
    err = capsys.readouterr().err
    assert err == "basicsr: stopped after 1 of 2 files; run the same command again for the rest\n"
    assert [path.name for path in place.rglob("out/**/*.*")] == ["a.png"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_sigint_stops_the_process_without_leaving_files(place):
    Image.fromarray(np.tile(RGB, (100, 100, 1))).save("in/a.png")
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from restormixer_arch.inference import restorer\n"
        "def slow(*arguments):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "restorer._apply_network = slow\n"
        "from restormixer_arch.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["restore", "in", "-o", "out", "--weights", "w.safetensors", "--tile", "192"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], text=True, **pipes)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "basicsr: stopped after 0 of 2 files; run the same command again for the rest\n"
    assert list((place / "out").iterdir()) == []
