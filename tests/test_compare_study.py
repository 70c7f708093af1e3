"""Studies: runs of one compare file with several budgets and seeds, their combined results, and the context used."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from compare_cases import EDSR, compare_options
from torch import nn

from restormixer_arch import cli
from restormixer_arch.basicsr_adapter import compat
from restormixer_arch.compare.options import context_options, crop_side, options_of_run, read_compare_file
from restormixer_arch.errors import UserError

compat.apply()

from basicsr.archs import build_network  # noqa: E402 - only after compat.apply()

from restormixer_arch.basicsr_adapter.upscaled import Upscaled  # noqa: E402
from restormixer_arch.compare import context, jobs, results, run, study, study_run, training  # noqa: E402
from restormixer_arch.compare.pictures import datasets, items  # noqa: E402
from restormixer_arch.models import memory, optimizers  # noqa: E402

ROOT = Path("results/tiny")
RUNS = [
    {"minutes": 0.5, "manual_seed": 1},
    {"minutes": 1, "manual_seed": 1},
    {"minutes": 1, "manual_seed": 2, "competitors": ["edsr"]},
]


def study_options():
    """Return a study in which 30 seconds are three iterations of edsr or two of ridnet, and a minute six or four."""
    options = compare_options()
    del options["train"]["budget"]
    options["runs"] = [dict(run) for run in RUNS]
    options["competitors"]["edsr"]["step_seconds"] = 10.0
    options["competitors"]["ridnet"]["step_seconds"] = 15.0
    options["context"] = {"dataset": {**options["datasets"]["test"], "name": "large"}, "sizes": [8, 16]}
    return options


FAULTS = [
    (lambda o: o["train"].update(budget={"minutes": 6}), "train.budget: cannot be combined with 'runs', which sets "
     "the budgets"),
    (lambda o: o["competitors"]["ridnet"].pop("step_seconds"), "competitors.ridnet.step_seconds: required key is "
     "missing: it converts minutes into iterations, see 'basicsr compare --steps'"),
    (lambda o: o["competitors"]["ridnet"].update(step_seconds=0), "competitors.ridnet.step_seconds: got 0, expected "
     "more than 0"),
    (lambda o: o["runs"][2].update(competitors=["edsr", "ridnt"]), "runs.2.competitors: 'ridnt' is not a known "
     "competitor. Did you mean 'ridnet'? Known: edsr, ridnet"),
    (lambda o: o["runs"][2].update(competitors=["ridnet"]), "runs.2.competitors: must include 'edsr', which "
     "the others are compared with"),
    (lambda o: o["runs"][2].update(manual_seed=1), "runs.2: 1min_seed1 exists already"),
    (lambda o: o["runs"][0].pop("minutes"), "runs.0.minutes: required key is missing (the budget of each competitor, "
     "by its step_seconds)"),
    (lambda o: o["runs"][1].update(manual_seed=2**33), "runs.1.manual_seed: got 8589934592, expected"),
    (lambda o: o["competitors"]["ridnet"].update(weights="x.pth"), "competitors.ridnet.weights: a study trains every "
     "competitor from scratch; compare trained networks in a file without 'runs'"),
    (lambda o: o["context"]["dataset"].update(mean=[0.5, 0.5, 0.5]), "context.dataset.mean: pictures are compared in "
     "[0, 1], without mean and std"),
    (lambda o: o["datasets"]["test"].update(color="y"), "datasets.test.color: got 'y', pictures are compared in RGB"),
    (lambda o: o.update(runs=[]), "runs: got [], expected 1 or more values"),
    (lambda o: o["context"].update(sizes=[8, 20]), "context.sizes: got [8, 20], expected growing multiples of the "
     "first one"),
    (lambda o: o["context"].update(sizes=[16, 8]), "context.sizes: got [16, 8], expected growing multiples of the "
     "first one"),
    (lambda o: o["context"]["dataset"].update(dataroot_gt="pairs/g"), "context.dataset.dataroot_gt: 'pairs/g' does "
     "not exist"),
    (lambda o: (o.pop("runs"), o["train"].update(budget={"iterations": 2})), "context: is measured in a study: 'runs' "
     "is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[text[:30] for _, text in FAULTS])
def test_invalid_study_is_reported_in_one_line(pairs, write, change, message):
    options = study_options()
    change(options)
    with pytest.raises(UserError) as error:
        read_compare_file(write(options))
    assert len(str(error.value).splitlines()) == 1 and message in str(error.value)


def test_steps_do_not_require_step_seconds(pairs, write):
    options = study_options()
    del options["competitors"]["ridnet"]["step_seconds"]
    assert "runs" in read_compare_file(write(options), needs_steps=False)


def test_options_of_a_run_are_those_of_a_single_comparison(pairs, write, tmp_path):
    options = read_compare_file(write(study_options()))
    own = options_of_run(options, options["runs"][2])
    assert own["name"] == "1min_seed2" and own["path"]["results_root"] == "results/tiny"
    assert list(own["competitors"]) == ["edsr"] and own["manual_seed"] == 2 and "runs" not in own
    assert own["train"]["budget"] == {"minutes": 1} and "budget" not in options["train"]
    whole = options_of_run(options, options["runs"][0])
    assert training.iterations(whole, ["edsr", "ridnet"], tmp_path, 1) == {"edsr": 3, "ridnet": 2}


def save_initial_weights(command, log):
    """Replace a training run, which is a separate process, by saving the network's initial weights."""
    options = yaml.safe_load(Path(command[command.index("-opt") + 1]).read_text(encoding="utf-8"))
    torch.manual_seed(options["manual_seed"])
    file = training.weights_of(options["name"], log.parents[1])
    file.parent.mkdir(parents=True)
    torch.save({"params": build_network(options["network_g"]).state_dict()}, file)
    return 0


def interrupt(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:distutils Version")  # raised by thop
@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_study_end_to_end(pairs, write, capsys, monkeypatch, trained):
    """The study's results are those of its runs, and a second call trains and measures nothing."""
    jobs_run = []
    if not trained:
        monkeypatch.setattr(training, "run_and_wait", save_initial_weights)

    def in_process(module, job, label):
        jobs_run.append(job["kind"])
        return jobs.run_job(job)

    for module in (run, context):
        monkeypatch.setattr(module, "run_in_process", in_process)
    file = write(study_options())
    assert cli.main(["compare", "-opt", file]) == 0
    said = capsys.readouterr().out
    folders = [ROOT / name for name in ("0.5min_seed1", "1min_seed1", "1min_seed2")]
    each = [results.read(folder) for folder in folders]
    assert [[c.training.iterations for c in one.competitors] for one in each] == [[3, 2], [6, 4], [6]]

    found = study.Study.model_validate_json((ROOT / "study.json").read_text(encoding="utf-8"))
    measure = ("pairs_test", "psnr")
    assert found.minutes == [0.5, 1] and found.measures == [measure]
    values = found.rows_by_seed("ridnet", 1, measure)[1].values
    wanted = {picture.name: picture.values["psnr"]["ridnet"] for picture in each[1].datasets[0].pictures}
    assert values == pytest.approx(wanted, abs=1e-4) and len(values) > 1
    assert set(found.rows_by_seed("edsr", 1, measure)) == {1, 2}
    mean = (each[1].datasets[0].mean("psnr", "edsr") + each[2].datasets[0].mean("psnr", "edsr")) / 2
    assert found.mean("edsr", 1, measure) == pytest.approx(mean, abs=1e-4)
    difference = found.difference("ridnet", 1, measure)  # from the mean of both seeds of edsr
    assert difference.mean == pytest.approx(each[1].datasets[0].mean("psnr", "ridnet") - mean, abs=1e-3)
    flops = each[0].competitors[0].training.flops
    assert found.rows_by_seed("edsr", 0.5, measure)[1].operations == pytest.approx(3 * flops * 2 * 3)
    page = (ROOT / "study.md").read_text(encoding="utf-8")
    assert f"{mean:.2f}, 2 seeds" in page and page.strip() in said and "8x8 | 16x16" in page
    for picture in ("study.png", "context.png"):
        assert (ROOT / picture).read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["compare", "--pages", str(ROOT / "study.json"), "--out", "again"]) == 0
    assert Path("again/tiny.md").read_text(encoding="utf-8") == page and Path("again/tiny.png").is_file()

    jobs_run.clear()
    assert cli.main(["compare", "-opt", file, "--auto_resume"]) == 0
    assert jobs_run == [] and (ROOT / "study.md").read_text(encoding="utf-8") == page

    options = study_options()
    options["runs"] = options["runs"][:1]
    options["val"]["metrics"]["psnr"]["crop_border"] = 2
    options["context"]["sizes"] = [4, 8, 16]
    assert cli.main(["compare", "-opt", write(options), "--auto_resume"]) == 0  # dependent results are measured again
    assert jobs_run.count("costs") == 1 and jobs_run.count("context") == 2
    assert "4x4 | 8x8 | 16x16" in (ROOT / "study.md").read_text(encoding="utf-8")

    options = study_options()
    options["train"]["optim_g"]["lr"] = 0.01
    assert cli.main(["compare", "-opt", write(options), "--auto_resume"]) == 2
    assert "competitors.edsr was started with other options (train)" in capsys.readouterr().err
    kept = ROOT / "0.5min_seed1" / "training" / "edsr.yml"
    content = kept.read_text(encoding="utf-8")
    kept.write_text(f"{content}removed_since: 1\n", encoding="utf-8")
    assert cli.main(["compare", "-opt", write(study_options()), "--auto_resume"]) == 2
    assert "competitors.edsr was started with other options (removed_since)" in capsys.readouterr().err
    kept.write_text(content, encoding="utf-8")

    def stopped_at_the_third(options, **arguments):
        return interrupt() if options["name"] == "1min_seed2" else original(options, **arguments)

    original = study_run.compare
    monkeypatch.setattr(study_run, "compare", stopped_at_the_third)
    assert cli.main(["compare", "-opt", write(study_options()), "--auto_resume"]) == 130
    page = (ROOT / "study.md").read_text(encoding="utf-8")  # of the two finished runs
    assert "2 seeds" not in page and "0.5 minutes | 1 minutes" in page and (ROOT / "study.png").is_file()

    monkeypatch.setattr(study_run, "compare", interrupt)
    assert cli.main(["compare", "-opt", write(study_options())]) == 130  # the previous study is archived
    (before,) = ROOT.parent.glob("tiny_archived_*")
    assert {"study.json", "study.md", "study.png", "context.png"} <= {path.name for path in before.iterdir()}
    assert (before / "1min_seed2" / "results.json").is_file()


@pytest.mark.timeout(120)
def test_steps_prints_step_seconds_as_lines_of_the_option_file(pairs, write, capsys, monkeypatch):
    monkeypatch.setattr(training, "run_in_process", lambda module, job, label: [0.5, 0.25, 0.75])
    options = study_options()
    del options["competitors"]["edsr"]["step_seconds"]
    assert cli.main(["compare", "-opt", write(options), "--steps"]) == 0
    assert "edsr: step_seconds: 0.5000\nridnet: step_seconds: 0.5000" in capsys.readouterr().out
    assert not ROOT.exists()


def test_training_operations():
    """Three passes of 100 operations for each of 4 crops in 10 iterations; None for crops without a fixed size."""
    costs = {"arch": "x", "parameters": 1, "flops": 1.0, "latency": {"median": 1, "low": 1, "high": 1, "runs": 1}}
    trained = {"iterations": 10, "batch_size": 4, "seconds": 1.0}
    known = results.Competitor(name="a", training={**trained, "flops": 100.0}, **costs)
    assert study_run.training_operations(known) == 3 * 100 * 4 * 10
    assert study_run.training_operations(results.Competitor(name="a", training=trained, **costs)) is None
    options = {"scale": 2, "datasets": {"train": {"gt_size": 32}}, "train": {}, "competitors": {"a": {}}}
    assert crop_side(options) == 16


def test_receptive_field_of_a_convolution():
    conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    field = context.receptive_field(conv, torch.rand(1, 3, 8, 10))
    wanted = torch.zeros(8, 10)
    wanted[3:6, 4:7] = conv.weight.sum(0).abs().sum(0).detach()  # the center pixel is (4, 5)
    torch.testing.assert_close(field, wanted)


def test_radius_of_a_share_of_the_receptive_field():
    field = np.zeros((9, 9))
    field[4, 4] = 100.0  # the center pixel is ignored
    field[4, 5], field[4, 7], field[1, 0] = 5.0, 4.0, 1.0  # at distances 1, 3 and 5
    assert [study.radius_of(field, share) for share in (0.5, 0.6, 0.9, 0.99)] == [1, 3, 3, 5]


class Offset(nn.Module):
    """Add 0.3 to a border of two pixels and 0.1 to the other pixels, and upsample the image by ``scale``."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        y = x + 0.3
        y[..., 2:-2, 2:-2] -= 0.2
        return y.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


@pytest.mark.parametrize("scale", [1, 2])
def test_center_psnr_compares_output_and_ground_truth_at_the_same_place(scale):
    """An error of 0.1 is a PSNR of 20 dB; a crop of the size of its center includes the border with an error of 0.3."""
    lq = torch.rand(1, 3, 21, 18) / 2
    gt = lq.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    assert context.center_psnr(Offset(scale), lq, gt, 16, 8) == pytest.approx(20, abs=1e-4)
    frame = (16 * 0.01 + 48 * 0.09) / 64
    assert context.center_psnr(Offset(scale), lq, gt, 8, 8) == pytest.approx(-10 * np.log10(frame), abs=1e-4)


def test_center_is_the_same_for_odd_and_even_crop_sizes():
    """A single wrong pixel is in the center of every crop or of none."""
    gt = torch.zeros(1, 3, 11, 11)
    lq = gt.clone()
    lq[..., 3, 3] = 1.0
    assert len({context.center_psnr(nn.Identity(), lq, gt, size, 5) for size in (5, 10)}) == 1


def test_receptive_field_is_averaged_over_all_images(pairs, write):
    """For the product of two neighbors, the gradient at each is the other one, here divided by the sum of both."""
    options = read_compare_file(write(study_options()))
    data = context_options({**options, "context": {"dataset": options["datasets"]["test"]}})
    pictures = [item["lq"] for _, dataset in datasets(data) for _, item in items(dataset)]
    assert len({float(picture.sum()) for picture in pictures}) > 1
    use, field = context.measure_context_use(Neighbors(), data, [8, 16])
    assert len(use.psnr[16]) == len(pictures)
    wanted = torch.zeros(16, 16)
    for picture in pictures:
        pixels = context.center_crop(picture[None], 16)[0].sum(0)
        sides = torch.stack([pixels[8, 7], pixels[8, 9]])
        wanted[8, 7] += sides[1] / sides.sum() / len(pictures)
        wanted[8, 9] += sides[0] / sides.sum() / len(pictures)
    torch.testing.assert_close(field, wanted)


class Neighbors(nn.Module):
    """Multiply the left and right neighbors of each pixel."""

    def forward(self, x):
        return x.roll(1, -1) * x.roll(-1, -1)


def test_unknown_context_dataset_is_rejected_before_training(pairs, write, capsys):
    options = study_options()
    options["context"]["dataset"]["type"] = "PairedRestorationDatasett"
    assert cli.main(["compare", "-opt", write(options)]) == 2
    assert "context.dataset.type: 'PairedRestorationDatasett' is not a known" in capsys.readouterr().err


def test_images_smaller_than_the_largest_crop_are_skipped(monkeypatch):
    sizes = {"large": (3, 16, 16), "small": (3, 16, 12)}
    tensors = {name: torch.rand(size) for name, size in sizes.items()}
    images = [{"lq": tensor, "gt": tensor, "lq_path": name} for name, tensor in tensors.items()]
    monkeypatch.setattr(context, "datasets", lambda options: [("test", images)])
    use, _ = context.measure_context_use(Neighbors(), {}, [8, 16])
    assert list(use.psnr[8]) == list(use.psnr[16]) == ["large"]


def test_context_sizes_larger_than_all_images_are_rejected(pairs, write):
    options = read_compare_file(write(study_options()))
    data = {**options, "datasets": {"test": options["context"]["dataset"]}}
    with pytest.raises(UserError, match="context.dataset: no picture has 4096 x 4096 pixels"):
        context.measure_context_use(nn.Identity(), data, [8, 4096])


class Identity(nn.Module):
    def forward(self, x):
        return x


def test_upscaled_adds_the_network_output_to_bicubic_upsampling(monkeypatch):
    """The output channels become the pixels of each 2x2 block, added to the bicubically upsampled input."""
    net = Upscaled(network={**EDSR, "num_in_ch": 12, "num_out_ch": 12}, upscale=2)
    x = torch.rand(2, 3, 6, 5)
    bicubic = nn.functional.interpolate(x, scale_factor=2.0, mode="bicubic", align_corners=False)
    net.network = Identity()
    torch.testing.assert_close(net(x), bicubic)
    net.residual = False
    torch.testing.assert_close(net(x), bicubic + x.repeat_interleave(2, -1).repeat_interleave(2, -2))


RESTORMIXER = {"type": "RestorMixer", "base_channels": 4, "num_blocks": [1, 2, 2], "d_state": 4}
HEADS = {"encoder_heads": [2, 2], "decoder_heads": [2, 2], "in_channels": 12, "out_channels": 12}


def test_upscaled_restormixer_returns_one_image_and_keeps_its_training_settings():
    net = Upscaled(network={**RESTORMIXER, **HEADS}, upscale=2).train()
    assert net(torch.rand(1, 3, 8, 8)).shape == (1, 3, 16, 16)
    unused = net._ddp_params_and_buffers_to_ignore
    assert unused and set(unused) < {name for name, _ in net.named_parameters()}
    assert memory.set_checkpointing(net) == 4
    assert len(optimizers.parameter_groups(net)) == 2


def test_upscaled_by_one_adds_the_input():
    net = Upscaled(network=EDSR, upscale=1, residual=False)
    net.network = Identity()
    x = torch.rand(2, 3, 6, 5)
    torch.testing.assert_close(net(x), 2 * x)


def test_upscaled_gives_the_network_a_noise_map():
    net = Upscaled(network=EDSR, upscale=1, residual=False, noise_map=0.25)
    net.network = nn.Conv2d(4, 3, 1, bias=False)
    net.network.weight.data = torch.tensor([[0.0, 0, 0, 4], [1, 0, 0, 0], [0, 0, 2, 8]])[..., None, None]
    x = torch.rand(2, 3, 6, 5)
    expected = x + torch.stack([torch.ones(2, 6, 5), x[:, 0], 2 * x[:, 2] + 2], 1)
    torch.testing.assert_close(net(x), expected)


def test_drunet_corrects_exposure_only_with_a_noise_map():
    """DRUNet has no biases: without a constant channel, its output scales with its input."""
    pytest.importorskip("spandrel", reason="spandrel is not installed")
    arguments = {"type": "DRUNet_spandrel", "out_nc": 3, "nc": [4, 4, 4, 4], "nb": 2}
    x = torch.rand(1, 3, 16, 16)
    for channels, noise_map, scales in ((3, None, True), (4, 1.0, False)):
        network = {**arguments, "in_nc": channels}
        net = Upscaled(network=network, upscale=1, residual=False, noise_map=noise_map).eval()
        with torch.no_grad():
            assert torch.allclose(net(x / 2), net(x) / 2, rtol=1e-4, atol=1e-5) == scales


def test_unknown_network_in_upscaled_is_rejected():
    with pytest.raises(UserError, match="^network_g.network.type: 'Nafnet_spandrel': spandrel has no 'Nafnet'"):
        build_network({"type": "Upscaled", "network": {"type": "Nafnet_spandrel"}})
    with pytest.raises(UserError, match="^network_g.network.type: 'X' is not a known architecture"):
        build_network({"type": "Upscaled", "network": {"type": "X"}})
