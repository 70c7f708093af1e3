"""The check of option files before anything heavy is imported: each error is reported in one line."""

from __future__ import annotations

import datetime
import math
from pathlib import Path

import pytest
from option_cases import MISSING, put

from restormixer_arch.config import rules
from restormixer_arch.config.check import check_options, read_request
from restormixer_arch.config.rules import STORABLE
from restormixer_arch.errors import OptionErrors


def problems_of(name: str, is_train: bool = True) -> list[str]:
    with pytest.raises(OptionErrors) as caught:
        read_request(name, is_train=is_train)
    return caught.value.lines


TEMPLATE = "expected one '{}' for the stem of the ground truth's name, such as '{}_rain'"


# --- the schema ----------------------------------------------------------------------------------------------------


def test_correct_files_pass(pairs, train_options, test_options, write):
    assert read_request(write(train_options), is_train=True).options == train_options
    Path("experiments/tiny/models").mkdir(parents=True)
    Path("experiments/tiny/models/net_g_latest.pth").touch()
    assert read_request(write(test_options), is_train=False).options == test_options


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("manual_sed", 1, "unknown key. Did you mean 'manual_seed'?"),
        ("zzz", 1, "unknown key."),
        ("name", MISSING, "required key is missing (name of the experiment and its folder)"),
        ("name", "a/b", f"got 'a/b', expected {STORABLE}"),
        ("name", "..", f"got '..', expected {STORABLE}"),
        ("name", "a:b", f"got 'a:b', expected {STORABLE}"),
        ("name", "nul.txt", f"got 'nul.txt', expected {STORABLE}"),
        ("datasets.val.name", "dot.", f"got 'dot.', expected {STORABLE}"),
        ("name", "a\nb", f"got 'a\\nb', expected {STORABLE}"),
        ("name", "é" * 76, f"got '{'é' * 76}', expected {STORABLE}"),
        ("manual_seed", 2**32, "got 4294967296, expected less than 4294901760"),
        ("num_threads", 10**9, "got 1000000000, expected at most 1024"),
        ("datasets.train.gt_size", 100_000, "got 100000, expected at most 8192"),
        ("datasets.train.num_worker_per_gpu", 10**5, "got 100000, expected at most 256"),
        ("datasets.train.dataset_enlarge_ratio", 1e12, "got 1000000000000.0, expected at most 1000000.0"),
        ("train.pixel_opt", MISSING, "a loss is missing: expected pixel_opt or perceptual_opt"),
        ("val.metrics.psnr.crop_border", "a", "got 'a', expected a whole number"),
        ("num_gpu", -1, "got -1, expected at least 0, or 'auto'"),
        ("num_gpu", "all", "got 'all', expected a whole number, or 'auto'"),
        ("scale", MISSING, "required key is missing (1 where images keep their size)"),
        ("path", None, "got None, expected a section of 'key: value' lines"),
        ("path.strict_laod_g", True, "unknown key. Did you mean 'strict_load_g'?"),
        ("path.pretrain_network_g", "x.pth", "'x.pth' does not exist."),
        ("path.resume_state", "a/5.state", "'a/5.state' does not exist (there is no 'a' in {cwd})."),
        ("network_g.type", MISSING, "required key is missing (the registered name of the class to build)"),
        ("train.total_iter", "5", "got '5', expected a whole number"),
        ("train.total_iter", 1e5 + 0.5, "got 100000.5, expected a whole number"),
        ("train.total_iter", 0, "got 0, expected at least 1"),
        ("train.ema_decay", 1, "got 1, expected less than 1.0"),
        ("train.grad_clip", 1, "unknown key."),  # a key of RestorMixerModel, not of SRModel
        ("train.optim_g.lr", math.nan, "got nan, expected a finite number"),
        ("train.optim_g.weight_dacay", 0, "unknown key. Did you mean 'weight_decay'?"),
        ("train.optim_g.betas", [0.9], "got [0.9], expected 2 or more values"),
        ("train.pixel_opt.type", MISSING, "required key is missing (the registered name of the class to build)"),
        ("train.scheduler.type", MISSING, "required key is missing (the kind of schedule)"),
        ("train.scheduler.gama", 1, "unknown key. Did you mean 'gamma'?"),
        ("train.scheduler.restart_weights", [1, 2], "got 2 values, expected one for each of the 1 restarts"),
        ("val.val_freq", MISSING, "required key is missing (iterations between two validations)"),
        ("val.save_img", MISSING, "required key is missing (write the restored images to disk)"),
        ("val.save_img", "yes", "got 'yes', expected true or false"),
        ("val.metrics.psnr.better", "more", "got 'more', expected 'higher' or 'lower'"),
        ("logger.print_freq", MISSING, "required key is missing (iterations between two log lines)"),
        ("logger.use_tb_logger", MISSING, "required key is missing (write tensorboard scalars)"),
        ("datasets.train", MISSING, "required section is missing (the images to train on)"),
        ("datasets.train.gt_siz", 3, "unknown key. Did you mean 'gt_size'?"),
        ("datasets.train.gt_size", MISSING, "required key is missing (side of the square crops)"),
        ("datasets.train.batch_size_per_gpu", MISSING, "required key is missing (images per iteration)"),
        ("datasets.val.io_backend.type", "disc", "got 'disc', expected 'disk', 'lmdb' or 'memcached'"),
        ("datasets.val.type", ["PairedImageDataset"], "got ['PairedImageDataset'], expected text"),
        ("model_type", ["SRModel"], "got ['SRModel'], expected text"),
        ("val.metrics.psnr.type", {}, "got {}, expected text"),
        ("datasets.val.dataroot_gt", "pairs/g", "'pairs/g' does not exist. Did you mean 'pairs/gt'?"),
        ("datasets.val.dataroot_gt", "x" * 300, f"'{'x' * 300}' cannot be looked up (File name too long)"),
        (
            "datasets.val.name",
            "\ud800",
            f"got '\\ud800', expected {STORABLE}",
        ),
        ("datasets.train.filename_tmpl", "{}{}", f"got '{{}}{{}}', {TEMPLATE}"),
        ("datasets.train.filename_tmpl", "rain", f"got 'rain', {TEMPLATE}"),
    ],
)
def test_each_error_is_reported_in_one_line(pairs, train_options, write, path, value, text):
    put(train_options, path, value)
    assert problems_of(write(train_options)) == [f"x.yml: {path}: {text.replace('{cwd}', str(Path.cwd()))}"]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("tile", 32, "got 32, expected at least 64"),
        ("tile", "auto", "got 'auto', expected a whole number"),
        ("tile_overlap", -1, "got -1, expected at least 0"),
        ("tile_blend", "han", "got 'han', expected 'hann' or 'linear'"),
        ("max_memory", "lots", "got 'lots', expected an amount of memory such as 3G or 800M"),
        ("max_memory", "9" * 400, f"got '{'9' * 400}', expected an amount of memory such as 3G or 800M"),
        ("til", 512, "unknown key. Did you mean 'tile'?"),
    ],
)
def test_tiles_need_a_model_that_supports_them(pairs, train_options, test_options, write, key, value, text):
    good = {"tile": 512, "tile_overlap": 64, "tile_blend": "hann", "max_memory": "3G"}
    for options, is_train in ((train_options, True), (test_options, False)):
        options["path"] = {}
        options["val"].update(good)
        assert problems_of(write(options), is_train) == [f"x.yml: val.{name}: unknown key." for name in good]
        options["model_type"] = "RestorMixerModel"
        read_request(write(options), is_train=is_train)
        options["val"][key] = value
        assert problems_of(write(options), is_train) == [f"x.yml: val.{key}: {text}"]


@pytest.mark.parametrize("key", [1, 1.5, None, True, datetime.date(2024, 1, 1)])
@pytest.mark.parametrize("section", ["", "train", "val.metrics", "network_g", "datasets", "path"])
def test_key_that_is_not_text_is_reported_in_one_line(pairs, train_options, write, section, key):
    place = train_options
    for name in filter(None, section.split(".")):
        place = place[name]
    place[key] = {"type": "calculate_psnr"}
    at = f"{section}.{key}".lstrip(".")
    text = f"got the key {key}, expected text; put a number, date, null, on, off, yes or no in quotes to use it as text"
    assert problems_of(write(train_options)) == [f"x.yml: {at}: {text}"]


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("key", ["mixup", "grad_clip", "cutblur", "optim_g.lr"])
def test_numbers_must_be_finite(pairs, train_options, write, key, value):
    train_options["model_type"] = "RestorMixerModel"
    put(train_options, f"train.{key}", value)
    assert problems_of(write(train_options)) == [f"x.yml: train.{key}: got {value}, expected a finite number"]


@pytest.mark.parametrize("path", ["train.total_iter", "train.grad_clip", "train.pixel_opt.loss_weight", "network_g.x"])
def test_integers_must_fit_in_64_bits(pairs, train_options, write, path):
    train_options["model_type"] = "RestorMixerModel"
    put(train_options, path, 2**63)
    assert problems_of(write(train_options)) == [
        f"x.yml: {path}: got 9223372036854775808, expected at most 9223372036854775807 in size"
    ]


@pytest.mark.parametrize("name", ["iteration", "dataset", "set", "images", "psnr_input"])
def test_metric_must_not_have_the_name_of_another_column(pairs, train_options, test_options, write, name):
    test_options["path"] = {}
    for options, is_train in ((train_options, True), (test_options, False)):
        options["val"]["metrics"][name] = dict(options["val"]["metrics"]["psnr"])
        assert problems_of(write(options), is_train) == [
            f"x.yml: val.metrics.{name}: names another column of the tables of results, expected another name"
        ]


def test_swinir_model_requires_the_window_size_that_it_pads_to(pairs, train_options, write):
    train_options |= {"model_type": "SwinIRModel", "network_g": {"type": "SwinIR", "img_size": 8}}
    assert problems_of(write(train_options)) == [
        "x.yml: network_g.window_size: required key is missing: 'SwinIRModel' pads images to it"
    ]
    train_options["network_g"]["window_size"] = 7
    assert read_request(write(train_options), is_train=True)


def test_mean_requires_std_with_1_or_3_numbers(pairs, train_options, write):
    train_options["datasets"]["train"]["mean"] = [0.5] * 3
    train_options["datasets"]["val"].update(mean=[0.5] * 3, std=[0.25] * 2)
    assert problems_of(write(train_options)) == [
        "x.yml: datasets.train.std: required key is missing, since 'mean' is given",
        "x.yml: datasets.val.std: got [0.25, 0.25], expected 1 or 3 numbers, for gray or RGB",
    ]


def test_dataset_and_metric_names_fit_in_a_file_name_together(pairs, train_options, write):
    train_options["datasets"]["val"]["name"] = "é" * 60  # 120 bytes
    train_options["val"]["metrics"] = {"m" * 110: {"type": "calculate_psnr", "crop_border": 0}}
    assert read_request(write(train_options), is_train=True)
    train_options["datasets"]["val"]["name"] += "v"
    assert problems_of(write(train_options)) == [
        f"x.yml: datasets.val.name: has 231 bytes with the metric '{'m' * 110}', expected at most 230: names of files"
    ]


def test_dataset_must_not_be_named_average(pairs, test_options, write):
    test_options["path"] = {}
    test_options["datasets"]["test_1"]["name"] = "average"
    assert read_request(write(test_options), is_train=False)
    test_options["datasets"]["test_2"] = {**test_options["datasets"]["test_1"], "name": "other"}
    assert problems_of(write(test_options), is_train=False) == [
        "x.yml: datasets.test_1.name: got 'average', which names the average of the sets in the results, expected "
        "another"
    ]


def test_fraction_must_be_between_0_and_1(pairs, train_options, write):
    train_options["model_type"] = "RestorMixerModel"
    for value, text in ((1.5, "at most 1.0"), (-0.1, "at least 0.0"), ("half", "a number")):
        train_options["train"]["freeze_norms_after"] = value
        [line] = problems_of(write(train_options))
        assert line == f"x.yml: train.freeze_norms_after: got {value!r}, expected {text}"


def test_file_can_be_checked_without_its_data(folder, train_options):
    with pytest.raises(OptionErrors, match="'pairs/gt' does not exist"):
        check_options(train_options, "x.yml", True)
    check_options(train_options, "x.yml", True, paths=False)


def test_unknown_scheduler_is_reported_with_the_known_ones(pairs, train_options, write):
    train_options["train"]["scheduler"]["type"] = "CosineAnealingRestartLR"
    assert problems_of(write(train_options)) == [
        "x.yml: train.scheduler.type: 'CosineAnealingRestartLR' is not a known scheduler. Did you mean "
        "'CosineAnnealingRestartLR'? Known: CosineAnnealingRestartLR, MultiStepLR, MultiStepRestartLR"
    ]


def test_misspelled_required_key_is_one_error_and_errors_are_in_file_order(pairs, train_options, write):
    train_options["train"]["totl_iter"] = train_options["train"].pop("total_iter")
    train_options["num_gpu"] = 1.5
    train_options["logger"]["print_freq"] = 0
    assert problems_of(write(train_options)) == [
        "x.yml: num_gpu: got 1.5, expected a whole number, or 'auto'",
        "x.yml: train.totl_iter: unknown key. Did you mean 'total_iter'?",
        "x.yml: logger.print_freq: got 0, expected at least 1",
    ]


def test_schedule_must_cover_all_iterations(pairs, train_options, write):
    cosine = {"type": "CosineAnnealingRestartLR", "periods": [2, 2], "restart_weights": [1]}
    train_options["train"]["scheduler"] = cosine
    assert problems_of(write(train_options)) == [
        "x.yml: train.scheduler.periods: the sum of [2, 2] is 4, less than total_iter 5",
        "x.yml: train.scheduler.restart_weights: got 1 values, expected one for each of the 2 periods",
    ]
    cosine.update(periods=[2, 3], restart_weights=[1, 1])
    read_request(write(train_options), is_train=True)


def test_lmdb_paths_need_the_lmdb_backend(pairs, train_options, write):
    at, val = "x.yml: datasets.val.dataroot", train_options["datasets"]["val"]
    val["io_backend"] = {"type": "lmdb"}
    reason = "must end in '.lmdb' because io_backend.type is 'lmdb'"
    assert problems_of(write(train_options)) == [f"{at}_gt: 'pairs/gt' {reason}", f"{at}_lq: 'pairs/lq' {reason}"]
    Path("x.lmdb").mkdir()
    val.update(io_backend={"type": "disk"}, dataroot_gt="x.lmdb")
    reason = "is an LMDB, which needs io_backend.type 'lmdb', got 'disk'"
    assert problems_of(write(train_options)) == [f"{at}_gt: 'x.lmdb' {reason}"]


def test_lmdb_folder_must_contain_both_of_its_files(pairs, train_options, write):
    for kind in ("gt", "lq"):
        root = Path(f"{kind}.lmdb")
        root.mkdir()
        (root / "data.mdb").touch()
        train_options["datasets"]["val"][f"dataroot_{kind}"] = str(root)
    Path("lq.lmdb/meta_info.txt").touch()
    train_options["datasets"]["val"]["io_backend"] = {"type": "lmdb"}
    assert problems_of(write(train_options)) == [
        "x.yml: datasets.val.dataroot_gt: 'gt.lmdb' is not a BasicSR LMDB: meta_info.txt is missing"
    ]


def test_metrics_need_ground_truth(pairs, test_options, write):
    single = {"type": "SingleImageDataset", "name": "s", "dataroot_lq": "pairs/lq", "io_backend": {"type": "disk"}}
    test_options.update(datasets={"test_1": single}, path={})
    assert problems_of(write(test_options), is_train=False) == [
        "x.yml: datasets.test_1.type: 'SingleImageDataset' has no ground truth for val.metrics (calculate_psnr)"
    ]
    test_options["val"]["metrics"] = {"niqe": {"type": "calculate_niqe", "crop_border": 0}}
    read_request(write(test_options), is_train=False)


@pytest.mark.parametrize(
    ("phase", "is_train", "text"),
    [
        ("test", True, "train', expected 'train', 'val' or 'val_<n>'."),
        ("train_2", True, "train', expected 'train', 'val' or 'val_<n>'. Did you mean 'train'?"),
        ("tset", False, "test', expected 'test', 'test_<n>' or 'val'. Did you mean 'test'?"),
    ],
)
def test_unknown_phase_of_the_command_is_rejected(pairs, train_options, test_options, write, phase, is_train, text):
    options = train_options if is_train else test_options | {"path": {}}
    options["datasets"][phase] = dict(options["datasets"]["val" if is_train else "test_1"])
    assert problems_of(write(options), is_train) == [f"x.yml: datasets.{phase}: unknown phase for 'basicsr {text}"]


def test_classes_of_a_plugin_may_have_additional_keys(pairs, train_options, write):
    train_options.update(model_type="PluginModel", plugin_key=1)
    train_options["train"]["plugin_loss"] = {"weight": 1}
    train_options["val"]["plugin_val"] = 1
    train_options["network_g"]["whatever"] = 1
    train_options["datasets"]["val"].update(type="PluginDataset", rain=0.5)
    assert read_request(write(train_options), is_train=True).options == train_options
    del train_options["train"]["total_iter"]  # which BasicSR's training loop reads
    assert problems_of(write(train_options)) == [
        "x.yml: train.total_iter: required key is missing (iterations to train)"
    ]


# --- combinations of options -----------------------------------------------------------------------------------------


def test_crop_size_must_be_a_multiple_of_the_scale(train_options):
    train_options["scale"] = 3
    with pytest.raises(OptionErrors, match=r"datasets\.train\.gt_size: got 16, expected a multiple of scale 3"):
        check_options(train_options, "x.yml", True, paths=False)


def test_progressive_stages_are_checked_before_training(pairs, train_options, write):
    train_options.update(model_type="RestorMixerModel", scale=2)
    train_options["train"]["progressive"] = {"iters": [2, 2], "gt_sizes": [8, 15], "batch_sizes": [4]}
    assert problems_of(write(train_options)) == [
        "x.yml: train.progressive: iters, gt_sizes and batch_sizes must be of one length, got 2, 2 and 1",
        "x.yml: train.progressive.gt_sizes: got 15, expected a multiple of scale 2",
    ]


def test_wandb_needs_its_package_and_tensorboard(train_options, monkeypatch):
    train_options["logger"].update(wandb={"project": "rain"}, use_tb_logger=False)
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionErrors) as error:
        check_options(train_options, "x.yml", True, paths=False)
    assert str(error.value).splitlines() == [
        "x.yml: logger.use_tb_logger: must be true for logger.wandb, which follows tensorboard's files",
        "x.yml: logger.wandb: needs the package wandb: pip install wandb",
    ]
    train_options["logger"].update(wandb={"project": None})
    check_options(train_options, "x.yml", True, paths=False)


@pytest.mark.parametrize(
    ("size", "blocks", "advice"),
    [
        (
            32,
            [4, 4, 4],
            "32 pixels become 8 pixels at 1/4 resolution, where the largest window has 16",
        ),  # the window is twice as wide as the image
        (64, [4, 4, 4], None),
        (16, [2, 8, 0], "16 pixels become 8 pixels at 1/2 resolution, where the largest window has 32"),
    ],
)
def test_windows_of_mostly_padding_are_reported(train_options, size, blocks, advice):
    train_options["network_g"] = {"type": "RestorMixer", "num_blocks": blocks}
    train_options["datasets"]["train"]["gt_size"] = size
    text = rules.window_advice(train_options)
    assert text is None if advice is None else advice in text


@pytest.mark.parametrize(("key", "value"), [("window_size", None), ("window_size", [8, 8]), ("num_blocks", "4")])
def test_no_window_advice_for_values_of_the_wrong_type(train_options, key, value):
    train_options["network_g"] = {"type": "RestorMixer", key: value}
    assert rules.window_advice(train_options) is None


def test_progressive_stages_larger_than_the_loaded_batch_are_rejected(train_options, write, pairs):
    train_options.update(model_type="RestorMixerModel")
    train_options["train"]["progressive"] = {"iters": [2, 2], "gt_sizes": [8, 32], "batch_sizes": [8, 2]}
    assert problems_of(write(train_options)) == [
        "x.yml: train.progressive.gt_sizes: the largest stage needs 32, but datasets.train.gt_size is 16; raise that",
        "x.yml: train.progressive.batch_sizes: the largest stage needs 8, but datasets.train.batch_size_per_gpu is 4; "
        "raise that",
    ]


@pytest.mark.parametrize(("model", "wrong"), [("SRModel", True), ("ESRGANModel", True), ("RestorMixerModel", False)])
def test_single_output_models_need_a_single_output_network(train_options, model, wrong):
    options = {**train_options, "model_type": model, "network_g": {"type": "RestorMixer"}}
    found = [problem for problem in rules.file_problems(options, True, paths=False) if problem.path[0] == "network_g"]
    assert [(problem.path[1], problem.text[:28]) for problem in found] == (
        [("deep_supervision", "must be false for model_type")] if wrong else []
    )
    options["network_g"]["deep_supervision"] = False
    assert not list(rules.outputs(options))


def test_missing_key_is_reported_with_a_similar_key_that_a_plugin_might_define(train_options):
    train_options["model_type"] = "MyModel"
    train_options["train"]["total_iters"] = train_options["train"].pop("total_iter")
    with pytest.raises(OptionErrors, match=r"train\.total_iter: required key .*Did you write it as 'total_iters'\?"):
        check_options(train_options, "x.yml", True, paths=False)
