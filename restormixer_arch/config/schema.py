"""What an option file may hold: one pydantic model per section, chosen by the section's own ``type`` where it has one.

The descriptions are shown when a required key is missing, and serve as documentation of the keys. Sections whose
keys belong to a class (networks, losses, metrics) are open here; their keys are compared with the class's signature
once it is imported (:mod:`restormixer_arch.basicsr_adapter.signatures`).
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from restormixer_arch.config.values import (
    Count,
    Crop,
    FileName,
    Levels,
    Memory,
    Positive,
    Rate,
    Seed,
    Share,
    Template,
    Workers,
)


class Section(BaseModel):
    """A section that knows all of its keys. Values are compared as they are: ``"5"`` is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class OpenSection(BaseModel):
    """A section to which a plug-in may add keys."""

    model_config = ConfigDict(extra="allow", strict=True)


@cache
def open_section(section: type[BaseModel]) -> type[BaseModel]:
    """Return the same section, named ``Open...``, to which a plug-in may add keys."""
    return create_model(f"Open{section.__name__}", __base__=section, __cls_kwargs__={"extra": "allow"})


class Typed(OpenSection):
    """A section that names a registered class; the other keys are the class's arguments."""

    type: str = Field(description="the registered name of the class to build")


# --- datasets ----------------------------------------------------------------------------------------------------


class IoBackend(OpenSection):
    type: Literal["disk", "lmdb", "memcached"] = Field(description="disk, lmdb or memcached")


class Dataset(Section):
    """What BasicSR's loader reads for any data set."""

    name: FileName = Field(description="names the set in logs and results")
    type: str = Field(description="the registered name of the data set's class")
    num_worker_per_gpu: Workers | None = None
    batch_size_per_gpu: Positive | None = None
    dataset_enlarge_ratio: Annotated[float, Field(gt=0, le=1e6)] = 1
    use_shuffle: bool | None = None
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    num_prefetch_queue: Positive = 1
    pin_memory: bool = False
    persistent_workers: bool = False


class TrainDataset(Dataset):
    num_worker_per_gpu: Workers = Field(description="loader processes, 0 to load in the main one")
    batch_size_per_gpu: Positive = Field(description="images per iteration")


class SingleImages(Dataset):
    io_backend: IoBackend = Field(description="'type: disk' for folders, 'type: lmdb' for LMDBs")
    dataroot_lq: str = Field(description="folder or LMDB of the degraded images")
    meta_info_file: str | None = None
    color: Literal["y"] | None = None
    mean: Levels | None = None
    std: Levels | None = None


class Crops(Section):
    """The keys of the data sets that can be trained on; required there, see :func:`for_training`."""

    gt_size: Crop | None = None
    use_hflip: bool | None = None
    use_rot: bool | None = None


class TrainCrops(TrainDataset):
    gt_size: Crop = Field(description="side of the square crops")
    use_hflip: bool = Field(description="flip at random")
    use_rot: bool = Field(description="turn by multiples of 90 degrees at random")


class PairedImages(SingleImages, Crops):
    dataroot_gt: str = Field(description="folder or LMDB of the clean images")
    filename_tmpl: Template = "{}"


class RestorationPairs(PairedImages):
    recursive: bool = False
    shared_gt: bool = False


class DegradedImages(Dataset, Crops):
    dataroot_gt: str = Field(description="folder or LMDB of the clean images")
    io_backend: IoBackend = Field(description="'type: disk' for folders, 'type: lmdb' for LMDBs")
    degradations: str | list[str] | dict[str, Any] = Field(
        description="cdd11, a list of labels such as low_haze, or a table label -> {weight, strength}"
    )
    seed: Count = 0
    recursive: bool = False
    resize: list[float] | None = Field(None, description="[low, high] of a random resizing before the crop, at most 2")
    exposure: list[float] | None = Field(None, description="[low, high] of a random factor of all values, at most 2")
    unclipped_noise: Share = Field(0, description="share of Gaussian noise that is neither clipped nor rounded")
    compositions: str | None = Field(None, description="JSON file of fixed parameters of the degradations")


def for_training(section: type[BaseModel]) -> type[BaseModel]:
    """Return the section of a data set to train on, named ``Train...``: loader and crops are required."""
    return create_model(f"Train{section.__name__}", __base__=(TrainCrops, section))


# type -> section to validate or test on
DATASETS: dict[str, type[BaseModel]] = {
    "PairedImageDataset": PairedImages,
    "PairedRestorationDataset": RestorationPairs,
    "DegradedDataset": DegradedImages,
    "SingleImageDataset": SingleImages,
}
# type -> section to train on
TRAIN_DATASETS = {name: for_training(section) for name, section in DATASETS.items() if issubclass(section, Crops)}


def dataset_section(kind: Any, phase: str) -> type[BaseModel]:
    """Return the model of one ``datasets`` section by its ``type``; a type of a plug-in gets an open one."""
    known, other = (TRAIN_DATASETS, TrainDataset) if phase == "train" else (DATASETS, Dataset)
    return known[kind] if isinstance(kind, str) and kind in known else open_section(other)


# --- train -------------------------------------------------------------------------------------------------------


TORCH_OPTIMIZERS = ("Adam", "AdamW", "Adamax", "SGD", "ASGD", "RMSprop", "Rprop")  # those of BasicSR's models


COMMON_KEYS = ("type", "lr", "weight_decay")  # of every optimizer


def _leave_open_for_other_packages(json_schema: dict[str, Any]) -> None:
    """Apply all but the common keys to torch's optimizers alone, in the schema for editors."""
    own = {key: json_schema.pop(key) for key in ("properties", "additionalProperties")}
    json_schema["properties"] = {key: own["properties"][key] for key in COMMON_KEYS}
    json_schema["if"] = {"properties": {"type": {"enum": list(TORCH_OPTIMIZERS)}}}
    json_schema["then"] = own


class Optimizer(Section):
    """The keys of torch's optimizers, which are compared with the class later; other packages' have more keys."""

    model_config = ConfigDict(json_schema_extra=_leave_open_for_other_packages)

    @model_validator(mode="before")
    @classmethod
    def _leave_to_other_packages(cls, section: Any) -> Any:
        name = section.get("type") if isinstance(section, dict) else None
        if not isinstance(name, str) or name in TORCH_OPTIMIZERS:
            return section
        return {key: value for key, value in section.items() if key in COMMON_KEYS}

    type: str = Field(description="name of the optimizer, such as Adam")
    lr: Rate = Field(description="learning rate")
    weight_decay: Rate = 0.0
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] | None = None
    eps: Rate | None = None
    amsgrad: bool | None = None
    momentum: Rate | None = None
    dampening: Rate | None = None
    nesterov: bool | None = None
    alpha: Rate | None = None
    lambd: Rate | None = None
    t0: Rate | None = None
    centered: bool | None = None
    etas: list[float] | None = None
    step_sizes: list[float] | None = None
    maximize: bool | None = None
    foreach: bool | None = None
    fused: bool | None = None
    capturable: bool | None = None
    differentiable: bool | None = None


class MultiStep(Section):
    type: str
    milestones: list[Count] = Field(description="iterations at which the learning rate falls")
    gamma: Rate = 0.1
    restarts: list[Count] = [0]
    restart_weights: list[float] = [1]


class CosineRestart(Section):
    type: str
    periods: Annotated[list[Positive], Field(min_length=1)] = Field(description="iterations of each cosine")
    restart_weights: list[float] = [1]
    eta_min: Rate = 0.0


SCHEDULERS: dict[str, type[BaseModel]] = {
    "MultiStepLR": MultiStep,
    "MultiStepRestartLR": MultiStep,
    "CosineAnnealingRestartLR": CosineRestart,
}


class Warmup(Section):
    warmup_iter: Annotated[int, Field(ge=-1)] = -1


class Train(Warmup):
    """What BasicSR's training loop itself reads."""

    total_iter: Positive = Field(description="iterations to train")


class Optimization(Section):
    """What is optimized, and how, without the schedule."""

    optim_g: Optimizer = Field(description="type and lr of the optimizer")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    pixel_opt: Typed | None = None
    perceptual_opt: Typed | None = None


class SRTrain(Train, Optimization):
    """What SRModel reads."""

    scheduler: dict[str, Any] = Field(description="type and keys of the learning rate's schedule")


class Steps(Section):
    """How RestorMixerModel takes the steps of the optimizer."""

    grad_clip: Rate = Field(default=0.01, description="largest norm of the gradient, 0 for no limit")
    amp: Literal["off", "bf16", "fp16", False] = Field(default="off", description="16 bits in the forward pass")
    tf32: bool | None = Field(
        default=None, description="TF32 on a GPU, in convolutions and products; torch's own settings if unset"
    )
    accumulate: Positive = Field(default=1, description="batches of the loader for one step of the optimizer")
    checkpointing: bool = Field(default=False, description="less memory: compute the activations of blocks twice")
    compile: bool = Field(default=False, description="run the network through torch.compile while training")
    frozen_norms: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="share of the training after which BatchNorm keeps its running statistics"
    )
    max_skipped: Count = Field(default=10, description="steps in a row that may be skipped for NaN or infinity")
    mixup: Annotated[float, Field(gt=0)] | None = Field(default=None, description="blend pairs, by Beta(mixup, mixup)")
    cutblur: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="probability of CutBlur")


class Progressive(Section):
    iters: Annotated[list[Positive], Field(min_length=1)] = Field(description="iterations of each stage")
    gt_sizes: Annotated[list[Crop], Field(min_length=1)] = Field(description="side of the patches of each stage")
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = Field(description="images of a batch of each stage")


class RestorMixerTrain(SRTrain, Steps):
    progressive: Progressive | None = Field(default=None, description="stages of growing patches")


# The models whose every key is known. Another model's file may have further keys in these sections.
TRAIN_SECTIONS: dict[str, type[BaseModel]] = {
    "SRModel": SRTrain,
    "SwinIRModel": SRTrain,
    "RestorMixerModel": RestorMixerTrain,
}


# --- val, path ---------------------------------------------------------------------------------------------------


class Metric(Typed):
    crop_border: Count = 0
    better: Literal["higher", "lower"] = "higher"


class TestVal(Section):
    save_img: bool = Field(description="write the restored images to disk")
    val_freq: Positive | None = None
    suffix: str | None = None
    pbar: bool = False
    metrics: dict[FileName, Metric] | None = None


class TrainVal(TestVal):
    val_freq: Positive = Field(description="iterations between two validations")


class Tiles(Section):
    """Tiles of validated and tested pictures; without ``tile`` and ``max_memory`` each is restored whole."""

    tile: Annotated[int, Field(ge=64)] | None = None
    tile_overlap: Count | None = None
    tile_blend: Literal["hann", "linear"] | None = None
    max_memory: Memory | None = None


class TiledTrainVal(TrainVal, Tiles):
    pass


class TiledTestVal(TestVal, Tiles):
    pass


class Paths(Section):
    pretrain_network_g: str | None = None
    strict_load_g: bool = True
    param_key_g: str | None = "params"
    resume_state: str | None = None
    ignore_resume_networks: list[str] | str | None = None
    experiments_root: str | None = None
    results_root: str | None = None


# --- the whole file ----------------------------------------------------------------------------------------------


class Wandb(Section):
    project: str | None = None
    resume_id: str | None = None


class Logger(Section):
    print_freq: Positive = Field(description="iterations between two log lines")
    save_checkpoint_freq: Positive = Field(description="iterations between two checkpoints")
    use_tb_logger: bool = Field(description="write tensorboard scalars")
    wandb: Wandb | None = None
    keep_last: Positive | None = Field(default=None, description="checkpoints to keep, the newest ones; all if unset")


class DistParams(OpenSection):
    backend: str | None = None
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    timeout_minutes: Positive | None = None


class AnyFile(Section):
    """What option files of all commands share."""

    name: FileName = Field(description="the experiment, names its folder")
    num_gpu: Count | Literal["auto"] = Field(description="0 for the CPU, a count of GPUs, or auto")
    scale: Positive = 1
    device: Literal["cpu", "cuda", "mps"] | None = None
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = None


class ModelFile(AnyFile):
    model_type: str = Field(description="the registered name of the model, such as RestorMixerModel")
    manual_seed: Seed | None = None
    datasets: dict[str, dict[str, Any]] = Field(description="the data, one section per set")
    network_g: Typed = Field(description="type and arguments of the network")
    path: dict[str, Any] = Field(description="weights to start from; 'path: {}' if there are none")
    dist_params: DistParams | None = None
    find_unused_parameters: bool = False


class TrainFile(ModelFile):
    train: dict[str, Any] = Field(description="optimizer, schedule and losses")
    val: dict[str, Any] | None = None
    logger: Logger = Field(description="print_freq, save_checkpoint_freq and use_tb_logger")


class TestFile(ModelFile):
    val: dict[str, Any] = Field(description="save_img and metrics")
    train: Any = None  # training's sections may stay in a file used for testing
    logger: Any = None


def sections(model_type: Any, is_train: bool) -> dict[str, type[BaseModel]]:
    """Return the models of ``train``, ``val`` and ``path`` by key, and of the whole file under ``""``.

    Those of a model whose keys are not known, because a plug-in brings it, are open.
    """
    tiled = model_type == "RestorMixerModel"
    found: dict[str, type[BaseModel]] = {"": TestFile, "val": TiledTestVal if tiled else TestVal, "path": Paths}
    known = isinstance(model_type, str) and model_type in TRAIN_SECTIONS
    if is_train:
        found |= {"": TrainFile, "val": TiledTrainVal if tiled else TrainVal}
        found["train"] = TRAIN_SECTIONS[model_type] if known else Train
    return found if known else {key: open_section(section) for key, section in found.items()}
