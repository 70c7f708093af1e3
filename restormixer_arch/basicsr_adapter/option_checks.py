"""Checks of an option file that no single key shows: sums, lengths, pairs of keys, and paths."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from restormixer_arch.basicsr_adapter import locations
from restormixer_arch.basicsr_adapter.option_datasets import NEEDS_SCALE, NO_REFERENCE_METRICS, WITHOUT_TRUTH
from restormixer_arch.basicsr_adapter.option_faults import Fault
from restormixer_arch.errors import did_you_mean


def path_keys(options: dict[str, Any]) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Yield every key whose value is a file or folder to read, as (section that holds it, path of the key)."""
    datasets = _section(options, "datasets")
    for phase, dataset in datasets.items():
        if isinstance(dataset, dict):
            for key, value in dataset.items():
                if isinstance(value, str) and (str(key).startswith("dataroot") or key == "meta_info_file"):
                    yield dataset, ("datasets", str(phase), key)
    paths = _section(options, "path")
    for key, value in paths.items():
        if isinstance(value, str) and (str(key).startswith("pretrain_network") or key == "resume_state"):
            yield paths, ("path", key)


def missing_paths(options: dict[str, Any]) -> Iterator[Fault]:
    for section, path in path_keys(options):
        value = section[path[-1]]
        if not Path(value).expanduser().exists():
            yield Fault(path, f"{value!r} {locations.missing(value)}")


def phases(options: dict[str, Any], is_train: bool) -> Iterator[Fault]:
    """BasicSR takes ``train`` and ``val*`` for training, ``val*`` and ``test*`` for testing."""
    datasets = _section(options, "datasets")
    kinds = ("val", "test") if not is_train else ("train", "val")
    for phase in datasets:
        kind = str(phase).split("_")[0]
        if kind not in kinds or (kind == "train" and phase != "train"):
            allowed = "'train', 'val' or 'val_<n>'" if is_train else "'test', 'test_<n>' or 'val'"
            command = "train" if is_train else "test"
            hint = did_you_mean(str(phase), kinds)
            yield Fault(("datasets", str(phase)), f"unknown phase for 'basicsr {command}', expected {allowed}.{hint}")
    if is_train and "train" not in datasets:
        yield Fault(("datasets", "train"), "required section is missing (the images to train on)")
    if not is_train and not datasets:
        yield Fault(("datasets",), "no data set to test on")


def schedule(options: dict[str, Any]) -> Iterator[Fault]:
    """BasicSR fails in the middle of training where the schedule ends before it does."""
    train = _section(options, "train")
    scheduler, total = _section(train, "scheduler"), train.get("total_iter")
    periods, at = scheduler.get("periods"), ("train", "scheduler")
    if _numbers(periods) and isinstance(total, int) and sum(periods) < total:
        text = f"the sum of {periods!r} is {sum(periods)}, less than total_iter {total}"
        yield Fault((*at, "periods"), text)
    lasting = periods if "periods" in scheduler else scheduler.get("restarts", [0])
    weights = scheduler.get("restart_weights", [1])
    if _numbers(lasting) and _numbers(weights) and len(lasting) != len(weights):
        key = "periods" if "periods" in scheduler else "restarts"
        text = f"got {len(weights)} values, expected one for each of the {len(lasting)} {key}"
        yield Fault((*at, "restart_weights"), text)


def databases(options: dict[str, Any]) -> Iterator[Fault]:
    """``io_backend.type: lmdb`` and paths ending in ``.lmdb`` go together, and an LMDB folder has its two files."""
    for phase, dataset in _section(options, "datasets").items():
        if not isinstance(dataset, dict):
            continue
        backend = _section(dataset, "io_backend").get("type")
        for key in ("dataroot_lq", "dataroot_gt"):
            root, at = dataset.get(key), ("datasets", str(phase), key)
            if not isinstance(root, str) or backend not in ("disk", "lmdb"):
                continue
            if backend == "lmdb" and not root.endswith(".lmdb"):
                yield Fault(at, f"{root!r} must end in '.lmdb' because io_backend.type is 'lmdb'")
            elif backend == "disk" and root.endswith(".lmdb"):
                yield Fault(at, f"{root!r} is an LMDB, which needs io_backend.type 'lmdb', got 'disk'")
            elif backend == "lmdb" and Path(root).expanduser().is_dir():
                for file in ("data.mdb", "meta_info.txt"):
                    if not Path(root).expanduser().joinpath(file).is_file():
                        yield Fault(at, f"{root!r} is no LMDB of BasicSR: it has no {file}")


def scale(options: dict[str, Any]) -> Iterator[Fault]:
    """BasicSR hands the file's ``scale`` on to the data sets, and those of pairs do not do without."""
    types = [dataset.get("type") for dataset in _section(options, "datasets").values() if isinstance(dataset, dict)]
    if "scale" not in options and any(kind in NEEDS_SCALE for kind in types):
        yield Fault(("scale",), "required key is missing (1 where images keep their size)")


def crops(options: dict[str, Any]) -> Iterator[Fault]:
    """A crop of the ground truth is that of the input times ``scale``."""
    size, factor = _section(_section(options, "datasets"), "train").get("gt_size"), options.get("scale", 1)
    if isinstance(size, int) and isinstance(factor, int) and factor >= 1 and size % factor:
        yield Fault(("datasets", "train", "gt_size"), f"got {size}, expected a multiple of scale {factor}")


def logging(options: dict[str, Any]) -> Iterator[Fault]:
    """BasicSR starts wandb where it has a project, by what is written for tensorboard."""
    logger = _section(options, "logger")
    if not _section(logger, "wandb").get("project"):
        return
    if logger.get("use_tb_logger") is not True:
        yield Fault(("logger", "use_tb_logger"), "must be true for logger.wandb, which follows tensorboard's files")
    if importlib.util.find_spec("wandb") is None:
        yield Fault(("logger", "wandb"), "needs the package wandb: pip install wandb")


def padded_windows(options: dict[str, Any]) -> str | None:
    """Advice where RestorMixer's largest windows are twice as wide as what is left of a crop, or wider.

    Args:
        options: a file without faults.
    """
    size, network = options["datasets"]["train"].get("gt_size"), options["network_g"]
    blocks = network.get("num_blocks", (4, 4, 4))
    if network["type"] != "RestorMixer" or not size or not _numbers(blocks) or len(blocks) != 3:
        return None
    for halvings, count in ((1, blocks[1]), (2, blocks[2])):
        side, largest = size // options.get("scale", 1) // 2**halvings, network.get("window_size", 8) * (count // 2)
        if largest >= 2 * side:
            return (
                f"datasets.train.gt_size: of {size} pixels {side} are left at 1/{2**halvings}, where the "
                f"largest window has {largest}: most of it is padding; raise gt_size or lower network_g.window_size"
            )
    return None


def metrics_without_truth(options: dict[str, Any]) -> Iterator[Fault]:
    """BasicSR measures every validated set with the same metrics, and most need a ground truth."""
    metrics = _section(_section(options, "val"), "metrics")
    types = [metric.get("type") for metric in metrics.values() if isinstance(metric, dict)]
    full_reference = [str(kind) for kind in types if kind not in NO_REFERENCE_METRICS]
    for phase, dataset in _section(options, "datasets").items():
        if full_reference and isinstance(dataset, dict) and dataset.get("type") in WITHOUT_TRUTH:
            if str(phase).split("_")[0] != "train":
                text = f"{dataset['type']!r} has no ground truth for val.metrics ({', '.join(full_reference)})"
                yield Fault(("datasets", str(phase), "type"), text)


def _section(options: dict[str, Any], key: str) -> dict[str, Any]:
    value = options.get(key)
    return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(number, int | float) for number in value)
