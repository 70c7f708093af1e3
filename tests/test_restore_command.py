"""``basicsr restore`` on files of many types."""

import signal
import sys

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image
from restore_cases import RGB, make_place, pixels
from restore_cases import run_in_tiles as run
from tiny_network import save_tiny
from video_cases import read_video, write_video

from restormixer_arch import cli
from restormixer_arch.cli import restore as command
from restormixer_arch.data.images import picture as picture_files
from restormixer_arch.inference import installed
from restormixer_arch.inference.restore import restore


@pytest.fixture
def place(folder):
    return make_place(folder)


def test_folder_is_restored(place, capsys):
    assert run("in", "-o", "out", "--weights", "w.safetensors") == 0
    out, err = capsys.readouterr()
    assert out == "out: 2 restored\n" and err == ""
    np.testing.assert_array_equal(pixels("out/a.png"), restore(RGB, "w.safetensors"))
    assert not np.array_equal(pixels("out/a.png"), RGB)
    assert pixels("out/sub/b.png").shape == RGB.shape
    assert sorted(path.name for path in place.rglob("out/**/*")) == ["a.png", "b.png", "sub"]


def test_names_with_a_tilde_that_are_not_user_names(place, capsys):
    (place / "in/a.png").rename("~no such user.png")
    (place / "w.safetensors").rename("~w.safetensors")
    assert run("~no such user.png", "-o", "~no such folder", "--weights", "~w.safetensors") == 0
    assert capsys.readouterr().out == "~no such folder: 1 restored\n"
    assert (place / "~no such folder/~no such user.png").is_file()
    assert run("~no*.png", "-o", "~no such folder", "--weights", "~w.safetensors") == 0
    assert (
        capsys.readouterr().out
        == "~no such folder: 1 already there (perhaps made with other weights; --overwrite restores it again)\n"
    )
    assert run("~no such user.png", "-o", "out", "--weights", "~other.pth") == 2
    assert "error: ~other.pth: does not exist." in capsys.readouterr().err


def test_compare_with_upsampling(place):
    save_tiny(place / "x2.safetensors", upscale=2)
    Image.fromarray(np.dstack([RGB, RGB[..., 0]])).save("in/a.png")
    assert run("in/a.png", "-o", "out", "--weights", "x2.safetensors", "--compare") == 0
    single, pair = pixels("out/a.png"), pixels("out/a_compare.png")
    assert single.shape == (40, 60, 4)
    np.testing.assert_array_equal(pair[:, 60:], single)
    before = cv2.resize(np.dstack([RGB, RGB[..., 0]]), (60, 40), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(pair[:, :60], before)


def test_gray_rotated_16_bit_and_1x1_images(place):
    Image.fromarray(RGB[..., 0]).save("in/gray.jpg")
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    Image.fromarray(RGB).save("in/turned.jpg", exif=tags)
    cv2.imwrite("in/deep.tif", RGB.astype(np.uint16) * 257)
    Image.new("RGB", (1, 1), "red").save("in/dot.png")
    assert run("in", "-o", "out", "--weights", "w.safetensors") == 0
    assert pixels("out/gray.jpg").ndim == 2 and pixels("out/turned.jpg").shape == (30, 20, 3)
    assert pixels("out/dot.png").shape == (1, 1, 3)
    deep = cv2.imread("out/deep.tif", cv2.IMREAD_UNCHANGED)
    assert deep.dtype == np.uint16
    wanted = restore(RGB[..., ::-1].astype(np.uint16) * 257, "w.safetensors")[..., ::-1]
    np.testing.assert_array_equal(deep, wanted)


def test_video_is_restored(place, capsys):
    write_video(place / "film.mp4", count=3)
    assert run("film.mp4", "-o", "out", "--weights", "w.safetensors", "--compare") == 0
    assert capsys.readouterr().out == "out: 1 restored\n"
    shapes = [[frame.planes.shape for frame in read_video(f"out/{name}.mp4")] for name in ("film", "film_compare")]
    assert shapes == [[(48, 64, 3)] * 3, [(48, 128, 3)] * 3]


def test_truncated_video_is_reported(place, capsys, monkeypatch):
    write_video(place / "film.avi", count=3)
    from restormixer_arch.data.images.video import VideoSource  # imports PyAV

    original = VideoSource.__init__

    def claim(self, *arguments):
        original(self, *arguments)
        self.count = 5

    monkeypatch.setattr(VideoSource, "__init__", claim)
    assert run("film.avi", "-o", "out", "--weights", "w.safetensors") == 0
    assert capsys.readouterr().err == "basicsr: note: film.avi: only 3 of its 5 frames could be decoded\n"


def test_one_bad_file_is_reported_and_the_rest_is_restored(place, capsys):
    pytest.importorskip("av")
    (place / "in/a0.png").write_bytes(b"")
    (place / "in/film.mp4").write_bytes(b"")
    assert run("in", "-o", "out", "--weights", "w.safetensors") == 2
    out, err = capsys.readouterr()
    assert out == "out: 2 restored, 2 failed\n"
    assert "basicsr: error: in/a0.png: is empty\n" in err
    assert "basicsr: error: in/film.mp4: cannot be read as a video (it is empty)\n" in err
    assert sorted(path.name for path in place.rglob("out/**/*.*")) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("odd"), "in/a.png: unexpected error (KeyError: 'odd')"),
        (RuntimeError("one\ntwo"), "in/a.png: unexpected error (RuntimeError: one two)"),
        (RecursionError("too deep"), "in/a.png: unexpected error (RecursionError: too deep)"),
        (MemoryError(), "in/a.png: not enough memory"),
    ],
)
@pytest.mark.parametrize("step", ["write_picture", "read_picture"])
def test_unexpected_error_with_one_file_does_not_end_the_run(place, capsys, monkeypatch, step, error, message):
    original, calls = getattr(picture_files, step), []

    def fail_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return original(*arguments)

    monkeypatch.setattr(picture_files, step, fail_once)
    assert run("in", "-o", "out", "--weights", "w.safetensors") == 2
    assert capsys.readouterr() == ("out: 1 restored, 1 failed\n", f"basicsr: error: {message}\n")
    assert [path.name for path in place.rglob("out/**/*.*")] == ["b.png"]


def test_opencv_out_of_memory_error_is_reported_as_such(place, capsys, monkeypatch):
    def enlarge(*arguments):
        cv2.resize(np.zeros((1, 1), np.uint8), (2**31 - 1, 2**31 - 1))

    monkeypatch.setattr("restormixer_arch.inference.restore.side_by_side", enlarge)
    assert run("in/a.png", "-o", "out", "--weights", "w.safetensors", "--compare") == 2
    assert capsys.readouterr() == ("out: 1 failed\n", "basicsr: error: in/a.png: not enough memory\n")


def test_out_of_memory_for_an_existing_result_does_not_suggest_overwrite(place, capsys, monkeypatch):
    assert run("in/a.png", "-o", "out", "--weights", "w.safetensors") == 0
    original = picture_files.split_alpha

    def split_alpha(planes):
        if (place / "out/a.png").exists() and len(calls) == 1:
            raise MemoryError
        calls.append(planes)
        return original(planes)

    calls = []
    monkeypatch.setattr(picture_files, "split_alpha", split_alpha)
    capsys.readouterr()
    assert run("in/a.png", "-o", "out", "--weights", "w.safetensors", "--compare") == 2
    message = "basicsr: error: out/a.png: cannot be read as an image (not enough memory)\n"
    assert capsys.readouterr() == ("out: 1 failed\n", message)


@pytest.mark.parametrize("switches", [[], ["--overwrite"]])
def test_folder_with_the_name_of_a_result_is_reported(place, capsys, switches):
    (place / "out/a.png").mkdir(parents=True)
    assert run("in", "-o", "out", "--weights", "w.safetensors", *switches) == 2
    message = "basicsr: error: out/a.png: is a folder, so the result of in/a.png cannot be written there\n"
    assert capsys.readouterr() == ("out: 1 restored, 1 failed\n", message)


def test_too_little_memory_is_reported_for_the_image(place, capsys):
    assert cli.main(["restore", "in/a.png", "-o", "out", "--weights", "w.safetensors", "--max-memory", "1M"]) == 2
    assert "error: in/a.png: max-memory: 0.00 GB is not enough for 30 x 20 pixels" in capsys.readouterr().err


def test_results_that_cannot_be_written_are_reported(place, capsys):
    (place / "out").mkdir()
    (place / "out/sub").write_bytes(b"in the way")
    assert run("in", "-o", "out", "--weights", "w.safetensors") == 2
    out, err = capsys.readouterr()
    assert out == "out: 1 restored, 1 failed\n" and "-o: 'out/sub' cannot be created" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in"], "basicsr restore: the following arguments are required: -o/--output/--out."),
        (["in", "-o", "in"], "-o: in/a.png is an input itself and would be replaced; choose another folder"),
        (["nothing", "-o", "out"], "nothing: does not exist"),
        (["in", "-o", "out", "--weights", "x.pth"], "x.pth: does not exist."),
        (["in", "-o", "out", "--task", "derian"], "--task: no weights for 'derian'; this installation has no"),
        (["in", "-o", "out", "--device", "gpu"], "--device: 'gpu' cannot be used here"),
        (["in", "-o", "out", "--overlap", "200", "--weights", "w.safetensors"], "tile: 192 is too small for an ov"),
        (["in", "-o", "out", "--overlap", "-1"], "basicsr restore: argument --overlap: expected "),
        (["in", "-o", "out", "--strength", "2"], "basicsr restore: argument --strength: expected a number from 0 to 1"),
        (["in", "-o", "out", "--tile", "0"], "basicsr restore: argument --tile: expected a positive whole number"),
        (["in", "-o", "out", "--tile", "\u00b2"], "basicsr restore: argument --tile: expected a positive whole number"),
        (["in", "-o", "out", "--overlap", "\u00b2"], "basicsr restore: argument --overlap: expected a whole number"),
        (
            ["in", "-o", "out", "--video-quality", "\u00b2"],
            "basicsr restore: argument --video-quality: expected a whole",
        ),
        (["in", "-o", "out", "--max-memory", "lots"], "basicsr restore: argument --max-memory: expected an amount"),
        (
            ["in", "-o", "out", "--max-memory", "3"],
            "basicsr restore: argument --max-memory: expected an amount such as",
        ),
        (["in", "-o", "out.png"], "-o: expected a folder, got 'out.png'; results have the names of their inputs"),
        (["in", "-o", "out", "--max-memory", "9" * 400], "basicsr restore: argument --max-memory: is too large"),
        (["in", "-o", "out", "--weights", "x", "--task", "y"], "basicsr restore: argument --task: not allowed with"),
        (["in", "-o", "out", "--self-ensembel"], "basicsr restore: unrecognized arguments: --self-ensembel. Did you"),
    ],
)
def test_user_errors_are_reported_in_one_line_and_nothing_is_created(place, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(installed, "WEIGHTS_FOLDER", place / "none")
    assert run(*arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"basicsr: error: {message}")
    assert not (place / "out").exists()


def test_installed_weights_of_a_task(place, monkeypatch, capsys):
    monkeypatch.setattr(installed, "WEIGHTS_FOLDER", place / "installed")
    (place / "installed").mkdir()
    save_tiny(place / "installed/restormixer_s_derain.safetensors")
    assert run("in", "-o", "out") == 0
    np.testing.assert_array_equal(pixels("out/a.png"), restore(RGB, "w.safetensors"))
    assert run("in", "-o", "more", "--task", "desnow") == 2
    assert "no weights for 'desnow'; installed are: derain." in capsys.readouterr().err
    assert run("in", "-o", "more", "--task", "") == 2  # such as from an unset shell variable
    assert "argument --task: expected a task such as derain, got an empty string" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("switches", "tile"),
    [
        ([], None),
        (["--tile", "512"], 512),
        (["--max-memory", "2G"], None),
        (["--overlap", "128"], None),
    ],
)
def test_tiles_are_as_large_as_memory_allows_unless_set(place, monkeypatch, switches, tile):
    monkeypatch.setattr(installed, "WEIGHTS_FOLDER", place / "installed")
    (place / "installed").mkdir()
    save_tiny(place / "installed/restormixer_s_derain.safetensors")
    args = command.parser().parse_args(["in", "-o", "out", *switches])
    assert command.restorer_of(args).tile == tile


def test_options_reach_the_restorer(place, monkeypatch):
    seen = []
    original = command.restorer_of
    monkeypatch.setattr(command, "restorer_of", lambda args: seen.append(original(args)) or seen[0])
    switches = ["--precision", "bf16", "--self-ensemble", "--blend", "linear", "--overlap", "32", "--max-memory", "2G"]
    assert run("in/a.png", "-o", "out", "--weights", "w.safetensors", "--device", "cpu", *switches) == 0
    [made] = seen
    found = (made.precision, made.self_ensemble, made.blend, made.overlap, made.max_memory, made.tile)
    assert found == ("bf16", True, "linear", 32, 2 * 10**9, 192)


def test_precision_auto_is_reported(place, capsys):
    assert run("in/a.png", "-o", "out", "--weights", "w.safetensors", "--precision", "auto") == 0
    assert "precision: fp32" in capsys.readouterr().err  # the quality loss of bf16 is not known for these weights


def test_strength_blends_input_and_result(place):
    assert run("in", "-o", "out", "--weights", "w.safetensors", "--strength", "0") == 0
    np.testing.assert_array_equal(pixels("out/a.png"), RGB)
    half = restore(RGB, "w.safetensors", strength=0.5)
    mean = (RGB.astype(float) + restore(RGB, "w.safetensors")) / 2
    assert np.abs(half - mean).max() <= 1 and not np.array_equal(half, RGB)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
def test_truncated_output_files_are_not_kept(place, capsys):
    import resource

    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    Image.fromarray(noise).save("in/a.jpg", quality=95)
    write_video(place / "in/film.avi", frames=[noise] * 4)
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        assert run("in", "-o", "out", "--weights", "w.safetensors") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    out, err = capsys.readouterr()
    assert out == "out: 2 restored, 2 failed\n"
    assert "error: out/a.jpg: cannot be written (File too large)\n" in err
    assert "error: out/film.avi: cannot be written (File too large)\n" in err
    assert sorted(path.name for path in place.rglob("out/**/*.*")) == ["a.png", "b.png"]


def test_symbolic_link_has_its_own_result(place, capsys):
    (place / "in/link.png").symlink_to("a.png")
    assert run("in", "in/a.png", "-o", "out", "--weights", "w.safetensors") == 0
    assert capsys.readouterr().out == "out: 3 restored\n"
    np.testing.assert_array_equal(pixels("out/a.png"), pixels("out/link.png"))
    (place / "again").mkdir()
    (place / "again/a.png").symlink_to(place / "out/a.png")
    assert run("again/a.png", "-o", "out", "--weights", "w.safetensors", "--overwrite") == 2
    assert "-o: out/a.png is an input itself and would be replaced" in capsys.readouterr().err
