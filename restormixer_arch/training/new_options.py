"""Run ``basicsr init``: write an option file for a folder of ``basicsr prepare pairs`` and for this machine."""

from __future__ import annotations

import gc
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from restormixer_arch.config.check import Request, check_options, read_option_file
from restormixer_arch.config.yaml_file import load_yaml
from restormixer_arch.errors import UserError
from restormixer_arch.hub import LATEST_WEIGHTS
from restormixer_arch.inference.installed import installed_weights, scale_of_task
from restormixer_arch.inference.restorer import pick_device
from restormixer_arch.models.memory import OutOfMemory
from restormixer_arch.output import note, shell_join, write_text_atomically
from restormixer_arch.training.dry_run import measure
from restormixer_arch.training.options import usable_gpus

PATCHES = {"cpu": ((96, 8), (64, 8), (64, 4), (48, 4)), "cuda": ((256, 16), (192, 8), (128, 8), (96, 4))}
MIN_ITERATIONS = 100
SLOW_SECONDS = {"cpu": 2.0, "cuda": 1.0}  # seconds per iteration above which the next smaller patch is tried
# learning rates for a batch size of RATE_BATCH; the last one is for pretrained weights
MUON_RATE, ADAMW_RATE, FINE_TUNING_RATE = 0.03, 2e-3, 1e-3
RATE_BATCH = 8
FALLING_TASKS = ("derain", "desnow", "mixed")  # tasks whose images show rain or snow
NETWORKS = {
    "s": "  base_channels: 16  # RestorMixer-S, 0.54 M parameters\n  num_blocks: [2, 2, 2]\n",
    "base": "  base_channels: 32  # the paper's base network, 3.2 M parameters\n  num_blocks: [4, 4, 4]\n",
}

TEMPLATE = """\
# Written by: basicsr init
#   {command}
#   {command} --auto_resume   (to resume)
#   basicsr restore IMAGE -o restored --weights {trained}
name: {quoted_name}
model_type: RestorMixerModel
scale: {scale}
num_gpu: auto  # all available GPUs, or the CPU
manual_seed: 42

datasets:
  train:
    name: {data_name}
{train}
    gt_size: {patch}  # side of the patches; larger ones show more context and take longer
    use_hflip: true
    use_rot: {turned}  # rotations by 90 degrees; not for rain and snow, which always fall down
    use_shuffle: true
    num_worker_per_gpu: 1
    batch_size_per_gpu: {batch}
    dataset_enlarge_ratio: {whole_batch}  # an epoch is then as many iterations as there are images
{val}
network_g:
  type: RestorMixer
{network}  deep_supervision: false  # outputs at lower resolutions cost time, and PSNR in short runs
{upscale}
path:
  pretrain_network_g: {weights}
  strict_load_g: true

train:
  total_iter: {iterations}  # {hours} h at {seconds:.2f} s, measured on this machine
  warmup_iter: {warmup}
  ema_decay: 0.999
  freeze_norms_after: {norms}
  grad_clip: 0.01
  optim_g:
{optimizer}    weight_decay: 1.0e-4
  scheduler:
    type: CosineAnnealingRestartLR
    periods: [{iterations}]  # the same number as total_iter
    restart_weights: [1]
    eta_min: 1.0e-6
  pixel_opt:
    type: {loss}
    loss_weight: 1.0
{validation}
logger:
  print_freq: 100
  save_checkpoint_freq: {freq}
  use_tb_logger: true
  keep_last: 2
"""


@dataclass(frozen=True)
class InitRequest:
    """The arguments of ``basicsr init``.

    Args:
        data: folder created by ``basicsr prepare pairs``.
        file: option file to write.
        name: name of the training run.
        task: task whose installed weights to start from, or None.
        network: key of :data:`NETWORKS`.
        hours: duration of the training run in hours, without validation.
    """

    data: Path
    file: Path
    name: str
    task: str | None
    network: str
    hours: float


def write_options(wanted: InitRequest) -> str:
    """Measure patch sizes on this machine, write the option file, and return a line that describes the choice.

    Raises:
        UserError: if the folder is not a prepared dataset, the weights are not installed or have another scale, or the
            training cannot run.
    """
    installed = installed_weights(wanted.task) if wanted.task else None
    data = _read_data(wanted.data)
    if wanted.task and (scale := scale_of_task(wanted.task)) != data.scale:
        raise UserError(f"--task: {wanted.task} is for scale {scale}, and {wanted.data} has scale {data.scale}")
    gpus = usable_gpus("auto", None)
    patch, batch, seconds = _choose(wanted, data, installed, gpus)
    iterations = max(round(wanted.hours * 3600 / seconds, -2), MIN_ITERATIONS)
    if iterations * seconds > 1.5 * wanted.hours * 3600:
        note(f"--hours: {wanted.hours:g} is too short, {MIN_ITERATIONS} iterations are taken")
    portable = f"restormixer_arch/weights/{installed.name}" if installed else "~"
    text = _fill(wanted, data, portable, gpus, (patch, batch, seconds), int(iterations))
    wanted.file.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(wanted.file, text)
    start = f"from the weights of {wanted.task}" if wanted.task else "from scratch"
    return (
        f"{wanted.file}: {int(iterations)} iterations of {batch} patches of {patch} pixels, {seconds:.2f} s each, "
        f"{start}; next: {_command(wanted.file, gpus)}"
    )


@dataclass(frozen=True)
class _Data:
    """The parts of the option file that depend on the dataset."""

    train: str
    val: str
    scale: int
    side: int | None  # smallest side of the training images in pixels
    has_falling_weather: bool  # rain or snow is generated


def _read_data(folder: Path) -> _Data:
    backend, suffix = ("lmdb", ".lmdb") if (folder / "train_gt.lmdb").is_dir() else ("disk", "")
    gt = folder / f"train_gt{suffix}"
    if not gt.is_dir():
        raise UserError(f"--data: {folder} has no train_gt.lmdb or train_gt; create it with 'basicsr prepare pairs'")
    lq, val, drawn = folder / f"train_lq{suffix}", folder / f"val_lq{suffix}", folder / "val_pairs"
    labels, scale = [], 1
    if drawn.is_dir():
        from restormixer_arch.data.preparation.fixed_set import labels_of, recorded_options

        recorded = recorded_options(drawn)
        labels, scale = labels_of(recorded), recorded["scale"]
    stale = [place.name for place in (lq, val) if place.is_dir()]
    if labels and stale:
        both = f"{folder} has both {' and '.join(stale)} and val_pairs, which come from two different preparations"
        raise UserError(f"--data: {both}; remove what does not belong to the set")
    if not lq.is_dir() and not labels:
        raise UserError(f"--data: {folder} has neither {lq.name} nor val_pairs; create it with 'basicsr prepare pairs'")
    source = [f"    dataroot_gt: {quoted(gt)}"]
    if lq.is_dir():
        source = ["    type: PairedRestorationDataset", *source, f"    dataroot_lq: {quoted(lq)}"]
    else:
        names = labels if scale > 1 else dict.fromkeys([*labels, "clean"])
        weights = "".join(f"\n      {label}:\n        weight: 1" for label in names)
        source = ["    type: DegradedDataset", *source, f"    degradations:{weights}"]
    source += [f"    io_backend:\n      type: {backend}"]
    pairs = (folder / f"val_gt{suffix}", val) if val.is_dir() else (drawn / f"gt{suffix}", drawn / f"lq{suffix}")
    if drawn.is_dir() and not pairs[1].is_dir():
        lacking = f"{drawn} has no {pairs[1].name}, unlike {gt.name}"
        raise UserError(f"--data: {lacking}; remove it and prepare the set again")
    has_falling_weather = any(set(label.split("_")) & {"rain", "snow"} for label in labels)
    val_text = _validation_set(folder.resolve().name, pairs, backend, bool(labels)) if pairs[1].is_dir() else ""
    return _Data("\n".join(source), val_text, scale, _smallest_side(gt), has_falling_weather)


def _validation_set(name: str, pairs: tuple[Path, Path], backend: str, nested: bool) -> str:
    recursive = "    recursive: true\n" if nested and backend == "disk" else ""
    return (
        f"\n  val:\n    name: {quoted(f'val_{name}')}\n    type: PairedRestorationDataset\n"
        f"    dataroot_gt: {quoted(pairs[0])}\n    dataroot_lq: {quoted(pairs[1])}\n"
        f"{recursive}    io_backend:\n      type: {backend}\n"
    )


def quoted(value: str | Path) -> str:
    """Return text that YAML reads back unchanged, in quotes if it would be a number, a comment or the like."""
    text = value.as_posix() if isinstance(value, Path) else value
    try:
        same = load_yaml(text) == text
    except (yaml.YAMLError, ValueError):
        same = False
    return text if same else json.dumps(text, ensure_ascii=False)


def _smallest_side(gt: Path) -> int | None:
    """Return the smallest side of the images from the list of an LMDB, the record of a folder, or else image headers.

    Raises:
        UserError: if the list is not text, or an image cannot be read.
    """
    from restormixer_arch.data.images.folder import FolderImages
    from restormixer_arch.data.images.picture import picture_size
    from restormixer_arch.data.lmdb_io import read_lines, smallest_side
    from restormixer_arch.data.preparation.journal import Journal

    if gt.suffix == ".lmdb":
        listed = gt / "meta_info.txt"
        return smallest_side(read_lines(listed)) if listed.is_file() else None
    recorded = smallest_side(Journal(gt.with_name("train.jsonl"), {}).lines("gt"))
    return recorded or min(min(picture_size(gt / name)) for name in FolderImages(gt, "--data").names)


@contextmanager
def _trial(text: str) -> Iterator[Request]:
    """Yield a request to train with this text as option file. Raises UserError, which names ``--data`` as the file."""
    with tempfile.TemporaryDirectory(prefix="basicsr_init_") as folder:
        file = Path(folder, "trial.yml")
        file.write_text(text, encoding="utf-8")
        path, options = read_option_file(str(file))
        check_options(options, "--data", is_train=True)
        yield Request("--data", path, options, is_train=True)


def _choose(wanted: InitRequest, data: _Data, installed: Path | None, gpus: int) -> tuple[int, int, float]:
    """Return side, number and seconds per iteration of the largest patches that are not slow, or else the smallest."""
    device = pick_device("auto").type
    trained_on = replace(data, val="")  # full-size images may need more memory than patches
    tried: tuple[int, int, float] | None = None
    for side, batch in _candidates(device, data):
        try:
            text = _fill(wanted, trained_on, str(installed or "~"), gpus, (side, batch, 1.0), MIN_ITERATIONS)
            with _trial(text) as request:
                logging.disable(logging.INFO)  # BasicSR's log of a run that is not kept
                seconds = measure(request).stages[0]
        except OutOfMemory:
            note(f"{batch} patches of {side} pixels: not enough memory")
            continue
        finally:
            logging.disable(logging.NOTSET)
            gc.collect()  # networks and optimizers are in reference cycles, which would keep their memory allocated
        note(f"{batch} patches of {side} pixels: {seconds:.2f} s")
        tried = side, batch, seconds
        if seconds <= SLOW_SECONDS[device]:
            break
    if tried is None:
        raise UserError("not enough memory for the smallest patches")
    return tried


def _candidates(device: str, data: _Data) -> Iterator[tuple[int, int]]:
    step = 4 * data.scale
    largest = None if data.side is None else data.side // step * step
    shown = set()
    for side, batch in PATCHES[device]:
        side = side * data.scale if device == "cpu" else side // step * step
        side = side if largest is None else min(side, largest)
        if side and (side, batch) not in shown:
            shown.add((side, batch))
            yield side, batch
    if not shown:
        raise UserError(f"the smallest training image has a side of {data.side} pixels, which is less than {step}")


def _fill(
    wanted: InitRequest, data: _Data, weights: str, gpus: int, measured: tuple[int, int, float], iterations: int
) -> str:
    """Return the text of the option file; ``measured`` is the result of :func:`_choose`."""
    patch, batch, seconds = measured
    trained, freq = wanted.task is not None, max(iterations // 10, 1)
    whole_batch = batch * max(gpus, 1)
    values: dict[str, Any] = {
        "command": _command(wanted.file, gpus),
        "trained": shell_join([f"experiments/{wanted.name}/models/{LATEST_WEIGHTS}"]),
        "quoted_name": quoted(wanted.name),
        "scale": data.scale,
        "data_name": quoted(wanted.data.resolve().name),
        "train": data.train,
        "val": data.val,
        "patch": patch,
        "batch": batch,
        "whole_batch": whole_batch,
        "turned": "false" if data.has_falling_weather or wanted.task in FALLING_TASKS else "true",
        "network": NETWORKS[wanted.network],
        "upscale": f"  upscale: {data.scale}\n" if data.scale > 1 else "",
        "weights": weights,
        "iterations": iterations,
        "hours": f"{iterations * seconds / 3600:.2g}",
        "seconds": seconds,
        "optimizer": _optimizer(trained, whole_batch),
        "warmup": f"{iterations // 20}  # warm-up, so the pretrained weights are not destroyed"
        if trained
        else "-1  # no warm-up",
        "norms": "0  # from the start: BatchNorm keeps the statistics of the weights"
        if trained
        else "0.1  # fraction of training with batch statistics; then BatchNorm is frozen",
        "loss": "L1Loss" if data.scale > 1 else "MultiScaleDualDomainLoss",
        "freq": freq,
        "validation": "",
    }
    if data.val:
        metric = (
            f"    psnr:\n      type: calculate_psnr_rgb\n      crop_border: {data.scale if data.scale > 1 else 0}\n"
        )
        values["validation"] = f"\nval:\n  val_freq: {freq}\n  save_img: false\n  pbar: false\n  metrics:\n{metric}"
    return TEMPLATE.format(**values)


def _command(file: Path, gpus: int) -> str:
    """Return the command that trains on all GPUs of this machine, with one process per GPU."""
    quoted_file = shell_join([file.as_posix()])
    if gpus < 2:
        return f"basicsr train -opt {quoted_file}"
    return f"torchrun --nproc_per_node={gpus} $(which basicsr) train -opt {quoted_file} --launcher pytorch"


def _optimizer(trained: bool, batch: int) -> str:
    """Return the lines of ``optim_g`` except the weight decay.

    Args:
        trained: True if the run starts from pretrained weights.
        batch: number of patches per iteration on all GPUs.
    """
    scale, adamw = math.sqrt(batch / RATE_BATCH), FINE_TUNING_RATE if trained else ADAMW_RATE
    why = f"for a batch size of {RATE_BATCH}, scaled with the square root of the batch size"
    if trained:
        lines = ["type: AdamW", f"lr: {adamw * scale:.2e}  # {adamw:g} {why}", "betas: [0.9, 0.999]"]
    else:
        lines = [
            "type: Muon  # much faster than AdamW when training from scratch",
            f"lr: {MUON_RATE * scale:.2e}  # {MUON_RATE:g} {why}",
            f"adamw_lr: {adamw * scale:.2e}  # for parameters that are not matrices",
            "adamw_betas: [0.9, 0.95]",
        ]
    return "".join(f"    {line}\n" for line in lines)
