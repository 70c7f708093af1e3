"""``basicsr prepare pairs`` and ``basicsr init``: from two folders of your own to a training, and what goes wrong."""

import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from restormixer_arch import cli
from restormixer_arch.config.check import read_request
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.data.preparation.find_pairs import Found, Unit, forget_folders
from restormixer_arch.data.preparation.layouts import Part, PublicSet
from restormixer_arch.data.preparation.overlap import find_copies
from restormixer_arch.data.preparation.own_pairs import find_own_images
from restormixer_arch.training import new_options
from restormixer_arch.training.dry_run import Measured


def picture(seed, side=64):
    """A smooth picture that is unlike those of other seeds."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.resize(small, (side, side), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Folders gt and lq of twelve images, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for folder in ("gt", "lq"):
        Path(folder).mkdir()
    for number in range(12):
        cv2.imwrite(f"gt/{number:02}.png", picture(number))
        cv2.imwrite(f"lq/{number:02}.png", picture(number) // 2)
    return tmp_path


def prepare(*arguments):
    return cli.main(["prepare", "pairs", "--workers", "1", *arguments])


def names(path):
    return LmdbImages(Path(path), str(path)).names


def test_two_folders_become_a_training_and_a_validation_set(own, capsys):
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/mine", "--val", "3") == 0
    train, val = names("sets/mine/train_gt.lmdb"), names("sets/mine/val_gt.lmdb")
    assert len(train) == 9 and len(val) == 3 and sorted(train + val) == [f"{n:02}" for n in range(12)]
    assert names("sets/mine/train_lq.lmdb") == train and names("sets/mine/val_lq.lmdb") == val
    stored = cv2.imdecode(np.frombuffer(LmdbImages(Path("sets/mine/val_lq.lmdb"), "").content(val[0]), np.uint8), 1)
    assert np.array_equal(stored, picture(int(val[0])) // 2)
    assert "next: basicsr init --data sets/mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    "rename", [lambda n: f"{n}_rain", lambda n: f"{n}_LQ", lambda n: f"{n}_1"], ids=["_rain", "_LQ", "many to one"]
)
def test_names_that_differ_by_an_ending(own, rename):
    for file in sorted(Path("lq").iterdir()):
        file.rename(file.with_stem(rename(file.stem)))
    forget_folders()
    (train, val) = find_own_images(Path("gt"), Path("lq"), 2)
    units = [*train.units, *val.units]
    assert len(units) == 12
    assert all(path.stem == rename(unit.gt.stem) for unit in units for _, _, path in unit.degraded)


@settings(max_examples=20, deadline=None)
@given(
    names=st.sets(st.text("abcdef0123456789", min_size=1, max_size=6), min_size=20, max_size=40), val=st.integers(1, 9)
)
def test_the_split_depends_on_names_alone(names, val):
    """Images that are added move none from validation to training but those that they replace there."""
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


def test_degraded_images_that_are_made(own, capsys):
    assert prepare("--gt", "gt", "--degrade", "rain,jpeg", "--out", "sets/drawn", "--val", "2") == 0
    assert len(names("sets/drawn/val_pairs/lq.lmdb")) == 4 and not Path("sets/drawn/train_lq.lmdb").exists()
    assert prepare("--gt", "gt", "--degrade", "rain,jpeg", "--out", "sets/drawn", "--val", "2") == 0
    assert "there already" in capsys.readouterr().out
    assert prepare("--gt", "gt", "--degrade", "rain", "--out", "sets/drawn", "--val", "2") == 2
    assert "sets/drawn/val_pairs: was made with other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gt", "gt", "--out", "o"], "expected either --lq or --degrade"),
        (["--gt", "gt", "--lq", "lq", "--degrade", "rain", "--out", "o"], "expected either --lq or --degrade"),
        (["--gt", "gt", "--degrade", "rian", "--out", "o"], "Did you mean 'rain'?"),
        (["--gt", "gt", "--degrade", "down", "--out", "o"], "scale 1 allows no 'down'"),
        (["--gt", "gt", "--lq", "lq", "--scale", "2", "--out", "o"], "--scale: belongs to --degrade"),
        (
            ["--gt", "gt", "--lq", "lq", "--val", "12", "--out", "o"],
            "gt: has 12 images, of which 12 are for validation",
        ),
        (["--gt", "nothing", "--lq", "lq", "--out", "o"], "nothing"),
    ],
)
def test_mistakes_are_one_line(own, capsys, arguments, message):
    assert prepare(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("o").exists()


def test_an_image_without_a_partner(own, capsys):
    Path("lq/03.png").rename("lq/33.png")
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "o") == 2
    assert "lq/33.png: has no clean partner '33' in gt" in capsys.readouterr().err


def test_training_images_of_a_test_set_are_found(own, capsys):
    """Saved again as JPEG, and reduced: found. Mirrored, or another picture: not."""
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
    assert "pairs train: 2 training images are also in a test set, first gt/04.png" in capsys.readouterr().err


def init(*arguments):
    return cli.main(["init", *arguments])


@pytest.fixture
def quick(monkeypatch):
    """Iterations are not run: 96 pixels take 3 s, smaller patches half a second."""
    tried = []

    def measured(request):
        side = request.options["datasets"]["train"]["gt_size"]
        tried.append(side)
        return Measured([3.0 if side > 60 else 0.5], {}, None)

    monkeypatch.setattr(new_options, "measure", measured)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return tried


def test_init_chooses_by_measurement(own, capsys, quick):
    assert prepare("--gt", "gt", "--lq", "lq", "--out", "sets/mine") == 0
    assert init("--data", "sets/mine", "-o", "my.yml", "--hours", "0.5", "--task", "derain") == 0
    assert quick == [64, 64, 48]  # no patch is larger than the images; the first that is not slow is taken
    options = read_request("my.yml", is_train=True).options
    assert options["train"]["total_iter"] == options["train"]["scheduler"]["periods"][0] == 3600
    assert options["train"]["optim_g"]["lr"] == pytest.approx(1e-3 * 0.5**0.5, rel=1e-2)  # a batch of 4
    assert options["path"]["pretrain_network_g"].endswith("restormixer_s_derain.safetensors")
    assert options["datasets"]["train"]["gt_size"] == 48 and options["datasets"]["val"]["name"] == "val_mine"
    assert [path.name for path in Path().glob("*my.yml*")] == ["my.yml"]
    capsys.readouterr()
    assert init("--data", "sets/mine", "-o", "my.yml") == 2
    assert "my.yml: is there already" in capsys.readouterr().err


def test_init_for_super_resolution(own, quick):
    assert prepare("--gt", "gt", "--degrade", "down", "--scale", "2", "--out", "sets/sr") == 0
    assert init("--data", "sets/sr", "-o", "sr.yml") == 0
    options = read_request("sr.yml", is_train=True).options
    assert options["scale"] == options["network_g"]["upscale"] == 2
    assert options["train"]["pixel_opt"]["type"] == "L1Loss" and options["path"]["pretrain_network_g"] is None


@pytest.mark.parametrize("given", [["--lq", "lq"], ["--degrade", "rain"]], ids=["pairs", "drawn"])
def test_what_init_writes_trains(own, given, capsys):
    assert prepare("--gt", "gt", *given, "--out", "sets/mine", "--format", "folder") == 0
    assert init("--data", "sets/mine", "-o", "my.yml", "--hours", "0.001", "--task", "derain") == 0
    settings = ["train:total_iter=2", "val:val_freq=2", "logger:use_tb_logger=false"]
    assert cli.main(["train", "-opt", "my.yml", "--force_yml", *settings]) == 0
    assert Path("experiments/my/models/net_g_latest.pth").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nothing", "-o", "a.yml"], "--data: nothing is no folder"),
        (["--data", "gt", "-o", "a.yml"], "--data: gt has no train_gt.lmdb and no train_gt"),
        (["--data", "gt", "-o", "a.txt"], "--output: expected a name that ends in .yml"),
        (["--data", "gt", "-o", "a.yml", "--hours", "0"], "--hours: expected a positive number"),
        (["--data", "gt", "-o", "a.yml", "--task", "derian"], "Did you mean 'derain'?"),
        (["--data", "gt", "-o", "a.yml", "--task", "derain", "--network", "base"], "--task: the installed weights are"),
    ],
)
def test_mistakes_of_init_are_one_line(own, capsys, arguments, message):
    assert init(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("a.yml").exists()


def test_the_page_as_written(own, quick, capsys):
    """Each command of data/OWN_PAIRS.md, with a training of two iterations."""
    page = Path(__file__).parents[1] / "data" / "OWN_PAIRS.md"
    commands = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("basicsr ")]
    Path("photos").mkdir()
    Path("gt").rename("photos/clean")
    Path("lq").rename("photos/rainy")
    assert len(commands) == 6
    for command in commands:
        arguments = shlex.split(command)[1:]
        if arguments[0] == "train":
            arguments += ["--force_yml", "train:total_iter=2", "val:val_freq=2", "logger:use_tb_logger=false"]
        assert cli.main(arguments) == 0, (command, capsys.readouterr().err)
    assert len(list(Path("restored").iterdir())) == 12
    assert len(names("datasets/sr/val_pairs/lq.lmdb")) == 1
