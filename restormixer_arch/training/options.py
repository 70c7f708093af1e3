"""Create the ``opt`` dict of BasicSR's models and datasets from a checked option file, and the result folders.

It replaces ``basicsr.utils.options.parse_options``, which reads ``sys.argv`` itself, sets values by ``exec`` and
``eval``, uses the seed from before ``--force_yml``, and does not support machines without a GPU. The result is the same
dict, except that :func:`fit_to_machine` changes values that would fail on this machine.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from basicsr.models.video_base_model import VideoBaseModel
from basicsr.utils import get_time_str, set_random_seed
from basicsr.utils.dist_util import get_dist_info
from basicsr.utils.registry import MODEL_REGISTRY

from restormixer_arch.config.check import Request
from restormixer_arch.config.rules import expand_paths, path_keys, phase_kind
from restormixer_arch.errors import UserError
from restormixer_arch.inference.restorer import pick_device
from restormixer_arch.output import note, rename, shown_path, warn
from restormixer_arch.training import distributed

# These models degrade images on a CUDA device.
CUDA_ONLY_MODELS = ("RealESRNetModel", "RealESRGANModel")


def make_opt(request: Request, root_path: str) -> dict[str, Any]:
    """Return BasicSR's ``opt`` dict; with a launcher, join the other processes.

    Args:
        request: checked option file and command-line switches.
        root_path: folder in which ``experiments`` and ``results`` are created.
    """
    opt = deepcopy(request.options)
    opt["dist"] = request.launcher != "none"
    if opt["dist"]:
        distributed.start(
            request.launcher, opt.get("dist_params") or {}, opt["num_gpu"], opt.get("device"), is_train=request.is_train
        )
    opt["rank"], opt["world_size"] = get_dist_info()
    if opt.get("manual_seed") is None:
        opt["manual_seed"] = distributed.same_for_all(random.randint(1, 10000))
    set_random_seed(opt["manual_seed"] + opt["rank"])
    opt["auto_resume"], opt["is_train"] = request.auto_resume, request.is_train
    if request.debug and not opt["name"].startswith("debug"):
        opt["name"] = f"debug_{opt['name']}"
    choose_device(opt)
    opt["num_gpu"] = usable_gpus(opt["num_gpu"], opt.get("device"))
    for phase, dataset in opt["datasets"].items():
        dataset["phase"] = phase_kind(phase)
        if "scale" in opt:
            dataset["scale"] = opt["scale"]
    expand_paths(opt)
    set_folders(opt, root_path)
    if request.is_train and "debug" in opt["name"]:
        note("the name contains 'debug': log every iteration, validate and save every 8, no TensorBoard")
        if opt.get("val") is not None:
            opt["val"]["val_freq"] = 8
        opt["logger"].update(print_freq=1, save_checkpoint_freq=8)
    fit_to_machine(opt)
    reject_videos_on_cpu(opt)
    reject_cuda_models(opt)
    return opt


def set_folders(opt: dict[str, Any], root_path: str) -> None:
    """Set the result folders of this run; ``path.experiments_root`` or ``results_root`` may name the parent folder."""
    paths = opt["path"]
    bases = {"experiments_root": paths.pop("experiments_root", None), "results_root": paths.pop("results_root", None)}
    key, default = ("experiments_root", "experiments") if opt["is_train"] else ("results_root", "results")
    base = os.path.expanduser(bases[key]) if bases[key] else default
    folder = os.path.join(root_path, base, opt["name"])
    paths.update({key: folder, "log": folder, "visualization": os.path.join(folder, "visualization")})
    if opt["is_train"]:
        paths["models"] = os.path.join(folder, "models")
        paths["training_states"] = os.path.join(folder, "training_states")


def make_folders(opt: dict[str, Any], option_file: Path) -> dict[str, str | None]:
    """Create the empty folders of a run in the first process of a job, and rename those of an earlier run.

    Returns:
        New folder -> path of the renamed folder of an earlier run, or None; see :func:`put_back`.

    Raises:
        UserError: if the option file, weights or data are in the folder of an earlier run.
    """
    if opt["rank"] != 0:
        return {}
    folder = Path(opt["path"]["log"]).resolve()
    named = [(".".join(keys), section[keys[-1]]) for section, keys in path_keys(opt)]
    for key, place in [("-opt", option_file), *named]:
        if folder in Path(place).resolve().parents:
            raise UserError(
                f"{key}: {place} is in {shown_path(folder)}, which a new run of that name renames; copy it to "
                "another place, or choose another name"
            )
    made = {opt["path"]["log"]: move_aside(opt["path"]["log"])}
    if kept := made[opt["path"]["log"]]:
        note(f"{shown_path(opt['path']['log'])} exists from an earlier run, which was renamed to {shown_path(kept)}")
    for key in ("log", "models", "training_states", "visualization"):
        if key in opt["path"]:
            os.makedirs(opt["path"][key], exist_ok=True)
    if opt["is_train"] and opt["logger"].get("use_tb_logger") and "debug" not in opt["name"]:
        events = os.path.join(opt["root_path"], "tb_logger", opt["name"])
        made[events] = move_aside(events)
    return made


def put_back(made: dict[str, str | None]) -> None:
    """Remove the folders of a run that did nothing, and rename those of an earlier run back."""
    for folder, kept in made.items():
        shutil.rmtree(folder, ignore_errors=True)
        if kept and not os.path.exists(folder):
            rename(kept, folder)
            note(f"nothing was done; {shown_path(kept)} was renamed back to {shown_path(folder)}")


def move_aside(folder: str) -> str | None:
    """Rename a folder to ``<folder>_archived_<time>`` and return its new path, or None if it does not exist."""
    if not os.path.exists(folder):
        return None
    kept = stem = f"{folder}_archived_{get_time_str()}"
    count = 1
    while os.path.exists(kept):  # two runs within a second
        count += 1
        kept = f"{stem}_{count}"
    rename(folder, kept)
    return kept


def choose_device(opt: dict[str, Any]) -> None:
    """Set ``num_gpu``, by which BasicSR chooses CUDA or the CPU, according to the option ``device`` if it is set.

    Raises:
        UserError: if the device is not available, or is MPS with a launcher.
    """
    device = opt.get("device")
    if device is None:
        return
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[device]:
        usable = ", ".join(name for name, there in available.items() if there)
        raise UserError(f"device: {device!r} is not available here; expected one of: {usable}")
    if device == "mps" and opt["dist"]:
        raise UserError("device: 'mps' cannot be used with --launcher, since no backend of torch joins MPS devices")
    if device == "cuda":
        opt["num_gpu"] = opt["num_gpu"] or 1
    else:
        opt["num_gpu"] = 0


def usable_gpus(num_gpu: int | str, device: str | None) -> int:
    """Return the number of GPUs that ``num_gpu`` requests; ``auto`` means 0 if torch has no kernels for the GPU.

    Raises:
        UserError: if a GPU that torch cannot use is requested by ``num_gpu`` or ``device``.
    """
    if device in ("cpu", "mps"):
        return 0
    auto = num_gpu == "auto"
    if auto and device is None:
        return torch.cuda.device_count() if pick_device("auto").type == "cuda" else 0
    if num_gpu != 0 and torch.cuda.is_available():
        pick_device("cuda", shown="device" if device else "num_gpu")
    return torch.cuda.device_count() if auto else int(num_gpu)


def gpus_of_one_process(num_gpu: int | str, device: str | None) -> int:
    """Return ``num_gpu`` for one process without a launcher: 0 and 1 unchanged, otherwise 1 if there is a GPU."""
    if num_gpu in (0, 1):
        return num_gpu
    return min(usable_gpus(num_gpu, device), torch.cuda.device_count(), 1)


def reject_videos_on_cpu(opt: dict[str, Any]) -> None:
    """Reject a video model that cannot validate: BasicSR keeps the metrics of the frames on a CUDA device.

    Raises:
        UserError: if a video model is to be measured and no CUDA device is used.
    """
    kind = dict(iter(MODEL_REGISTRY)).get(opt.get("model_type"))
    measures = (opt.get("val") or {}).get("metrics")
    if measures and opt["num_gpu"] == 0 and isinstance(kind, type) and issubclass(kind, VideoBaseModel):
        raise UserError(
            f"model_type: {opt['model_type']!r} measures videos on a CUDA device only, and none is used here; expected "
            "a GPU, or val.metrics: null"
        )


def reject_cuda_models(opt: dict[str, Any]) -> None:
    """Reject the models that keep a part on a CUDA device, whatever ``num_gpu`` is.

    Raises:
        UserError: if such a model is chosen and no CUDA device is used.
    """
    if opt["num_gpu"] == 0 and opt["model_type"].removesuffix("_basicsr") in CUDA_ONLY_MODELS:
        raise UserError(f"model_type: {opt['model_type']!r} needs a CUDA device, and none is used here; expected a GPU")


def fit_to_machine(opt: dict[str, Any]) -> None:
    """Adapt options to this machine, with warnings: missing GPUs, and loader settings that need a GPU or workers."""
    if not torch.cuda.is_available():
        if opt["num_gpu"] != 0:
            warn(f"num_gpu: {opt['num_gpu']} was asked for, but there is no CUDA device; running on the CPU")
            opt["num_gpu"] = 0
        for phase, dataset in opt["datasets"].items():
            if dataset.get("prefetch_mode") == "cuda":
                warn(f"datasets.{phase}.prefetch_mode: 'cuda' needs a CUDA device; loading without prefetching")
                dataset["prefetch_mode"] = None
            dataset["pin_memory"] = False  # pinning is for copies to a GPU; without one, torch warns
    for phase, dataset in opt["datasets"].items():
        if dataset.get("prefetch_mode") == "cpu" and not dataset.get("num_worker_per_gpu"):
            if dataset["phase"] == "train":  # its thread would use the random generators of the training loop
                warn(f"datasets.{phase}.prefetch_mode: 'cpu' needs num_worker_per_gpu of 1 or more; not prefetching")
                dataset["prefetch_mode"] = None
        # BasicSR loads validation images in the main process, and torch rejects persistent_workers without workers.
        if dataset["phase"] != "train" or not dataset.get("num_worker_per_gpu"):
            dataset["persistent_workers"] = False
    if opt.get("val"):
        opt["val"].setdefault("suffix", None)  # read when test images are saved
        if not sys.stderr.isatty():
            opt["val"]["pbar"] = False
