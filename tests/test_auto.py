"""``basicsr restore --task auto``: the choice of weights, and files that need no restoration."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from restore_cases import RGB, photograph
from tiny_network import save_tiny
from video_cases import read_video, write_video

from restormixer_arch import cli
from restormixer_arch.benchmark import task_choice
from restormixer_arch.data.degradations.compose import add_composition, draw_composition
from restormixer_arch.data.images.picture import read_picture
from restormixer_arch.inference import choose_task as module
from restormixer_arch.inference import installed
from restormixer_arch.inference.choose_task import STATISTICS, Choice, choose_task, windows_of

SAMPLES = Path(__file__).parents[1] / "data/samples/pictures"


@pytest.fixture
def place(folder, monkeypatch):
    """A folder with an image, and installed weights for derain and mixed."""
    (folder / "in").mkdir()
    Image.fromarray(RGB).save(folder / "in/a.png", pnginfo=None)
    (folder / "installed").mkdir()
    monkeypatch.setattr(installed, "WEIGHTS_FOLDER", folder / "installed")
    for task in ("derain", "mixed"):
        save_tiny(folder / f"installed/restormixer_s_{task}.safetensors")
    return folder


def run(*arguments):
    return cli.main(["restore", "in", "-o", "out", "--task", "auto", "--tile", "192", *arguments])


def choose(monkeypatch, task, probability=0.9):
    monkeypatch.setattr(module, "choose_task", lambda images: Choice(task, probability))


@pytest.mark.parametrize(
    ("task", "probability", "remark", "changed"),
    [
        ("derain", 0.9, "derain (90%)", True),
        ("mixed", 0.6, "mixed (60%)", True),
        ("clean", 0.9, "clean (90%); copied unchanged", False),
        ("clean", 0.4, "clean (40%); copied unchanged", False),
        ("derain", 0.4, "uncertain, perhaps derain (40%); copied unchanged", False),
    ],
)
def test_image_is_restored_with_the_chosen_task_or_copied(
    place, capsys, monkeypatch, task, probability, remark, changed
):
    choose(monkeypatch, task, probability)
    assert run("--compare") == 0
    assert capsys.readouterr().err.splitlines() == [f"basicsr: note: in/a.png: {remark}"]
    before, after = (place / "in/a.png").read_bytes(), (place / "out/a.png").read_bytes()
    assert (before != after) == changed
    with Image.open("out/a_compare.png") as pair, Image.open("out/a.png") as result:
        both = np.asarray(pair)
        np.testing.assert_array_equal(both[:, :30], RGB)
        np.testing.assert_array_equal(both[:, 30:], np.asarray(result))
    assert not list((place / "out").glob(".part-*"))


def test_task_of_a_video_is_chosen_once_from_three_frames(place, capsys, monkeypatch):
    write_video(place / "in/film.mp4", count=20)
    (place / "in/a.png").unlink()
    seen = []
    monkeypatch.setattr(module, "choose_task", lambda images: seen.append(images) or Choice("clean", 0.9))
    assert run() == 0
    assert "in/film.mp4: clean (90%); copied unchanged" in capsys.readouterr().err
    assert (place / "in/film.mp4").read_bytes() == (place / "out/film.mp4").read_bytes()
    assert [[image.shape for image in images] for images in seen] == [[(48, 64, 3)] * 3]
    choose(monkeypatch, "derain")
    assert run("--overwrite", "--compare") == 0
    assert [frame.planes.shape for frame in read_video("out/film_compare.mp4")] == [(48, 128, 3)] * 20


def test_files_that_cannot_be_read_are_reported(place, capsys):
    (place / "in/a.png").write_bytes(b"no image")
    assert run() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("basicsr: error: in/a.png: ")


def test_settings_are_checked_before_the_first_file(place, capsys):
    assert cli.main(["restore", "in", "-o", "out", "--task", "auto", "--tile", "10", "--overlap", "0"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == "basicsr: error: tile: 10 is too small for an overlap of 0, expected at least 64"
    assert not (place / "out").exists()


def test_missing_weights_are_reported_for_the_file(place, capsys, monkeypatch):
    choose(monkeypatch, "dehaze")
    assert run() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("basicsr: error: in/a.png: --task: no weights for 'dehaze'; installed are: derain, mixed.")


def test_auto_cannot_be_combined_with_weights(place, capsys):
    assert run("--weights", "installed/restormixer_s_derain.safetensors") == 2
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (5, 3, 1), (7, 300, 3), (255, 257, 3), (600, 900, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_task_is_chosen_for_any_shape_dtype_and_content(shape, dtype):
    white = np.iinfo(dtype).max
    for image in (np.zeros(shape, dtype), np.full(shape, white, dtype), (np.random.rand(*shape) * white).astype(dtype)):
        choice = choose_task([image])
        assert choice.task in task_choice.TASKS and 1 / 8 <= choice.probability <= 1


def test_statistics_are_the_same_for_8_and_16_bit_and_for_gray_and_rgb():
    image = np.random.default_rng(0).integers(0, 256, (80, 90, 1), np.uint8)
    for other in (image.astype(np.uint16) * 257, image.repeat(3, 2)):
        np.testing.assert_allclose(
            module.window_statistics(windows_of(other)[0]), module.window_statistics(windows_of(image)[0]), atol=1e-4
        )


def test_statistics_of_a_photograph_match_recorded_values():
    """The values are in the order of STATISTICS; the choice of a task depends on all of them."""
    recorded = [-0.9609, -0.6393, -0.0136, -1.3115, 0.2047, -1.2261, -1.9156, -0.3733, -4.1829, -4.5933, -0.3696]
    recorded += [-6.1847, -4.6729, -2.3397, -2.511, -2.5146, -2.4868, -0.3353, -2.0621, -0.2101, -0.2697, 0.2125]
    recorded += [0.2772, -3.0756, 2.2227, 0.0827, -1.854, 1.4005, -0.0041, 0.0479, -0.1068, 0.2315, -0.2914, -0.1856]
    np.testing.assert_allclose(module.window_statistics(photograph()), recorded, atol=1e-3)


def test_windows_are_spread_over_the_image():
    image = np.zeros((900, 1400, 3), np.uint8)
    image[..., 0] = np.arange(1400) // 10
    image[..., 1] = (np.arange(900) // 10)[:, None]
    corners = [tuple((window[0, 0, :2] * 255).round().astype(int)) for window in windows_of(image)]
    assert len(corners) == 5 and len({x for x, _ in corners}) == 3 and len({y for _, y in corners}) == 3
    assert [len(windows_of(np.zeros(shape, np.uint8))) for shape in ((9, 9, 1), (256, 9999, 3), (512, 512, 3))] == [
        1,
        2,
        2,
    ]


def test_coefficients_file_matches_the_code():
    content = json.loads(module.MODEL.read_text())
    assert content["statistics"] == list(STATISTICS) and content["tasks"] == list(task_choice.TASKS)
    assert np.shape(content["weights"]) == (2 * len(STATISTICS) + 1, len(task_choice.TASKS))
    assert module.MODEL.stat().st_size < 20_000


@pytest.mark.parametrize(
    ("label", "task"),
    [("rain", "derain"), ("snow", "desnow"), ("haze", "dehaze"), ("low", "low_light"), ("noise", "denoise")],
)
def test_strong_degradations_are_recognized(label, task):
    found = []
    for seed, path in enumerate(2 * sorted(SAMPLES.glob("clean/*.png"))):
        photo = read_picture(path).pixels.astype(np.float32) / 255
        image = add_composition(photo, draw_composition(np.random.default_rng(seed), label, 0.9))
        found.append(choose_task([np.rint(image * 255).astype(np.uint8)]).task)
    assert len(found) == 4
    assert Counter(found).most_common(1)[0][0] == task, found


def test_confusion_table():
    choices = [("derain", Choice("derain", 0.9)), ("derain", Choice("mixed", 0.9)), ("clean", Choice("deblur", 0.3))]
    lines = task_choice.confusion_table(choices).splitlines()
    assert lines[2] == "| clean | 1 | **0** |  |  |  |  |  |  |  | 1 |"
    assert lines[3] == "| derain | 2 |  | **1** |  |  |  |  |  | 1 |  |"
    assert lines[-1] == "Of 3 images 1 are classified correctly; 1 are left unchanged."


def test_fit_classifies_separable_statistics_correctly():
    rng = np.random.default_rng(0)
    tasks = [task_choice.TASKS[place % len(task_choice.TASKS)] for place in range(400)]
    statistics = rng.normal(0, 0.1, (400, len(STATISTICS)))
    for row, task in zip(statistics, tasks, strict=True):
        row[task_choice.TASKS.index(task)] += 3
    model = task_choice.fit_model(statistics, tasks)
    arrays = [np.array(model[name]) for name in ("center", "spread", "weights")]
    scores = module.Model(tuple(model["tasks"]), *arrays).scores(statistics)
    assert [task_choice.TASKS[place] for place in scores.argmax(1)] == tasks


def test_folder_without_test_sets_is_rejected(folder, capsys):
    assert task_choice.main(["--table", "."]) == 2
    assert re.search(r"holds no sets test_\*/lq.lmdb", capsys.readouterr().err)


def test_usage_names_the_module(capsys):
    with pytest.raises(SystemExit):
        task_choice.main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m restormixer_arch.benchmark.task_choice [-h]")


def test_documented_confusion_table_has_the_current_columns():
    page = (Path(__file__).parents[1] / "restormixer_arch/inference/RESTORE.md").read_text(encoding="utf-8")
    assert f"| actual \\ chosen | images | {' | '.join(task_choice.TASKS)} | unsure |" in page
