"""``basicsr prepare pairs``: training and validation sets from the user's own folders, and user errors."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paired_folders import init, names, picture, prepare

from restormixer_arch.data.lmdb_io import LmdbImages, write_lmdb
from restormixer_arch.data.preparation.find_pairs import Found, Unit, clear_folder_cache
from restormixer_arch.data.preparation.layouts import Part, PublicSet
from restormixer_arch.data.preparation.overlap import find_copies
from restormixer_arch.data.preparation.own_pairs import find_own_images


def test_two_folders_are_split_into_training_and_validation_sets(own, capsys):
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/mine", "--val", "3") == 0
    train, val = names("sets/mine/train_gt.lmdb"), names("sets/mine/val_gt.lmdb")
    assert len(train) == 9 and len(val) == 3 and sorted(train + val) == [f"{n:02}" for n in range(12)]
    assert names("sets/mine/train_lq.lmdb") == train and names("sets/mine/val_lq.lmdb") == val
    stored = cv2.imdecode(np.frombuffer(LmdbImages(Path("sets/mine/val_lq.lmdb"), "").content(val[0]), np.uint8), 1)
    assert np.array_equal(stored, picture(int(val[0])) // 2)
    assert "next: basicsr init --data sets/mine" in capsys.readouterr().out


@pytest.mark.parametrize("clean", ["", "_gt", "_GT", "_clean"])
@pytest.mark.parametrize(
    "rename",
    [lambda n: f"{n}_rain", lambda n: f"{n}_LQ", lambda n: f"{n}_hazy", lambda n: f"{n}_1"],
    ids=["_rain", "_LQ", "_hazy", "many to one"],
)
def test_names_with_different_endings_are_paired(own, rename, clean):
    if clean and rename("") == "_1":
        pytest.skip("images of one scene are numbered behind its own name")
    for file in sorted(Path("lq").iterdir()):
        file.rename(file.with_stem(rename(file.stem)))
    for file in sorted(Path("gt").iterdir()):
        file.rename(file.with_stem(file.stem + clean))
    clear_folder_cache()
    (train, val) = find_own_images(Path("gt"), Path("lq"), 2)
    units = [*train.units, *val.units]
    assert len(units) == 12
    stems = {unit.gt.stem.removesuffix(clean): path.stem for unit in units for _, _, path in unit.degraded}
    assert stems == {f"{n:02}": rename(f"{n:02}") for n in range(12)}


def test_images_of_a_scene_are_not_split_between_training_and_validation(own, capsys):
    """Each of twelve scenes has three degraded images, so two scenes for validation are six pairs."""
    for file in sorted(Path("lq").iterdir()):
        for number in (1, 2, 3):
            shutil.copy(file, file.with_stem(f"{file.stem}_{number}"))
        file.unlink()
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/many", "--val", "2") == 0
    assert "pairs train: 30 pairs" in capsys.readouterr().out
    train, val = ({name.partition("_")[0] for name in names(f"sets/many/{part}_lq.lmdb")} for part in ("train", "val"))
    assert len(names("sets/many/val_gt.lmdb")) == 6 and len(val) == 2 and len(train) == 10 and not train & val
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/tenth") == 0
    assert len(names("sets/tenth/val_gt.lmdb")) == 3  # three pairs: a tenth of twelve scenes is one scene
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "o", "--val", "12") == 2
    assert "gt: has 12 images, of which 12 are for validation" in capsys.readouterr().err


def test_folders_with_the_same_name_are_distinguished(own, capsys):
    for kind in ("gt", "lq"):
        Path(f"{kind}/img").mkdir()
        for file in Path(kind).glob("*.png"):
            file.rename(f"{kind}/img/{file.name}")
    arguments = ["--gt", "gt/img", "--lq", "lq/img", "--out", "sets/mine"]
    assert prepare(*arguments) == 0
    first = json.loads(Path("sets/mine/train.jsonl").read_text().splitlines()[1])
    assert first["files"].keys() == {f"gt/{first['unit']}.png", f"lq/{first['unit']}.png"}
    assert prepare(*arguments) == 0 and capsys.readouterr().out.count("already prepared") == 2
    cv2.imwrite(f"gt/img/{first['unit']}.png", picture(77))
    assert prepare(*arguments) == 2
    text = "train_gt.lmdb: was prepared from other files, or they have changed since; remove it and train_lq.lmdb, or"
    assert text in capsys.readouterr().err


@settings(max_examples=20)
@given(
    names=st.sets(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=20, max_size=40), val=st.integers(1, 9)
)
def test_split_depends_only_on_names(names, val):
    """Added images may replace others in validation, but never move an earlier training image to validation."""
    ordered = sorted(names)

    def split(some, monkeypatch):
        found = Found(PublicSet("", "", ()), Part("train", ()), [Unit(name, Path(name)) for name in some])
        monkeypatch.setattr("restormixer_arch.data.preparation.own_pairs._pair", lambda gt, lq: found)
        train, chosen = find_own_images(Path("gt"), None, val)
        assert not {unit.name for unit in train.units} & {unit.name for unit in chosen.units}
        return {unit.name for unit in chosen.units}

    with pytest.MonkeyPatch.context() as monkeypatch:
        few, all_names = split(ordered[:10], monkeypatch), split(ordered, monkeypatch)
    assert len(few) == len(all_names) == val
    assert all_names & set(ordered[:10]) <= few


def test_validation_pairs_are_generated_once(own, capsys):
    assert prepare("--gt", "gt", "--degrade", "rain,jpeg", "--out", "sets/drawn", "--val", "2") == 0
    assert len(names("sets/drawn/val_pairs/lq.lmdb")) == 4 and not Path("sets/drawn/train_lq.lmdb").exists()
    assert prepare("--gt", "gt", "--degrade", "rain,jpeg", "--out", "sets/drawn", "--val", "2") == 0
    assert "already prepared" in capsys.readouterr().out
    assert prepare("--gt", "gt", "--degrade", "rain", "--out", "sets/drawn", "--val", "2") == 2
    assert "sets/drawn/val_pairs: was made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["lmdb", "folder"])
def test_outputs_of_another_preparation_must_be_removed(own, capsys, form):
    """From paired folders to generated pairs and back: the outputs to remove are named; 'init' rejects a mixture."""
    end = ".lmdb" if form == "lmdb" else ""
    shared = ["--gt", "gt", "--val", "2", "--out", "set", "--format", form]
    assert prepare(*shared, "--lq", "lq") == 0
    assert prepare(*shared, "--degrade", "noise") == 2
    text = "was prepared from other files, or they have changed since"
    four = f"it, train_lq{end}, val_gt{end} and val_lq{end}"
    end_of_line = ", or choose another --out, to prepare it again\n"
    assert capsys.readouterr().err.endswith(f"set/train_gt{end}: {text}; remove {four}{end_of_line}")
    for part in ("train", "val"):
        shutil.rmtree(f"set/{part}_gt{end}")
    assert prepare(*shared, "--degrade", "noise") == 2
    assert f"set/train_lq{end}: {text}; remove it and val_lq{end}, or" in capsys.readouterr().err
    for part in ("train", "val"):
        Path(f"set/{part}_lq{end}").rename(f"{part}_kept")
    assert prepare(*shared, "--degrade", "noise") == 0
    for part in ("val", "train"):
        Path(f"{part}_kept").rename(f"set/{part}_lq{end}")
    assert init("--data", "set", "-o", "my.yml") == 2
    assert capsys.readouterr().err.endswith(
        f"--data: set has both train_lq{end} and val_lq{end} and val_pairs, which come from two different "
        "preparations; remove what does not belong to the set\n"
    )
    for place in (f"train_gt{end}", f"train_lq{end}", f"val_gt{end}", f"val_lq{end}"):
        shutil.rmtree(Path("set", place))
    assert prepare(*shared, "--lq", "lq") == 2
    text, choose = (
        "already exists and was not created by this command",
        "choose another --out or, if they are not originals,",
    )
    assert capsys.readouterr().err.endswith(f"set/val_pairs: {text}; {choose} remove it\n")


def test_old_validation_images_must_be_removed(own, capsys):
    """With ``--val 0``, the same images are used for training."""
    shared = ["--gt", "gt", "--lq", "lq", "--out", "set"]
    assert prepare(*shared, "--val", "2") == 0 and prepare(*shared, "--val", "0") == 2
    assert "train_gt.lmdb: was prepared from other files, or they have" in (error := capsys.readouterr().err)
    assert "; remove it, train_lq.lmdb, val_gt.lmdb and val_lq.lmdb, or choose another --out" in error
    shutil.rmtree("set/train_gt.lmdb"), shutil.rmtree("set/train_lq.lmdb")
    assert prepare(*shared, "--val", "0") == 2
    text = "set/val_gt.lmdb: already exists and was not created by this command; choose another --out or, if they"
    assert text in capsys.readouterr().err


@pytest.mark.parametrize("recorded", [True, False], ids=["this version", "an earlier one"])
def test_validation_pairs_that_do_not_belong_to_the_dataset_are_rejected(own, capsys, recorded):
    """Either their format differs, or their clean images were chosen before others were added."""
    arguments = ["--gt", "gt", "--degrade", "rain", "--val", "2", "--out", "set"]
    assert prepare(*arguments) == 0
    record = Path("set/val_pairs/made_with.json")
    made = json.loads(record.read_text())
    before = names("set/val_gt.lmdb")
    assert made["format"] == "lmdb"
    assert made["images"] == {name: Path(f"gt/{name}.png").stat().st_size for name in before}
    if not recorded:
        record.write_text(json.dumps({key: made[key] for key in made if key not in ("format", "images")}))
    capsys.readouterr()
    assert prepare(*arguments) == 0 and capsys.readouterr().out.count("already prepared") == 3
    assert prepare(*arguments, "--format", "folder") == 2
    assert capsys.readouterr().err.endswith(
        "set/train_gt.lmdb: was prepared with other settings ({'format': 'lmdb'}, now {'format': 'folder'}); remove "
        "it, val_gt.lmdb and val_pairs, or choose another --out, to prepare it again\n"
    )
    for number in range(12, 40):
        cv2.imwrite(f"gt/{number:02}.png", picture(number))
    shutil.rmtree("set/train_gt.lmdb")
    shutil.rmtree("set/val_gt.lmdb")
    assert prepare(*arguments) == 2
    assert names("set/val_gt.lmdb") != before
    assert "set/val_pairs: was made of other clean images; remove it or" in capsys.readouterr().err


def test_validation_pairs_of_a_changed_image_are_rejected(own, capsys):
    arguments = ["--gt", "gt", "--degrade", "rain", "--val", "2", "--out", "set"]
    assert prepare(*arguments) == 0
    cv2.imwrite(f"gt/{names('set/val_gt.lmdb')[0]}.png", picture(77))
    shutil.rmtree("set/val_gt.lmdb")
    assert prepare(*arguments) == 2
    assert "set/val_pairs: was made of other clean images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gt", "gt", "--out", "o"], "expected either --lq or --degrade"),
        (["--gt", "gt", "--lq", "lq", "--degrade", "rain", "--out", "o"], "expected either --lq or --degrade"),
        (["--gt", "gt", "--degrade", "rian", "--out", "o"], "Did you mean 'rain'?"),
        (["--gt", "gt", "--degrade", "down", "--out", "o"], "scale 1 does not allow 'down'"),
        (["--gt", "gt", "--lq", "lq", "--scale", "2", "--out", "o"], "--scale: belongs to --degrade"),
        (
            ["--gt", "gt", "--lq", "lq", "--val", "12", "--out", "o"],
            "gt: has 12 images, of which 12 are for validation",
        ),
        (["--gt", "gt", "--degrade", "rain", "--val", "0", "--out", "o"], "--val: expected at least 1 with --degrade"),
        (["--gt", "nothing", "--lq", "lq", "--out", "o"], "nothing"),
        (["--gt", "", "--degrade", "rain", "--out", ""], "argument --gt: expected a name, got an empty string"),
        (["--gt", "gt", "--lq", "", "--out", "o"], "argument --lq: expected a name, got an empty string"),
        (["--gt", "gt", "--lq", "lq", "--out", ""], "argument -o/--out/--output: expected a name, got an empty string"),
        (
            ["--gt", "gt", "--lq", "lq/../gt", "--out", "o"],
            "--lq: 'lq/../gt' is the folder of --gt, expected the folder of the degraded images",
        ),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(own, capsys, arguments, message):
    assert prepare(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("o").exists()


def test_image_without_a_partner_is_rejected(own, capsys):
    Path("lq/03.png").rename("lq/33.png")
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "o") == 2
    assert "lq/33.png: has no clean partner '33' in gt" in capsys.readouterr().err
    Path("lq/33.png").unlink()
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "o") == 2
    assert "gt/03.png: has no degraded partner in lq (1 such images)" in capsys.readouterr().err
    Path("lq").rename("gt/lq")
    assert prepare("--gt", "gt", "--lq", "gt/lq", "--out", "o") == 2
    assert "gt/03.png: has no degraded partner in gt/lq (1 such images)" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_name_that_is_not_utf8_is_rejected(own, capsys):
    for kind in ("gt", "lq"):
        os.rename(f"{kind}/00.png", os.fsencode(kind) + b"/caf\xe9.png")
    for degraded in (["--lq", "lq"], ["--degrade", "rain"]):
        assert prepare("--gt", "gt", *degraded, "--out", "o") == 2
        error = capsys.readouterr().err
        assert "gt: the name 'caf\\udce9.png' is not UTF-8; rename it" in error and error.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="no such names there")
def test_names_may_have_spaces_but_no_control_characters_or_line_breaks(own, capsys):
    for kind in ("gt", "lq"):
        for number, name in enumerate((" a", "b c", "d ", "\u00e9\u2003f")):
            Path(f"{kind}/0{number}.png").rename(f"{kind}/{name}.png")
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "set", "--val", "2") == 0
    for kind in ("gt", "lq"):
        images = [LmdbImages(Path(f"set/{part}_{kind}.lmdb"), "x") for part in ("train", "val")]
        assert {" a", "b c", "d ", "\u00e9\u2003f"} <= {name for reader in images for name in reader.names}
        assert all(reader.read(name).shape == (64, 64, 3) for reader in images for name in reader.names)
    for name in ("a\nb", "x\u2028y", "t\tz", "\x1b[2J"):
        Path("gt/11.png").rename(f"gt/{name}.png")
        assert prepare("--gt", "gt", "--degrade", "rain", "--out", "o") == 2
        error = capsys.readouterr().err
        shown = repr(f"{name}.png")
        text = f"gt: the name {shown} has a control character or a line break in it; rename it\n"
        assert error.endswith(text) and error.count("\n") == 1
        Path(f"gt/{name}.png").rename("gt/11.png")


def test_training_images_in_a_test_set_are_found(own, capsys):
    """Copies saved as JPEG or downsampled are found; flipped copies and other images are not."""
    Path("sets/public/test_gt").mkdir(parents=True)
    cv2.imwrite("sets/public/test_gt/copy.jpg", picture(4), [cv2.IMWRITE_JPEG_QUALITY, 80])
    cv2.imwrite("sets/public/test_gt/small.png", cv2.resize(picture(7), (40, 40), interpolation=cv2.INTER_AREA))
    cv2.imwrite("sets/public/test_gt/mirrored.png", picture(5)[:, ::-1])
    cv2.imwrite("sets/public/test_gt/other.png", picture(99))
    copies = find_copies(sorted(Path("gt").iterdir()), Path("sets"))
    assert copies == [
        (Path("gt/04.png"), "public/test_gt: copy"),
        (Path("gt/07.png"), "public/test_gt: small"),
    ]
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/mine", "--val", "0") == 0
    assert (
        "pairs train: training images that are also in a test or validation set: 2, first gt/04.png"
        in capsys.readouterr().err
    )


def test_copies_cropped_to_multiples_of_12_are_found(tmp_path):
    """As in test sets for super-resolution; copies cropped otherwise are not found."""
    rng = np.random.default_rng(0)
    (tmp_path / "sets/SR/test_gt").mkdir(parents=True)
    (tmp_path / "sets/DIV2K/valid_gt").mkdir(parents=True)
    sizes = [(height, width) for height in (239, 240, 241, 250) for width in (203, 204, 210, 215)]
    sources = [tmp_path / f"{height}x{width}.png" for height, width in sizes]
    for file, (height, width) in zip(sources, sizes, strict=True):
        image = cv2.resize(rng.integers(0, 256, (6, 6), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(file), image)
        folder = "DIV2K/valid_gt" if (height, width) == (241, 203) else "SR/test_gt"
        cv2.imwrite(str(tmp_path / "sets" / folder / file.name), image[: height // 12 * 12, : width // 12 * 12])
        cv2.imwrite(str(tmp_path / f"other_{file.name}"), image[:-24, :-24])
    found = find_copies([*sources, *tmp_path.glob("other_*.png")], tmp_path / "sets")
    folders = {"241x203": "DIV2K/valid_gt"}
    assert found == [(file, f"{folders.get(file.stem, 'SR/test_gt')}: {file.stem}") for file in sources]


def test_training_images_that_are_also_validation_images_are_found(own, capsys):
    """A photograph that was saved twice under different names."""
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/before", "--val", "1") == 0
    capsys.readouterr()
    (chosen,) = names("sets/before/val_gt.lmdb")
    double = "03" if chosen != "03" else "04"
    cv2.imwrite(f"gt/{double}.png", picture(int(chosen)))
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/mine", "--val", "1") == 0
    text = f"validation set: 1, first gt/{double}.png (mine/val_gt.lmdb: {chosen})"
    assert text in capsys.readouterr().err


def test_unreadable_images_are_skipped_in_the_comparison_with_test_sets(own, capsys):
    """Empty files, broken links, an LMDB without one of its listed keys, and a folder that is not an LMDB."""
    write_lmdb(Path("sets/public/test_gt.lmdb"), [("copy", picture(4)), ("lost", picture(5))])
    with lmdb.open("sets/public/test_gt.lmdb", lock=False) as environment, environment.begin(write=True) as writing:
        writing.delete(b"lost")
    Path("sets/none/test_gt.lmdb").mkdir(parents=True)
    Path("sets/broken/test_gt").mkdir(parents=True)
    Path("sets/broken/test_gt/x.png").symlink_to("gone.png")
    for kind in ("gt", "lq"):
        Path(f"{kind}/00.png").write_bytes(b"")
        Path(f"{kind}/01.png").unlink()
        Path(f"{kind}/01.png").symlink_to("gone.png")
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/mine", "--val", "2", "--skip-bad") == 0
    said = capsys.readouterr()
    assert (
        "training images that are also in a test or validation set: 1, first gt/04.png (public/test_gt.lmdb: copy)"
        in said.err
    )
    assert "are not compared with those of another set: sets/none/test_gt.lmdb: " in said.err
    assert said.out.count("; 1 skipped") + 2 * said.out.count("; 2 skipped") == 2
    made = [names(f"sets/mine/{part}_lq.lmdb") for part in ("train", "val")]
    assert sorted(sum(made, [])) == [f"{n:02}" for n in range(2, 12)]


def test_repaired_file_is_noticed(own, capsys):
    Path("lq/05.png").unlink()
    Path("lq/05.png").symlink_to("gone.png")
    arguments = ["--gt", "gt", "--lq", "lq", "--out", "sets/mine", "--val", "0", "--skip-bad"]
    assert prepare(*arguments) == 0 and prepare(*arguments) == 0
    assert "1 skipped; already prepared" in capsys.readouterr().out
    Path("lq/05.png").unlink()
    cv2.imwrite("lq/05.png", picture(5) // 2)
    assert prepare(*arguments) == 2
    assert "was prepared from other files, or they have changed since; remove it and" in capsys.readouterr().err


def test_name_conflict_with_a_sub_image_is_rejected(own, capsys):
    for kind in ("gt", "lq"):
        cv2.imwrite(f"{kind}/00_s001.png", picture(50))
        cv2.imwrite(f"{kind}/00.png", picture(51, 120))
    cut = ["--gt", "gt", "--lq", "lq", "--out", "o", "--val", "0", "--crop", "96"]
    assert prepare(*cut) == 2
    text = "gt/00_s001.png: would be stored as '00_s001' (gt), and so would a part of '00'; rename one of them\n"
    assert capsys.readouterr().err.endswith(text)
    assert prepare(*cut) == 2 and capsys.readouterr().err.endswith(text)  # the first call stored nothing
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "o", "--val", "0", "--crop", "0") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
def test_concurrent_preparation_is_rejected(own, capsys):
    code = (
        "import sys\nfrom pathlib import Path\nfrom restormixer_arch.folder_lock import locked\n"
        "with locked(Path('sets/mine'), 'x'):\n    print('taken', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"taken\n"
        assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/mine") == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"basicsr: error: sets/mine: process {other.pid} on ")
        assert line.endswith(" is writing into it; wait for it, or choose another --out")
        other.kill()
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/mine") == 0


def test_output_in_the_working_directory(own, monkeypatch, capsys):
    Path("sets/mine").mkdir(parents=True)
    Path("sets/public/test_gt").mkdir(parents=True)
    cv2.imwrite("sets/public/test_gt/copy.png", picture(4))
    monkeypatch.chdir("sets/mine")
    assert prepare("--gt", "../../gt", "--degrade", "rain", "--out", ".", "--val", "1") == 0
    said = capsys.readouterr()
    assert (
        "pairs mine: rain; 1 pairs -> val_pairs" in said.out
        and "training images that are also in a test or validation set: 1" in said.err
    )


def test_images_in_sub_folders_are_skipped_with_a_warning(own, capsys):
    """Those in hidden folders, and in a folder that is itself an argument, are not counted."""
    Path("lq").rename("gt/lq")
    for place in ("gt/a/b", "gt/c", "gt/.cache", "gt/lq/d"):
        Path(place).mkdir(parents=True)
        shutil.copy("gt/00.png", f"{place}/0.png")
    Path("gt/c/notes.txt").write_text("x")
    assert prepare("--gt", "gt", "--lq", "gt/lq", "--out", "set") == 0
    text = "images in its subfolders were skipped; prepare each folder as a separate dataset"
    assert capsys.readouterr().err.splitlines() == [
        f"basicsr: warning: gt: 2 {text}",
        f"basicsr: warning: gt/lq: 1 {text}",
    ]


def test_folder_with_images_only_in_sub_folders_is_rejected(own, capsys):
    for kind in ("gt", "lq"):
        Path(kind).rename("inner")
        Path(kind).mkdir()
        Path("inner").rename(f"{kind}/inner")
    hint = "; 12 images are in its subfolders, which are not read; give one of them instead\n"
    for arguments in (["--gt", "gt", "--degrade", "rain"], ["--gt", "gt/inner", "--lq", "lq"]):
        assert prepare(*arguments, "--out", "o") == 2
        error = capsys.readouterr().err
        assert ": contains no images (.bmp" in error and error.endswith(hint) and error.count("\n") == 1
