"""Validation and its results per label, from single values to complete runs of the command line."""

import logging
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.cli import main
from restormixer_arch.data.degraded_dataset import DegradedDataset
from restormixer_arch.errors import UserError
from restormixer_arch.models import label_results, metrics, validation
from restormixer_arch.models.label_results import LabelResults, report_per_label
from restormixer_arch.models.validation import last_means, run_validation

compat.apply()

from basicsr.models.sr_model import SRModel  # noqa: E402 - BasicSR can be imported only now

from restormixer_arch.training.results import result_lines  # noqa: E402


def results(**values):
    collected = LabelResults()
    for label, numbers in values.items():
        for number in numbers:
            collected.add(label, "psnr", number)
            collected.add(label, "ssim", number / 100)
    return collected


def test_means_per_label_and_over_labels():
    collected = results(rain=[20, 24, 28], haze=[10])
    assert collected.means() == {"haze": {"psnr": 10, "ssim": 0.1}, "rain": {"psnr": 24, "ssim": pytest.approx(0.24)}}
    # Each label has the same weight, regardless of its number of images.
    assert collected.means_of_labels() == {"psnr": 17, "ssim": pytest.approx(0.17)}


def test_labels_are_in_the_order_of_cdd11():
    assert results(noise=[1], low_haze=[1], blur=[1], rain=[1], low=[1]).labels == [
        "low",
        "rain",
        "low_haze",
        "blur",
        "noise",
    ]


def test_markdown_table():
    assert results(rain=[20, 24, 28], haze=[10]).markdown() == (
        "| metric | haze | rain | mean |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| images | 1 | 3 | 4 |\n"
        "| psnr | 10.00 | 24.00 | 17.00 |\n"
        "| ssim | 0.1000 | 0.2400 | 0.1700 |\n"
    )


def test_markdown_table_with_inputs():
    table = results(rain=[20, 24, 28], haze=[10]).markdown(results(rain=[10, 12, 14], haze=[5]))
    assert table.splitlines()[3:] == [
        "| psnr_input | 5.00 | 12.00 | 8.50 |",
        "| psnr | 10.00 | 24.00 | 17.00 |",
        "| ssim_input | 0.0500 | 0.1200 | 0.0850 |",
        "| ssim | 0.1000 | 0.2400 | 0.1700 |",
    ]


class Loader(list):
    """A loader of dataset items with one image each."""

    def __init__(self, items, root):
        super().__init__(items)
        self.dataset = type("Set", (list,), {"opt": {"name": "set", "dataroot_lq": root}})(items)


class Model(SRModel):
    """The part of a model that :func:`validate` needs, with one metric value for each image."""

    def __init__(self, values, folder, **val):
        self.opt = {"is_train": True, "dist": False, "val": val, "path": {"log": folder, "visualization": folder}}
        self.values = iter(values)

    def feed_data(self, data):
        self.lq = self.output = torch.zeros(1, 3, 4, 4)

    def test(self):
        self.value = next(self.values)
        if math.isnan(self.value):
            self.output = self.output / 0


def results_of(items, values, folder, monkeypatch, root=None):
    """Validate; return the model and label -> metric -> values."""
    seen = []
    monkeypatch.setattr(validation, "report_per_label", lambda model, name, results, *others: seen.append(results))
    model = Model(values, folder, metrics={"psnr": {"type": "value"}})
    monkeypatch.setattr(metrics, "calculate_metric", lambda data, options: model.value)
    assert run_validation(model, Loader(items, root), 7, None, False)
    return model, seen[0].values


def test_each_image_is_measured_and_assigned_to_its_label(tmp_path, monkeypatch):
    items = [{"label": [label], "lq_path": ["x.png"]} for label in ("rain", "low", "rain")]
    model, values = results_of(items, [30.25, math.inf, 20.5], tmp_path, monkeypatch)
    assert values == {"rain": {"psnr": [30.25, 20.5]}, "low": {"psnr": [math.inf]}}
    assert model.metric_results == {"psnr": math.inf}
    model, _ = results_of(items, [30.25, 1.5, 20.5], tmp_path, monkeypatch)
    assert model.metric_results == {"psnr": (30.25 + 1.5 + 20.5) / 3}
    assert model.best_metric_results["set"]["psnr"] == {"better": "higher", "val": 52.25 / 3, "iter": 7}


def test_validation_uses_the_unwrapped_network(tmp_path, monkeypatch):
    """DistributedDataParallel would wait in its forward pass for processes that have no image."""
    net, seen = torch.nn.Identity(), []
    wrapped = torch.nn.DataParallel(net)
    monkeypatch.setattr(Model, "net_g", wrapped, raising=False)
    monkeypatch.setattr(Model, "get_bare_model", lambda model, network: network.module, raising=False)
    monkeypatch.setattr(Model, "test", lambda model: (seen.append(model.net_g), setattr(model, "value", 1.0)))
    model, _ = results_of([{"lq_path": ["1.png"]}], [1.0], tmp_path, monkeypatch)
    assert seen == [net] and model.net_g is wrapped


def test_non_finite_output_is_measured_as_nan(tmp_path, monkeypatch):
    items = [{"lq_path": ["1.png"]}, {"lq_path": ["2.png"]}]
    model, values = results_of(items, [math.nan, 20.5], tmp_path, monkeypatch)
    assert math.isnan(values["other"]["psnr"][0]) and math.isnan(model.metric_results["psnr"])
    assert model.best_metric_results["set"]["psnr"]["iter"] == -1


def test_new_or_reversed_metric_starts_a_record_after_resuming(tmp_path, monkeypatch):
    """If ``better`` of a metric has changed, its old record is discarded."""
    model = Model([3.0], tmp_path, metrics={"psnr": {"type": "value"}, "ssim": {"type": "value", "better": "lower"}})
    before = {"better": "higher", "val": 30.0, "iter": 5}
    model.best_metric_results = {"set": {"psnr": dict(before), "ssim": dict(before)}}
    model.opt["val"]["metrics"]["new"] = {"type": "value"}
    monkeypatch.setattr(metrics, "calculate_metric", lambda data, options: model.value)
    assert run_validation(model, Loader([{"lq_path": ["1.png"]}], None), 7, None, False)
    records = model.best_metric_results["set"]
    assert records["psnr"] == before
    assert records["ssim"] == {"better": "lower", "val": 3.0, "iter": 7}
    assert records["new"] == {"better": "higher", "val": 3.0, "iter": 7}


def test_image_that_cannot_be_measured_is_named(tmp_path):
    model = Model([1.0], tmp_path, metrics={"niqe": {"type": "calculate_niqe", "crop_border": 0}})
    with pytest.raises(UserError, match=r"^val\.metrics\.niqe: cannot measure '1' of set \(4, 4\): "):
        run_validation(model, Loader([{"lq_path": ["1.png"]}], None), 7, None, False)


def test_labels_are_read_from_names_below_the_root(tmp_path, monkeypatch):
    """A folder above the dataset is ignored, even if it is named like a label."""
    items = [{"lq_path": [f"/data/rain/test/{name}"]} for name in ("low/1.png", "2_haze_snow.png", "3.png")]
    _, values = results_of(items, [1.0, 2.0, 3.0], tmp_path, monkeypatch, root="/data/rain/test")
    assert values == {"low": {"psnr": [1.0]}, "haze_snow": {"psnr": [2.0]}, "other": {"psnr": [3.0]}}


def test_without_metrics_nothing_is_measured(tmp_path):
    model = Model([1.0, 2.0], tmp_path)
    assert run_validation(model, Loader([{"lq_path": ["1.png"]}, {"lq_path": ["2.png"]}], None), 7, None, True)
    assert not hasattr(model, "metric_results")
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["1_7.png", "2_7.png"]


def test_validation_can_be_stopped(tmp_path):
    model = Model([1.0, 2.0], tmp_path, metrics={})
    answers = iter([False, True])
    loader = Loader([{"lq_path": ["1.png"]}, {"lq_path": ["2.png"]}], None)
    assert not run_validation(model, loader, 7, None, False, stop=lambda: next(answers))
    assert next(model.values) == 2.0  # the second image was not restored


def test_own_validation_method_of_a_model_is_used(tmp_path):
    class Other(Model):
        def nondist_validation(self, dataloader, current_iter, tb_logger, save_img):
            self.seen = len(dataloader), current_iter, save_img

    model = Other([], tmp_path)
    assert run_validation(model, Loader([{"lq_path": ["1.png"]}], None), 7, None, True)
    assert model.seen == (1, 7, True)


# --- the values of the last validation -------------------------------------------------------------------------------


def test_last_values_are_reported_instead_of_the_best(tmp_path, monkeypatch):
    items = [{"lq_path": ["1.png"]}]
    model, _ = results_of(items, [30.0], tmp_path, monkeypatch)
    model.values = iter([20.0, math.nan])
    for iteration, expected in ((8, "PSNR 20.00 dB"), (9, "PSNR nan dB")):
        run_validation(model, Loader(items, None), iteration, None, False)
        assert result_lines(model) == {"set": expected}
    assert model.best_metric_results["set"]["psnr"] == {"better": "higher", "val": 30.0, "iter": 7}


def test_last_means_of_a_model_with_its_own_validation_method():
    """In BasicSR's video models, ``metric_results`` is a table of frames and metrics for each folder."""
    best = {"clips": {"psnr": {"val": 31.5, "iter": 7}, "ssim": {"val": 0.9, "iter": 5}, "new": {"val": 0, "iter": -1}}}
    video = SimpleNamespace(metric_results={"000": torch.zeros(4, 2)}, best_metric_results=best)
    assert last_means(video, "clips", 7) == {"psnr": 31.5}
    assert last_means(video, "clips") == {"psnr": 31.5, "ssim": 0.9}
    assert result_lines(video) == {"clips": "PSNR 31.50 dB, SSIM 0.900"}
    other = SimpleNamespace(metric_results={"psnr": 30.0}, best_metric_results=best)
    assert last_means(other, "clips", 7) == {"psnr": 30.0} and last_means(SimpleNamespace(), "clips", 7) == {}


def test_network_that_cannot_restore_an_image_is_reported(tmp_path):
    class Misfit(Model):
        def feed_data(self, data):
            self.lq = data["lq"]

        def test(self):
            torch.nn.Conv2d(1, 1, 3)(self.lq)

    item = {"lq_path": ["a/1.png"], "lq": torch.zeros(1, 3, 8, 9)}
    with pytest.raises(UserError, match=r"^network_g: cannot restore '1' of set \(lq 3x8x9\): Given groups=1, weight"):
        run_validation(Misfit([], tmp_path), Loader([item], None), 7, None, False)


def test_label_results_are_written_as_scalars_and_to_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(
        label_results, "get_root_logger", lambda: logging.getLogger("by label")
    )  # BasicSR's logger is for a run
    scalars = {}
    board = SimpleNamespace(add_scalar=lambda name, value, step: scalars.update({name: (value, step)}))
    model = SimpleNamespace(opt={"is_train": True, "path": {"log": str(tmp_path)}})
    report_per_label(model, "set", results(rain=[20, 24], haze=[10]), 7, board)
    assert scalars["metrics/set/rain/psnr"] == (22, 7) and len(scalars) == 4
    text = (tmp_path / "set_labels.md").read_text()
    assert text.startswith("# set per label\n\nAfter 7 iterations.\n\n| metric | haze | rain | mean |\n")
    for too_few in (LabelResults(), results(rain=[1]), results(rain=[1], other=[2])):
        report_per_label(model, "none", too_few, 7, board)
    assert not (tmp_path / "none_labels.md").exists() and len(scalars) == 4


def test_unwritable_table_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(label_results, "get_root_logger", lambda: logging.getLogger("by label"))
    model = SimpleNamespace(opt={"is_train": True, "path": {"log": str(tmp_path / "absent")}})
    with pytest.raises(UserError, match=r"absent/set_labels\.md: cannot be written \(No such file or directory\)$"):
        report_per_label(model, "set", results(rain=[20, 24], haze=[10]), 7, None)


@pytest.fixture
def clean(folder):
    (folder / "clean").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        image = cv2.GaussianBlur(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8), (0, 0), 2)
        cv2.imwrite(f"clean/{number}.png", image)
    return folder


def degraded(name, **changes):
    return {
        **{"name": name, "type": "DegradedDataset", "dataroot_gt": "clean", "io_backend": {"type": "disk"}},
        **{"degradations": ["low", "haze_rain", "noise"], "seed": 1, **changes},
    }


def test_training_and_test_report_the_same_label_results(clean, train_options, test_options, write):
    """On the command line: images degraded on the fly, and a fixed dataset in folders in the test."""
    crops = {"gt_size": 16, "use_hflip": True, "use_rot": False, "num_worker_per_gpu": 2, "batch_size_per_gpu": 2}
    train_options["model_type"] = "RestorMixerModel"
    train_options["datasets"] = {"train": degraded("fly", **crops), "val": degraded("fixed")}
    assert main(["train", "-opt", write(train_options)]) == 0
    table = (clean / "experiments/tiny/fixed_labels.md").read_text()
    assert "After 5 iterations." in table and "| metric | low | haze_rain | noise | mean |" in table
    assert "| images | 4 | 4 | 4 | 12 |" in table
    (log,) = (clean / "experiments/tiny").glob("train_*.log")
    assert "Validation fixed per label, 3 labels\n| metric | low |" in log.read_text()
    whole = float(next(line for line in table.splitlines() if line.startswith("| psnr |")).split("|")[-2])

    assert (
        main(
            ["degrade", "set", "--gt", "clean", "--out", "set", "--labels", "low", "haze_rain", "noise", "--seed", "1"]
        )
        == 0
    )
    test_options["model_type"] = "RestorMixerModel"
    pairs = {"type": "PairedRestorationDataset", "io_backend": {"type": "disk"}, "recursive": True}
    test_options["datasets"] = {
        "test_1": {**pairs, "name": "folders", "dataroot_gt": "set/gt", "dataroot_lq": "set/lq"},
        "test_2": degraded("fly"),
    }
    assert main(["test", "-opt", write(test_options)]) == 0
    for name in ("folders", "fly"):
        tested = (clean / f"results/tiny/{name}_labels.md").read_text()
        assert "After" not in tested
        # Weights, images and therefore values are the same as in the validation after training.
        mean = float(next(line for line in tested.splitlines() if line.startswith("| psnr |")).split("|")[-2])
        assert mean == pytest.approx(whole, abs=0.011)


def test_training_passes_the_epoch_to_the_dataset(clean, train_options, write, monkeypatch):
    """An epoch uses four images twice in batches of four, so five iterations need three epochs."""
    seen = []
    original = DegradedDataset.sample
    monkeypatch.setattr(
        DegradedDataset, "sample", lambda self, *key: (self.training and seen.append(key)) or original(self, *key)
    )
    crops = {"gt_size": 16, "use_hflip": True, "use_rot": False, "num_worker_per_gpu": 0, "batch_size_per_gpu": 4}
    crops["dataset_enlarge_ratio"] = 2
    train_options["datasets"] = {"train": degraded("fly", **crops)}
    del train_options["val"]
    assert main(["train", "-opt", write(train_options)]) == 0
    assert len(seen) == 20 and {epoch for epoch, _ in seen} == {0, 1, 2}
    assert {number for epoch, number in seen if epoch == 1} == set(range(8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"degradations": ["rian"]}, "datasets.train: degradations: 'rian' is not a degradation label"),
        ({"degradations": {"rain": {"weigth": 2}}}, "datasets.train: degradations.rain.weigth: unknown key"),
        ({"degradations": 5}, "datasets.train.degradations: got 5, expected"),
        ({"degradation": ["rain"]}, "datasets.train.degradation: unknown key. Did you mean 'degradations'?"),
        ({"dataroot_gt": "claen"}, "datasets.train.dataroot_gt: 'claen'"),
    ],
)
def test_invalid_dataset_options_are_reported(clean, train_options, write, capsys, changes, message):
    crops = {"gt_size": 16, "use_hflip": True, "use_rot": False, "num_worker_per_gpu": 0, "batch_size_per_gpu": 2}
    train_options["datasets"] = {"train": degraded("fly", **crops, **changes), "val": degraded("fixed")}
    assert main(["train", "-opt", write(train_options)]) == 2
    assert message in capsys.readouterr().err
