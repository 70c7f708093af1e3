"""``--sheet``: one image of inputs and results."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from restore_cases import RGB
from tiny_network import save_tiny
from video_cases import write_video

from restormixer_arch import cli
from restormixer_arch.errors import UserError
from restormixer_arch.inference import contact_sheet
from restormixer_arch.inference.contact_sheet import GAP, HEIGHT, LINE, WIDTH, check_sheet
from restormixer_arch.inference.jobs import Jobs, find_jobs
from restormixer_arch.inference.shards import Shard


@pytest.fixture
def place(folder):
    (folder / "in/sub").mkdir(parents=True)
    Image.fromarray(RGB).save(folder / "in/a.png")
    save_tiny(folder / "w.safetensors")
    return folder


def run(*arguments):
    return cli.main(["restore", "in", "-o", "out", "--weights", "w.safetensors", "--tile", "192", *arguments])


def thumbnail(sheet, column, row=0):
    """The pixels of a thumbnail's frame on a sheet with one column of rows."""
    top, left = GAP + LINE + row * (HEIGHT + LINE + GAP), GAP + column * (WIDTH + GAP)
    return np.asarray(sheet)[top : top + HEIGHT, left : left + WIDTH]


def test_sheet_shows_input_result_and_amplified_difference(place, capsys):
    assert run("--sheet", "sheet.png") == 0
    assert capsys.readouterr().out == "out: 1 restored\n"
    with Image.open("sheet.png") as sheet:
        assert sheet.mode == "RGB"
        with Image.open("out/a.png") as result:
            after = np.asarray(result)
        difference = np.clip(4 * np.abs(RGB.astype(int) - after), 0, 255)
        for column, image in enumerate((RGB, after, difference)):
            large = image.repeat(8, 0).repeat(8, 1)  # 30 x 20 pixels, 8 times larger
            top, left = (HEIGHT - 160) // 2, (WIDTH - 240) // 2
            np.testing.assert_array_equal(thumbnail(sheet, column)[top : top + 160, left : left + 240], large)
    assert not list(place.glob(".part-*"))


def test_sheet_of_mixed_file_types(place, capsys):
    deep = RGB.astype(np.uint16) * 257
    cv2.imwrite("in/deep.png", deep)
    cv2.imwrite("in/deep_gray.tif", deep[..., 0])
    Image.fromarray(RGB[..., 0]).save("in/gray.jpg")
    Image.fromarray(np.dstack([RGB, np.full((20, 30), 0, np.uint8)])).save("in/sub/\u00e9clair \u043c\u0438\u0440.png")
    Image.fromarray(RGB).resize((900, 10)).save("in/" + "wide" * 40 + ".png")
    Image.fromarray(RGB).resize((1, 1)).save("in/dot.png")
    (place / "in/broken.png").write_bytes(b"")
    write_video(place / "in/film.mp4", count=2)
    assert run("--sheet", "out/sheet.jpg") == 2  # because of the broken file
    assert "out: 8 restored, 1 failed" in capsys.readouterr().out
    with Image.open("out/sheet.jpg") as sheet:
        assert sheet.size == (2 * (3 * WIDTH + 2 * GAP + 3 * GAP) - GAP, GAP + LINE + 4 * (HEIGHT + LINE + GAP) + LINE)


def test_transparent_and_16_bit_pixels_become_8_bit_rgb():
    from restormixer_arch.data.images.picture import Picture

    deep = Picture(RGB[..., :1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(contact_sheet._to_rgb8(deep), RGB[..., :1].repeat(3, 2))
    half = np.where(np.arange(30) < 15, 0, 255).astype(np.uint8)[None].repeat(20, 0)
    flat = contact_sheet._to_rgb8(Picture(RGB, half))
    assert set(np.unique(flat[:, :15])) == {170, 210}
    np.testing.assert_array_equal(flat[:, 15:], RGB[:, 15:])


def test_sheet_shows_upsampled_results(place):
    save_tiny(place / "w.safetensors", upscale=2)
    assert run("--sheet", "sheet.png") == 0
    with Image.open("sheet.png") as sheet:
        middle = thumbnail(sheet, 1)[HEIGHT // 2 - 80 : HEIGHT // 2 + 80, 8:248]
    with Image.open("out/a.png") as result:
        np.testing.assert_array_equal(middle, np.asarray(result).repeat(4, 0).repeat(4, 1))


def test_results_may_exceed_the_size_limit_of_inputs(place, capsys):
    save_tiny(place / "w.safetensors", upscale=2)
    limit = ("--max-pixels", str(RGB.shape[0] * RGB.shape[1]))
    assert run("--sheet", "sheet.png", *limit) == 0 and Path("sheet.png").is_file()
    assert run("--compare", *limit) == 0 and Path("out/a_compare.png").is_file()
    assert "limit" not in capsys.readouterr().err


def test_sheet_shows_at_most_max_images_and_names_the_others(place, monkeypatch):
    monkeypatch.setattr(contact_sheet, "MAX_IMAGES", 3)
    jobs = Jobs(place / "out")
    for number in range(5):
        jobs.append(str(place / "in"), f"{number}.png")
        for folder in ("in", "out"):
            (place / folder).mkdir(exist_ok=True)
            Image.fromarray(RGB).save(place / folder / f"{number}.png")
    seen = []
    monkeypatch.setattr(contact_sheet, "_join", lambda rows, text: seen.append((len(rows), text)) or rows[0])
    contact_sheet.write_sheet(place / "s.png", jobs, overwrite=False)
    assert seen == [(3, "2 of 5 not shown: 1.png, 3.png")]
    assert (place / "s.png").is_file()


def test_long_names_are_shortened_in_the_middle(monkeypatch):
    image, seen = Image.new("RGB", (200, 30)), []
    monkeypatch.setattr(contact_sheet.ImageDraw.ImageDraw, "text", lambda self, place, text, *more: seen.append(text))
    contact_sheet._write(image, (0, 0), "short.png", 200)
    contact_sheet._write(image, (0, 0), "a" * 200 + "b" * 200 + ".png", 200, "  9 x 9")
    assert seen[0] == "short.png"
    assert seen[1].startswith("aaa") and "\u2026" in seen[1] and seen[1].endswith(".png  9 x 9") and len(seen[1]) < 40


def test_existing_results_are_shown(place, capsys):
    assert run() == 0
    assert run("--sheet", "sheet.png") == 0
    assert (
        capsys.readouterr().out
        == "out: 1 restored\nout: 1 already there (perhaps made with other weights; --overwrite restores it again)\n"
        and Path("sheet.png").is_file()
    )


def test_existing_sheet_is_replaced_only_with_overwrite(place, capsys):
    Path("sheet.png").write_bytes(b"mine")
    assert run("--sheet", "sheet.png") == 2
    line = "basicsr: error: --sheet: sheet.png already exists; choose another name, or use --overwrite\n"
    assert capsys.readouterr().err == line
    assert not Path("out").exists() and Path("sheet.png").read_bytes() == b"mine"
    assert run("--sheet", "sheet.png", "--overwrite") == 0
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("sheet", "message"),
    [
        ("sheet.gif", "sheet.gif must end in .png, .jpg, .jpeg"),
        ("none/sheet.png", "there is no folder 'none'"),
        ("out/a.png", "out/a.png is a file of this run; choose another name"),
        ("in/a.png", "in/a.png is a file of this run; choose another name"),
        ("in/sheet.png", "in/sheet.png is in an input folder, so the next run would restore it; put it into out"),
    ],
)
def test_invalid_sheet_paths_are_rejected(place, capsys, sheet, message):
    assert run("--sheet", sheet) == 2
    assert capsys.readouterr().err == f"basicsr: error: --sheet: {message}\n"


@pytest.mark.parametrize(
    ("inputs", "out", "sheet", "message"),
    [
        (["n*.png"], "out", "nsheet.png", "nsheet.png matches 'n*.png', so the next run would restore it; put it"),
        (["**/*.png"], "out", "in/s.png", "in/s.png matches '**/*.png', so the next run would restore it; put it"),
        (["more/sub"], "more", "more/sub/s.png", "more/sub/s.png is in an input folder, so the next run would"),
        (["more/*/*.png"], "more", "more/sub/s.png", None),
        (["n*.png"], "out", "sheet.png", None),
        (["**/*.png"], "out", "out/s.png", None),
        (["in/*.png"], "in/out", "in/out/s.png", None),
    ],
)
def test_sheet_that_the_next_run_would_restore_is_rejected(place, inputs, out, sheet, message):
    for name in ("n1.png", "more/sub/2.png", out + "/3.png"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(b"x")
    if message is None and out == "more":  # a pattern that begins in the output folder also matches results
        message = "more/sub/s.png matches 'more/*/*.png'"
    jobs, again = find_jobs(inputs, Path(out)), Path(sheet)
    if message is None:
        assert check_sheet(again, jobs, inputs, Shard(), overwrite=False) == again
        again.write_bytes(b"x")
        assert len(find_jobs(inputs, Path(out))) == len(jobs)
    else:
        with pytest.raises(UserError) as caught:
            check_sheet(again, jobs, inputs, Shard(), overwrite=False)
        assert str(caught.value).startswith(f"--sheet: {message}")
        again.write_bytes(b"x")
        assert len(find_jobs(inputs, Path(out))) == len(jobs) + 1


def test_line_break_in_a_name_is_escaped(place, monkeypatch):
    Image.fromarray(RGB).save("in/two\nlines.png")
    write, seen = contact_sheet._write, []
    monkeypatch.setattr(contact_sheet, "_write", lambda *given: seen.append(given[2]) or write(*given))
    assert run("--sheet", "sheet.png") == 0
    assert "two\\nlines.png" in seen and Path("sheet.png").is_file()


def test_failed_sheet_does_not_block_other_processes(place, capsys, monkeypatch):
    """torchrun ends all processes when one fails, so the failing process waits for the others first."""
    from restormixer_arch.cli import restore

    waited = []
    monkeypatch.setattr(restore, "wait_for_all", lambda: waited.append(1))
    monkeypatch.setattr(contact_sheet, "_check_new", lambda path, overwrite: None)
    (place / "sheet.png").mkdir()
    assert run("--sheet", "sheet.png") == 2 and waited == [1]
    assert "error: --sheet: sheet.png cannot be written (" in capsys.readouterr().err


def test_no_sheet_is_written_without_images(place, capsys):
    (place / "in/a.png").write_bytes(b"")
    assert run("--sheet", "sheet.png") == 2
    assert "note: --sheet: no picture to show, sheet.png is not written" in capsys.readouterr().err
    assert not Path("sheet.png").exists()


def test_each_shard_writes_its_own_sheet(place):
    for name in "bcdefgh":
        Image.fromarray(RGB).save(f"in/{name}.png")
    for index in (1, 2):
        assert run("--sheet", "sheet.png", "--shard", f"{index}/2") == 0
    assert sorted(path.name for path in place.glob("sheet*")) == ["sheet.1-of-2.png", "sheet.2-of-2.png"]
