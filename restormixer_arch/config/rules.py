"""Define the rules of option files beyond single keys: sums, lengths, pairs of keys, and paths.

Each rule is defined only here. The ``*_problem`` functions check one value and return an error message or None;
datasets and models also call them. The others accept a complete file and yield problems. Apart from this project, only
the standard library is imported.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from restormixer_arch.errors import Problem, did_you_mean, not_found
from restormixer_arch.output import user_path

NAME_PATTERN = r'^[^/\\:*?"<>|\x00-\x1f]*[^/\\:*?"<>|\x00-\x1f.][^/\\:*?"<>|\x00-\x1f]*$'  # excludes . and ..
RESERVED = ("CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10)))
SURROGATES = "[\ud800-\udfff]"  # such as "\ud800" in YAML, which file names cannot contain
MAX_NAME_BYTES = 150  # bytes in UTF-8; file systems allow 255 bytes, including what is added to the name
MAX_COMBINED_NAME_BYTES = 230  # a dataset's and a metric's name together, as in net_g_best_<set>_<metric>.pth
COLUMNS = ("iteration", "dataset", "set", "images")  # columns of the result tables besides the metrics
MAX_INTEGER = 2**63 - 1
AVERAGE = "average"  # name of the row below those of the datasets in the results
STORABLE = 'a name of at most 150 bytes that every system can store, without / \\ : * ? " < > |'
WITH_LOSS = ("SRModel", "SwinIRModel", "RestorMixerModel")
WITH_ONE_OUTPUT = ("SRModel", "SwinIRModel", "SRGANModel", "ESRGANModel", "RealESRNetModel", "RealESRGANModel")
GANS = ("SRGANModel", "ESRGANModel")
DEEPLY_SUPERVISED = ("RestorMixer", "RestorMixerAblation")
WITH_TRUTH = ("PairedImageDataset", "PairedRestorationDataset", "DegradedDataset")
FILES = ("meta_info_file", "compositions")  # keys of a dataset that name files to read
WITHOUT_TRUTH = ("SingleImageDataset",)
NO_REFERENCE_METRICS = ("calculate_niqe",)  # need no ground truth
LESS_IS_BETTER = ("calculate_niqe", "calculate_lpips", "calculate_dists")


# --- values ------------------------------------------------------------------------------------------------------


def crop_problem(gt_size: int, scale: int) -> str | None:
    """Return a message if ``gt_size`` is not a positive multiple of ``scale``, by which the LQ crop is smaller."""
    return f"got {gt_size}, expected a multiple of scale {scale}" if gt_size < 1 or gt_size % scale else None


def database_problem(root: str | Path, backend: str) -> str | None:
    """Return a message if only one of path and backend is for LMDB, or an LMDB folder lacks one of its two files."""
    is_database, folder = str(root).endswith(".lmdb"), user_path(root)
    if backend == "lmdb" and not is_database:
        return f"{str(root)!r} must end in '.lmdb' because io_backend.type is 'lmdb'"
    if backend == "disk" and is_database:
        return f"{str(root)!r} is an LMDB, which needs io_backend.type 'lmdb', got 'disk'"
    if backend == "lmdb" and folder.is_dir():
        for file in ("data.mdb", "meta_info.txt"):
            if not (folder / file).is_file():
                return f"{str(root)!r} is not a BasicSR LMDB: {file} is missing"
    return None


def path_problem(path: str) -> str | None:
    """Return a message if a path to read is empty, does not exist or cannot be looked up."""
    if not path:
        return "got '', expected the name of a file or folder, or ~ for none"
    try:
        return None if user_path(path).exists() else f"{path!r} {not_found(path)}"
    except OSError as error:  # such as a name that is too long, or a folder that is not readable
        return f"{path!r} cannot be looked up ({error.strerror or type(error).__name__})"


def name_problem(name: str) -> str | None:
    """Return a message if a file or folder name is not valid on every system, since option files are portable."""
    if re.search('[:*?"<>|]', name) or name.endswith((".", " ")) or name.partition(".")[0].upper() in RESERVED:
        return f'got {name!r}, which Windows cannot store: expected a name without : * ? " < > |, a last dot or blank'
    fits = re.fullmatch(NAME_PATTERN, name) and _bytes(name) <= MAX_NAME_BYTES and not re.search(SURROGATES, name)
    return None if fits else f"got {name!r}, expected {STORABLE}"


def phase_kind(phase: Any) -> str:
    """Return ``train``, ``val`` or ``test`` for a key of ``datasets`` such as ``val_2``."""
    return str(phase).split("_")[0]


# --- files -------------------------------------------------------------------------------------------------------


def file_problems(options: dict[str, Any], is_train: bool, *, paths: bool = True) -> Iterator[Problem]:
    """Yield the problems of an option file for ``basicsr train`` or ``basicsr test``.

    Args:
        options: content of the file; sections of a wrong type are left to the schema.
        is_train: True for ``basicsr train``, False for ``basicsr test``.
        paths: also check that the files and folders named in the options exist.
    """
    yield from phases(options, is_train)
    if is_train:
        yield from schedule(options)
        yield from crops(options)
        yield from losses(options)
        yield from outputs(options)
        yield from judged_size(options)
        yield from progressive(options)
        yield from mixing(options)
        yield from logging(options)
        yield from best_weights(options)
    else:
        yield from averages(options)
    yield from scale(options)
    yield from windows(options)
    yield from columns(options)
    yield from normalization(options)
    yield from databases(options)
    yield from metrics_without_truth(options)
    if paths:
        yield from missing_paths(options)


def phases(options: dict[str, Any], is_train: bool) -> Iterator[Problem]:
    """Check the phases (``train`` and ``val*`` to train, ``val*`` and ``test*`` to test) and the dataset names."""
    datasets = _section(options, "datasets")
    kinds = ("train", "val") if is_train else ("val", "test")
    allowed = "'train', 'val' or 'val_<n>'" if is_train else "'test', 'test_<n>' or 'val'"
    command = "train" if is_train else "test"
    for phase in datasets:
        if not isinstance(phase, str):
            continue  # reported by the schema
        kind = phase_kind(phase)
        if kind not in kinds or (kind == "train" and phase != "train"):
            hint = did_you_mean(phase, kinds)
            text = f"unknown phase for 'basicsr {command}', expected {allowed}.{hint}"
            yield Problem(("datasets", phase), text)
    names: dict[str, str] = {}
    for phase, dataset in datasets.items():
        restored = phase_kind(phase) in kinds and phase_kind(phase) != "train"
        name = dataset.get("name") if isinstance(dataset, dict) and restored else None
        if isinstance(name, str) and names.setdefault(name.casefold(), str(phase)) != str(phase):
            other = names[name.casefold()]
            text = f"got {name!r}, which names datasets.{other} already, expected another: results would mix"
            yield Problem(("datasets", str(phase), "name"), text)
    if is_train and "train" not in datasets:
        yield Problem(("datasets", "train"), "required section is missing (the images to train on)")
    if not is_train and not datasets:
        yield Problem(("datasets",), f"no dataset to measure on, expected {allowed}")


def schedule(options: dict[str, Any]) -> Iterator[Problem]:
    """Check the restart weights, and that the schedule does not end before training, or else BasicSR fails."""
    train = _section(options, "train")
    scheduler, total = _section(train, "scheduler"), train.get("total_iter")
    periods, at = scheduler.get("periods"), ("train", "scheduler")
    if _is_numbers(periods) and isinstance(total, int) and sum(periods) < total:
        text = f"the sum of {periods!r} is {sum(periods)}, less than total_iter {total}"
        yield Problem((*at, "periods"), text)
    lasting = periods if "periods" in scheduler else scheduler.get("restarts", [0])
    weights = scheduler.get("restart_weights", [1])
    if _is_numbers(lasting) and _is_numbers(weights) and len(lasting) != len(weights):
        key = "periods" if "periods" in scheduler else "restarts"
        text = f"got {len(weights)} values, expected one for each of the {len(lasting)} {key}"
        yield Problem((*at, "restart_weights"), text)


def crops(options: dict[str, Any]) -> Iterator[Problem]:
    """Check the size of the training crops; see :func:`crop_problem`."""
    size, factor = _section(_section(options, "datasets"), "train").get("gt_size"), options.get("scale", 1)
    if isinstance(size, int) and isinstance(factor, int) and min(size, factor) >= 1:  # else reported by the schema
        if text := crop_problem(size, factor):
            yield Problem(("datasets", "train", "gt_size"), text)


def progressive(options: dict[str, Any]) -> Iterator[Problem]:
    """Check the progressive stages, see :func:`progressive_problems`, and that the dataset covers the largest."""
    table, factor = _section(_section(options, "train"), "progressive"), options.get("scale", 1)
    lists = [table.get(key) for key in ("iters", "gt_sizes", "batch_sizes")]
    if all(map(_is_numbers, lists)) and isinstance(factor, int) and factor >= 1:  # else reported by the schema
        yield from progressive_problems(table, factor)
        data = _section(_section(options, "datasets"), "train")
        for key, loaded in (("gt_sizes", "gt_size"), ("batch_sizes", "batch_size_per_gpu")):
            largest = max(table[key], default=0)
            if isinstance(data.get(loaded), int) and largest > data[loaded]:
                text = f"the largest stage needs {largest}, but datasets.train.{loaded} is {data[loaded]}; raise that"
                yield Problem(("train", "progressive", key), text)


def mixing(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that mixup has more than one image in a batch."""
    train, data = _section(options, "train"), _section(_section(options, "datasets"), "train")
    stages = _section(train, "progressive").get("batch_sizes") or [data.get("batch_size_per_gpu")]
    if train.get("mixup") and all(size == 1 for size in stages):
        text = "needs at least two images per batch; expected datasets.train.batch_size_per_gpu of 2 "
        yield Problem(("train", "mixup"), text + "or more")


def progressive_problems(table: Mapping[str, Sequence[int]], scale: int) -> Iterator[Problem]:
    """Check that the lists of ``train.progressive`` have the same length and ``scale`` divides the sizes."""
    at, lengths = ("train", "progressive"), [len(table[key]) for key in ("iters", "gt_sizes", "batch_sizes")]
    if len(set(lengths)) > 1 or not lengths[0]:
        listed = "{}, {} and {}".format(*lengths)
        yield Problem(at, f"iters, gt_sizes and batch_sizes must be of one length, got {listed}")
    for size in table["gt_sizes"]:
        if text := crop_problem(size, scale):
            yield Problem((*at, "gt_sizes"), text)


def logging(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that tensorboard logging, which wandb follows, is on and wandb is installed if it has a project."""
    logger = _section(options, "logger")
    if not _section(logger, "wandb").get("project"):
        return
    if logger.get("use_tb_logger") is not True:
        yield Problem(("logger", "use_tb_logger"), "must be true for logger.wandb, which follows tensorboard's files")
    if importlib.util.find_spec("wandb") is None:
        yield Problem(("logger", "wandb"), "needs the package wandb: pip install wandb")


def losses(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that SRModel and the models derived from it have a loss."""
    train = _section(options, "train")
    if options.get("model_type") in WITH_LOSS and train.get("pixel_opt") is train.get("perceptual_opt") is None:
        yield Problem(("train", "pixel_opt"), "a loss is missing: expected pixel_opt or perceptual_opt")


def outputs(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that RestorMixer's outputs at three scales in training are off for models that support only one."""
    network, model = _section(options, "network_g"), options.get("model_type")
    if network.get("type") in DEEPLY_SUPERVISED and model in WITH_ONE_OUTPUT:
        if network.get("deep_supervision", True) is True:
            text = f"must be false for model_type {model!r}, which supports one output; RestorMixerModel supports all"
            yield Problem(("network_g", "deep_supervision"), text)


def judged_size(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that ``gt_size`` is the only image size that BasicSR's VGGStyleDiscriminator accepts."""
    judge, model = _section(options, "network_d"), options.get("model_type")
    size, expected = _section(_section(options, "datasets"), "train").get("gt_size"), judge.get("input_size", 128)
    if (
        judge.get("type") == "VGGStyleDiscriminator"
        and model in GANS
        and _is_numbers([size, expected])
        and size != expected
    ):
        text = f"got {size}, expected {expected}, the input_size of network_d"
        yield Problem(("datasets", "train", "gt_size"), text)


def windows(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that ``window_size`` is set for SwinIRModel, which pads the images to restore to a multiple of it."""
    network = _section(options, "network_g")
    restores = options.get("model_type") == "SwinIRModel" and options.get("val") is not None
    if restores and network and "window_size" not in network:
        yield Problem(("network_g", "window_size"), "required key is missing: 'SwinIRModel' pads images to it")


def large_numbers(node: Any, at: tuple[str, ...] = ()) -> Iterator[Problem]:
    """Check that all integers fit into the 64 bits of torch's integers."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from large_numbers(value, (*at, str(key)))
    elif isinstance(node, list):
        for value in node:
            yield from large_numbers(value, at)
    elif isinstance(node, int) and abs(node) > MAX_INTEGER:
        yield Problem(at, f"got {node}, expected at most {MAX_INTEGER} in size")


def columns(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that no metric has the name of another column of the result tables, including those of the inputs."""
    metrics = _section(_section(options, "val"), "metrics")
    taken = (*COLUMNS, *(f"{name}_input" for name in metrics))
    for name in metrics:
        if name in taken:
            text = "names another column of the tables of results, expected another name"
            yield Problem(("val", "metrics", name), text)


def scale(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that ``scale``, which BasicSR passes to the datasets, is set if a dataset has ground truth."""
    types = [dataset.get("type") for dataset in _section(options, "datasets").values() if isinstance(dataset, dict)]
    if "scale" not in options and any(kind in WITH_TRUTH for kind in types):
        yield Problem(("scale",), "required key is missing (1 where images keep their size)")


def best_weights(options: dict[str, Any]) -> Iterator[Problem]:
    """Check the total length of dataset and metric names, which the file names of the best weights contain."""
    metrics = _section(_section(options, "val"), "metrics")
    longest = max((str(name) for name in metrics), key=_bytes, default="")
    for phase, dataset in _section(options, "datasets").items():
        name = str(dataset.get("name")) if isinstance(dataset, dict) else ""
        together = _bytes(name) + _bytes(longest)
        if longest and phase_kind(phase) == "val" and together > MAX_COMBINED_NAME_BYTES:
            most = f"expected at most {MAX_COMBINED_NAME_BYTES}: names of files"
            text = f"has {together} bytes with the metric {longest!r}, {most}"
            yield Problem(("datasets", str(phase), "name"), text)


def averages(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that no dataset has the name of the row with the average of several datasets."""
    datasets = _section(options, "datasets")
    for phase, dataset in datasets.items() if len(datasets) > 1 else ():
        if isinstance(dataset, dict) and dataset.get("name") == AVERAGE:
            text = f"got {AVERAGE!r}, which names the average of the sets in the results, expected another"
            yield Problem(("datasets", str(phase), "name"), text)


def normalization(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that ``mean`` and ``std`` are given together, since normalization needs both."""
    for phase, dataset in _section(options, "datasets").items():
        given = [key for key in ("mean", "std") if isinstance(dataset, dict) and dataset.get(key) is not None]
        if len(given) == 1:
            missing = "std" if given == ["mean"] else "mean"
            yield Problem(("datasets", str(phase), missing), f"required key is missing, since {given[0]!r} is given")


def databases(options: dict[str, Any]) -> Iterator[Problem]:
    """Check the folders and LMDBs of images; see :func:`database_problem`."""
    for phase, dataset in _section(options, "datasets").items():
        for key in ("dataroot_lq", "dataroot_gt") if isinstance(dataset, dict) else ():
            root, backend = dataset.get(key), _section(dataset, "io_backend").get("type")
            if isinstance(root, str) and isinstance(backend, str) and (text := database_problem(root, backend)):
                yield Problem(("datasets", str(phase), key), text)


def metrics_without_truth(options: dict[str, Any]) -> Iterator[Problem]:
    """Check that no dataset lacks the ground truth that a metric needs; BasicSR uses all metrics on all datasets."""
    metrics = _section(_section(options, "val"), "metrics")
    types = [metric.get("type") for metric in metrics.values() if isinstance(metric, dict)]
    full_reference = [str(kind) for kind in types if kind not in NO_REFERENCE_METRICS]
    for phase, dataset in _section(options, "datasets").items():
        if full_reference and isinstance(dataset, dict) and phase_kind(phase) != "train":
            if dataset.get("type") in WITHOUT_TRUTH:
                text = f"{dataset['type']!r} has no ground truth for val.metrics ({', '.join(full_reference)})"
                yield Problem(("datasets", str(phase), "type"), text)


def missing_paths(options: dict[str, Any]) -> Iterator[Problem]:
    """Check every file or folder to read; see :func:`path_problem`."""
    for section, path in path_keys(options):
        if text := path_problem(section[path[-1]]):
            yield Problem(path, text)


def path_keys(options: dict[str, Any]) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Yield every key whose value is a file or folder to read, as (section that holds it, path of the key)."""
    for phase, dataset in _section(options, "datasets").items():
        for key, value in dataset.items() if isinstance(dataset, dict) else ():
            if isinstance(value, str) and (str(key).startswith("dataroot") or key in FILES):
                yield dataset, ("datasets", str(phase), key)
    paths = _section(options, "path")
    for key, value in paths.items():
        if isinstance(value, str) and (str(key).startswith("pretrain_network") or key == "resume_state"):
            yield paths, ("path", key)


def expand_paths(options: dict[str, Any]) -> None:
    """Replace ``~`` with the home folder in every key of :func:`path_keys`."""
    for section, path in path_keys(options):
        section[path[-1]] = os.path.expanduser(section[path[-1]])


def better(metric: Mapping[str, Any]) -> str:
    """Return whether ``higher`` or ``lower`` is better: from the metric's section, or else by its type."""
    return metric.get("better") or ("lower" if metric["type"] in LESS_IS_BETTER else "higher")


def window_advice(options: dict[str, Any]) -> str | None:
    """Return advice if RestorMixer's largest windows are at least twice as wide as the downsampled crop.

    Args:
        options: content of a file without problems.
    """
    size, network = options["datasets"]["train"].get("gt_size"), options["network_g"]
    blocks, window = network.get("num_blocks", (4, 4, 4)), network.get("window_size", 8)
    if network["type"] != "RestorMixer" or not _is_numbers(blocks) or len(blocks) != 3:
        return None
    if not isinstance(size, int) or not isinstance(window, int):  # reported when the argument types are checked
        return None
    for halvings, count in ((1, blocks[1]), (2, blocks[2])):
        side, largest = size // options.get("scale", 1) // 2**halvings, window * (count // 2)
        if largest >= 2 * side:
            return (
                f"datasets.train.gt_size: {size} pixels become {side} pixels at 1/{2**halvings} resolution, where the "
                f"largest window has {largest}: most of it is padding; raise gt_size or lower network_g.window_size"
            )
    return None


def _section(options: dict[str, Any], key: str) -> dict[str, Any]:
    value = options.get(key)
    return value if isinstance(value, dict) else {}


def _bytes(name: str) -> int:
    return len(name.encode(errors="surrogatepass"))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(number, int | float) for number in value)
