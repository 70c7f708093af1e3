"""Images are restored, measured and written: upsampled inputs, datasets without ground truth, and user errors."""

import cv2
import numpy as np
import pytest
import torch
from compare_cases import compare_options

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.compare.options import testing_options as options_to_test
from restormixer_arch.errors import UserError

compat.apply()

from basicsr.metrics.niqe import calculate_niqe  # noqa: E402 - BasicSR can be imported only now
from basicsr.utils.matlab_functions import imresize  # noqa: E402

from restormixer_arch.compare.pictures import items, measure_pictures  # noqa: E402
from restormixer_arch.compare.run import better, restoring_device  # noqa: E402

CPU = torch.device("cpu")
SINGLE = {"name": "real", "type": "SingleImageDataset", "dataroot_lq": "single", "io_backend": {"type": "disk"}}
NIQE = {"niqe": {"type": "calculate_niqe", "crop_border": 0, "better": "lower"}}


class Half(torch.nn.Module):
    """A network with two outputs; the last one has full size and the constant ``value``."""

    def __init__(self, value=0.5):
        super().__init__()
        self.value = value

    def forward(self, x):
        return [x[..., ::2, ::2], torch.full_like(x, self.value)]


@pytest.fixture
def single(folder):
    """Options with a dataset of one noisy image without ground truth."""
    (folder / "single").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (200, 210, 3), dtype=np.uint8)
    cv2.imwrite("single/a.b.png", cv2.GaussianBlur(image, (0, 0), 2))
    options = compare_options()
    options.update(datasets={"test": SINGLE}, val={"metrics": NIQE})
    return options_to_test(options)


def test_last_of_several_outputs_is_written(pairs):
    options = options_to_test(compare_options())
    rows = measure_pictures(options, pairs / "out", "half", Half(), CPU)["pairs_test"]
    assert [row["restored"] for row in rows] == [f"restored/pairs_test/half/{i}.png" for i in range(6)]
    assert (cv2.imread(f"out/{rows[3]['restored']}") == 128).all()
    truth = cv2.imread("pairs/gt/3.png").astype(float)
    assert rows[3]["values"]["psnr"] == pytest.approx(10 * np.log10(255**2 / ((truth - 128) ** 2).mean()))


def test_non_finite_output_is_written_black_and_measured_as_nan(pairs):
    rows = measure_pictures(options_to_test(compare_options()), pairs, "nan", Half(float("nan")), CPU)["pairs_test"]
    assert np.isnan(rows[0]["values"]["psnr"]) and (cv2.imread(rows[0]["restored"]) == 0).all()


def test_dataset_without_ground_truth(single, folder):
    (row,) = measure_pictures(single, folder, None, None, CPU)["real"]
    assert row["name"] == "a.b" and row["truth"] is None and row["input"] == "input/real/a.b.png"
    image = cv2.imread(row["input"])
    assert np.array_equal(image, cv2.imread("single/a.b.png"))
    assert row["values"]["niqe"] == pytest.approx(calculate_niqe(image, 0)) and row["values"]["niqe"] > 1


def test_inputs_are_upsampled_to_the_ground_truth_size(pairs):
    for path in (pairs / "pairs/lq").iterdir():
        cv2.imwrite(str(path), cv2.imread(str(path))[::2, ::2])
    options = options_to_test({**compare_options(), "scale": 2})
    rows = measure_pictures(options, pairs, None, None, CPU)["pairs_test"]
    expected = imresize(cv2.imread("pairs/lq/2.png").astype(np.float32) / 255, 2).clip(0, 1)[4:-4, 4:-4] * 255
    assert np.abs(cv2.imread(rows[2]["input"])[4:-4, 4:-4] - expected).max() <= 0.51
    with pytest.raises(
        UserError, match=r"competitors.none: restores '\d' to \(10, 10, 3\), ground truth: \(20, 20, 3\)"
    ):
        measure_pictures(options_to_test({**compare_options(), "scale": 2}), pairs, "none", torch.nn.Identity(), CPU)


def test_image_too_small_for_a_metric_is_rejected(single, folder):
    cv2.imwrite("single/a.b.png", cv2.imread("single/a.b.png")[:50, :40])
    with pytest.raises(UserError, match=r"val.metrics.niqe: cannot measure 'a.b' of real \(50, 40\): "):
        measure_pictures(single, folder, "none", torch.nn.Identity(), CPU)


def test_meta_info_file_in_the_home_folder_is_read_and_an_empty_one_rejected(pairs, folder, monkeypatch):
    options = options_to_test(compare_options())
    monkeypatch.setenv("HOME", str(folder / "home"))
    (folder / "home").mkdir()
    (folder / "home/list.txt").write_text("1.png\n4.png\n")
    options["datasets"]["test"]["meta_info_file"] = "~/list.txt"
    options["file"] = "x.yml"
    rows = measure_pictures(options, folder, None, None, CPU)["pairs_test"]
    assert [row["name"] for row in rows] == ["1", "4"]
    (folder / "home/list.txt").write_text("")
    with pytest.raises(UserError, match=r"^x\.yml: datasets\.test: has no image \('pairs/lq'\)$"):
        measure_pictures(options, folder, None, None, CPU)


def test_unwritable_path_is_reported(single, folder):
    (folder / "input/real/a.b.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"input/real/a.b.png: cannot be written"):
        measure_pictures(single, folder, None, None, CPU)


def test_default_metric_direction_and_device():
    assert better({"type": "calculate_niqe"}) == "lower" and better({"type": "calculate_ssim"}) == "higher"
    assert better({"type": "calculate_niqe", "better": "higher"}) == "higher"
    assert restoring_device({"num_gpu": 0}) == "cpu" and restoring_device({"num_gpu": 0, "device": "mps"}) == "mps"


def test_repeated_names_are_numbered():
    dataset = [{"result_name": name, "lq_path": name} for name in ("a", "a~2", "a", "b", "a")]
    assert [name for name, _ in items(dataset)] == ["a", "a~2", "a~3", "b", "a~4"]
