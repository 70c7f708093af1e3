"""``basicsr degrade``: overview sheet, speeds, fixed sets and user errors."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from restormixer_arch.cli import main
from restormixer_arch.data.degradations import sheet
from restormixer_arch.data.degradations.labels import NAMES
from restormixer_arch.errors import UserError


@pytest.fixture
def photo(folder):
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8), (0, 0), 3)
    cv2.imwrite("photo.png", image)
    return image[..., ::-1].astype(np.float32) / 255


def test_sheet_has_an_image_for_every_label(photo, capsys):
    assert main(["degrade", "sheet", "--photo", "photo.png", "--out", "sheet.png", "--seed", "2"]) == 0
    assert capsys.readouterr().out.startswith("sheet.png: ")
    drawn = cv2.imread("sheet.png")[..., ::-1]
    height, width = sheet.CELL
    assert drawn.shape == (4 * (height + sheet.CAPTION), 6 * width, 3) and len(sheet.LABELS) == 21
    clean = np.round(sheet.fill(photo, sheet.CELL) * 255)
    np.testing.assert_array_equal(drawn[:height, :width], clean)
    cells = [
        drawn[row * (height + sheet.CAPTION) : row * (height + sheet.CAPTION) + height, column * width :][:, :width]
        for row in range(3)
        for column in range(6)
    ]
    assert all(np.abs(cell.astype(float) - clean).mean() > 0.1 for cell in cells[1:])
    assert len({cell.tobytes() for cell in cells}) == 18
    assert np.array_equal(drawn, sheet.make_sheet(photo, seed=2))


def test_sheet_does_not_replace_files_without_overwrite(photo, capsys):
    before = Path("photo.png").read_bytes()
    arguments = ["degrade", "sheet", "--photo", "photo.png", "--out"]
    for out in (["photo.png"], ["./photo.png", "--overwrite"]):
        assert main([*arguments, *out]) == 2
        assert capsys.readouterr().err.endswith("--out: 'photo.png' is the photograph; choose another file\n")
    Path("mine.png").write_bytes(b"mine")
    assert main([*arguments, "mine.png"]) == 2
    message = "--out: 'mine.png' already exists; choose another file, or use --overwrite\n"
    assert capsys.readouterr().err.endswith(message) and Path("mine.png").read_bytes() == b"mine"
    assert main([*arguments, "mine.png", "--overwrite"]) == 0
    assert cv2.imread("mine.png") is not None and Path("photo.png").read_bytes() == before


def test_rest_of_an_incomplete_row_is_white(photo):
    drawn = sheet.make_sheet(photo, ("clean", "rain", "low", "haze", "snow", "jpeg", "noise"))
    assert (drawn[-sheet.CELL[0] - sheet.CAPTION :, sheet.CELL[1] :] == 255).all()


def test_missing_photograph_is_reported(photo, capsys):
    assert main(["degrade", "sheet", "--photo", "none.png", "--out", "sheet.jpg"]) == 2
    assert "none.png: cannot be read (No such file" in capsys.readouterr().err


def test_sheet_with_invalid_input_or_output_is_rejected(photo, folder):
    with pytest.raises(UserError, match=r"x\.gif: must end in \.png or \.jpg"):
        sheet.write_sheet(folder / "photo.png", folder / "x.gif")
    with pytest.raises(UserError, match=r"x\.png: cannot be written \(No such file"):
        sheet.write_sheet(folder / "photo.png", folder / "none" / "x.png")
    (folder / "text.png").write_text("text")
    with pytest.raises(UserError, match=r"text\.png: cannot be decoded"):
        sheet.write_sheet(folder / "text.png", folder / "x.png")


@pytest.mark.parametrize("size", [16, 33])
def test_speed_is_printed_for_every_degradation(capsys, size):
    assert main(["degrade", "speed", "--size", str(size), "--seconds", "0.001"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"images/s of {size}x{size} RGB on one thread"
    assert [line.split()[0] for line in lines[1:]] == [*sheet.DEGRADATIONS, "low_haze_rain", "low_haze_snow"]
    assert all(float(line.split()[1]) > 0 for line in lines[1:])


def test_fixed_set_is_written_to_folders_or_lmdbs(photo, folder, capsys):
    (folder / "clean").mkdir()
    cv2.imwrite("clean/a.png", np.full((30, 40, 3), 90, np.uint8))
    arguments = ["degrade", "set", "--gt", "clean", "--out", "fixed", "--labels", "rain", "low_snow", "--gt-size", "16"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "fixed: 2 pairs under 2 labels (rain, low_snow)\n"
    assert cv2.imread("fixed/lq/low_snow/a_low_snow.png").shape == (16, 16, 3)
    assert main(["degrade", "set", "--gt", "clean", "--out", "eleven", "--lmdb"]) == 0
    assert "11 pairs under 11 labels" in capsys.readouterr().out
    assert (folder / "eleven/lq.lmdb/data.mdb").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shet"], "unknown action 'shet', expected sheet, set, speed, others, coverage. Did you mean 'sheet'?"),
        (["set", "--gt", "nowhere", "--out", "deep/x"], "--gt: 'nowhere' does not exist"),
        (["set", "--gt", ".", "--out", "x", "--seed", "-1"], "expected a whole number from 0, got '-1'"),
        (["set", "--gt", ".", "--out", "x", "--scale", "0"], "expected a positive whole number, got '0'"),
        (["set", "--gt", "", "--out", "x"], "argument --gt: expected a name, got an empty string"),
        (["others", "--gt", "", "--out", "x"], "argument --gt: expected a name, got an empty string"),
        (
            ["coverage", "--gt", "", "--lq", "x", "--labels", "rain"],
            "argument --gt: expected a name, got an empty string",
        ),
        (
            ["coverage", "--gt", "x", "--lq", "", "--labels", "rain"],
            "argument --lq: expected a name, got an empty string",
        ),
        (["speed", "--seconds", "0"], "--seconds: expected a positive number, got '0'"),
        (["speed", "--seconds", "nan"], "--seconds: expected a positive number, got 'nan'"),
        (["speed", "--size", "15"], "--size: expected a whole number from 16, got '15'"),
        (["sheet", "--photo", "photo.png", "--uot", "x.png"], "required: -o/--out/--output"),
        (["sheet", "--photo", "none.png", "--out", "x.png"], "none.png: cannot be read"),
    ],
)
def test_invalid_arguments(folder, capsys, arguments, message):
    assert main(["degrade", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(folder.iterdir())


def test_help(capsys):
    for arguments, code in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as left:
            main(["degrade", *arguments])
        out = capsys.readouterr().out
        assert left.value.code == code and "write a fixed validation set" in out
        assert all(f"  {name} " in out and what in out for name, what in NAMES.items())
    with pytest.raises(SystemExit):
        main(["degrade", "set", "--help"])
    assert "--labels" in capsys.readouterr().out


def test_shipped_sheet_matches_the_command():
    samples = Path(sheet.__file__).parents[1] / "samples"
    shipped = cv2.imread(str(samples / "degradations.jpg"))[..., ::-1]
    photo = cv2.imread(str(samples / "pictures/clean/budgie-backgrounds__perched-osprey.png"))[..., ::-1]
    drawn = sheet.make_sheet(np.ascontiguousarray(photo, np.float32) / 255)
    assert (samples / "degradations.jpg").stat().st_size < 500_000
    assert np.abs(shipped.astype(float) - drawn).mean() < 6  # JPEG removes most of the noise in the noisy images


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--gt", "nothing"), "--gt: 'nothing' does not exist"),
        (("--gt", "clean", "--labels", "hze"), "--labels: 'hze' is not a degradation label"),
        (("--gt", "clean", "--labels", "haze", "--scale", "2"), "--labels: scale 2 needs 'down' or 'blind'"),
        (
            ("--gt", "clean", "--labels", "down", "--scale", "2", "--gt-size", "9"),
            "--gt-size: got 9, expected a multiple of scale 2",
        ),
    ],
)
def test_errors_name_the_command_line_option(folder, capsys, arguments, message):
    assert main(["degrade", "set", *arguments, "--out", "fixed"]) == 2
    assert capsys.readouterr().err.startswith(f"basicsr: error: {message}")
