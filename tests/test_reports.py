"""Tables, curves and TensorBoard logs of training runs, with BasicSR's SRModel and with RestorMixerModel."""

from __future__ import annotations

import csv
import errno
import math
from pathlib import Path

import cv2
import pytest
from training_cases import RESTORMIXER, SWINIR

from restormixer_arch import cli
from restormixer_arch.training import reports
from restormixer_arch.training.reports import draw_curves

FOLDER = Path("experiments/tiny")
SR_KINDS = {
    "SRModel": {},
    "RestorMixerModel": {"network_g": RESTORMIXER},
    "SwinIR": {"network_g": {**SWINIR, "window_size": 4}},
}


@pytest.fixture(params=SR_KINDS)
def kind(request):
    return request.param


def table(name):
    with (FOLDER / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:torch.meshgrid")
def test_losses_validations_and_curve_are_written_and_resumed(pairs, train_options, write, kind):
    train_options.update(SR_KINDS[kind], model_type="SRModel" if kind == "SRModel" else "RestorMixerModel")
    train_options["datasets"]["train"]["batch_size_per_gpu"] = 2
    train_options["logger"]["print_freq"] = 2
    train_options["val"]["val_freq"] = 2
    assert cli.main(["train", "-opt", write(train_options)]) == 0
    losses, validations = table("losses.csv"), table("validations.csv")
    assert [row["iteration"] for row in losses] == ["2", "4", "5"]
    assert all(float(row["l_pix"]) > 0 and float(row["lr"]) == 0.001 for row in losses)
    assert [(row["iteration"], row["dataset"]) for row in validations] == [(n, "pairs_val") for n in ("2", "4", "5")]
    assert all(math.isfinite(float(row["psnr"])) for row in validations)
    # The inputs are half as bright as the GT: 10 * log10(255^2 / MSE), computed from the files.
    if kind != "SRModel":
        assert float(losses[0]["grad_norm"]) > 0
        values = []
        for number in range(6):
            lq, gt = (cv2.imread(f"pairs/{part}/{number}.png").astype(float) for part in ("lq", "gt"))
            values.append(10 * math.log10(255**2 / ((lq - gt) ** 2).mean()))
        for row in validations:
            assert float(row["psnr_input"]) == pytest.approx(sum(values) / 6, abs=1e-6)
    picture = cv2.imread(str(FOLDER / "learning_curve.png"))
    assert picture.shape == (780, 960, 3) and (picture < 128).any()
    # Resuming from iteration 4 keeps the rows up to it; iteration 5 is repeated.
    arguments = ["--auto_resume", "--force_yml", "train:total_iter=6"]
    assert cli.main(["train", "-opt", "x.yml", *arguments]) == 0
    assert table("losses.csv")[:2] == losses[:2]
    assert [row["iteration"] for row in table("losses.csv")] == ["2", "4", "6"]
    assert [row["iteration"] for row in table("validations.csv")] == ["2", "4", "6"]


def test_tensorboard_shows_images_and_options(pairs, train_options, write):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_options.update(network_g=RESTORMIXER, model_type="RestorMixerModel")
    train_options["logger"]["use_tb_logger"] = True
    train_options["val"]["val_freq"] = 5
    assert cli.main(["train", "-opt", write(train_options)]) == 0
    (folder,) = Path("tb_logger").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert len(tags["images"]) == 4 and set(tags["images"]) < {f"pairs_val/{number}" for number in range(6)}
    (picture,) = events.Images(tags["images"][0])
    assert (picture.step, picture.width, picture.height) == (5, 60, 20)  # input, restored, GT
    assert {"losses/l_pix", "grad_norm", "metrics/pairs_val/psnr"} <= set(tags["scalars"])
    (text,) = events.Tensors("options/text_summary")
    assert b"        type: RestorMixer\n" in text.tensor_proto.string_val[0]


def test_interrupted_training_run_writes_its_curve(pairs, train_options, write, monkeypatch):
    from basicsr.models.sr_model import SRModel

    def feed_data(self, data):
        if Path("experiments/tiny/training_states/2.state").exists():
            raise KeyboardInterrupt
        original(self, data)

    original = SRModel.feed_data
    monkeypatch.setattr(SRModel, "feed_data", feed_data)
    assert cli.main(["train", "-opt", write(train_options)]) == 130
    assert (FOLDER / "learning_curve.png").is_file() and not (FOLDER / "validations.csv").exists()


@pytest.mark.parametrize(("iteration", "way"), [(1, "nothing was saved yet"), (3, "free space, resume from 2.state")])
def test_full_disk_error_names_the_table_and_how_to_resume(
    pairs, train_options, write, monkeypatch, capsys, iteration, way
):
    def writerow(self, row):
        if row["iteration"] == iteration:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, row)

    def writerows(self, rows):
        for row in rows:
            self.writerow(row)

    original = csv.DictWriter.writerow
    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writerow", writerow)
        patch.setattr(csv.DictWriter, "writerows", writerows)
        assert cli.main(["train", "-opt", write(train_options)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{FOLDER}/losses.csv: cannot be written (No space left on device); {way}" in last
    assert cli.main(["train", "-opt", "x.yml", "--auto_resume"]) == 0
    assert [row["iteration"] for row in table("losses.csv")] == ["1", "2", "3", "4", "5"]


def test_locked_table_does_not_end_the_training(tmp_path, monkeypatch, capsys):
    """On Windows, a spreadsheet locks the file that it shows."""

    def locked(self, mode="r", **options):
        if self.suffix == ".csv" and mode != "r":
            raise PermissionError(errno.EACCES, "Permission denied")
        return original(self, mode, **options)

    original, path = Path.open, tmp_path / "losses.csv"
    rows = reports.Table(path, 0)
    rows.add({"iteration": 1, "l_pix": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", locked)
        for iteration in (2, 3):
            rows.add({"iteration": iteration, "l_pix": 0.25})
    warning = f"basicsr: warning: {path}: cannot be written (Permission denied); its rows follow as soon as possible\n"
    assert capsys.readouterr().err == warning  # once
    assert len(path.read_text().splitlines()) == 2
    rows.add({"iteration": 4, "l_pix": 0.125})  # not tried again for a minute
    assert len(path.read_text().splitlines()) == 2
    rows.catch_up()
    assert path.read_text().split() == ["iteration,l_pix", "1,0.5", "2,0.25", "3,0.25", "4,0.125"]
    rows.add({"iteration": 5, "l_pix": 0.125})
    assert path.read_text().split()[-1] == "5,0.125"


def test_curves_with_nan_no_rows_and_special_characters_are_drawn(tmp_path):
    losses = [{"iteration": n, "l_pix": math.nan if n == 3 else 1 / n, "grad_norm": 5.0} for n in range(1, 200)]
    niqe = [{"iteration": 5, "dataset": "a", "niqe": 4.0}, {"iteration": 9, "dataset": "b", "niqe": math.nan}]
    for rows in ([], niqe):
        draw_curves(losses, rows, tmp_path / "x.png", "x")
        assert cv2.imread(str(tmp_path / "x.png")).shape == (780, 960, 3)
    draw_curves([], [{**row, "dataset": "x$^$"} for row in niqe], tmp_path / "x.png", "_a$_b_$c")
    with pytest.raises(OSError, match="none"):
        draw_curves(losses, [], tmp_path / "none/x.png", "x")


def test_dataset_name_may_be_a_number(tmp_path):
    """Its row is found when a training run is resumed."""
    row = {"iteration": 10, "dataset": "2024", "psnr": 30.0}
    reports.Table(tmp_path / "v.csv", 0).add(row)
    again = reports.Table(tmp_path / "v.csv", 10)
    assert again.rows == [row]
    again.add({**row, "psnr": 31.0})
    assert (tmp_path / "v.csv").read_text().splitlines() == ["iteration,dataset,psnr", "10,2024,31.0"]


def test_row_replaces_the_row_of_the_same_iteration_and_dataset(tmp_path):
    table = reports.Table(tmp_path / "v.csv", 0)
    for iteration, dataset, psnr in ((1, "a", 1.0), (1, "b", 2.0), (2, "a", 3.0), (2, "b", 4.0), (2, "a", 5.0)):
        table.add({"iteration": iteration, "dataset": dataset, "psnr": psnr})
    lines = (tmp_path / "v.csv").read_text().splitlines()
    assert lines == ["iteration,dataset,psnr", "1,a,1.0", "1,b,2.0", "2,b,4.0", "2,a,5.0"]


def test_smoothed_loss_is_a_trailing_moving_average():
    from matplotlib.figure import Figure

    panel, values = Figure().subplots(), [math.sin(n) + 2 for n in range(200)]
    reports._draw_losses(panel, [{"iteration": n, "l_pix": value} for n, value in enumerate(values)])
    _, smooth = panel.lines
    span = round(200 * reports.SMOOTHED)
    wanted = [math.fsum(values[max(0, n - span) : n + 1]) / min(n + 1, span + 1) for n in range(200)]
    assert list(smooth.get_ydata()) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("values", "scale"), [((0.5, 0.0, 0.1), "log"), ((-10.0, 0.0, -30.0), "linear")])
def test_losses_are_drawn_on_a_linear_scale_if_one_is_negative(values, scale):
    from matplotlib.figure import Figure

    panel = Figure().subplots()
    reports._draw_losses(panel, [{"iteration": i, "l_pix": value} for i, value in enumerate(values)])
    [line] = panel.lines
    assert panel.get_yscale() == scale
    assert list(line.get_ydata()) == [value for value in values if scale == "linear" or value]
