"""What an option file may hold: one pydantic model per section, chosen by the section's own ``type`` where it has one.

The descriptions are shown when a required key is missing, and serve as documentation of the keys. Sections whose
keys belong to a class (networks, losses, metrics) are open here; their keys are compared with the class's signature
once it is imported (:mod:`restormixer_arch.basicsr_adapter.option_names`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A section that knows all of its keys. Values are compared as they are: ``"5"`` is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class OpenSection(BaseModel):
    """A section to which a plug-in may add keys."""

    model_config = ConfigDict(extra="allow", strict=True)


class Typed(OpenSection):
    """A section that names a registered class; the other keys are the class's arguments."""

    type: str = Field(description="the registered name of the class to build")


class IoBackend(OpenSection):
    type: Literal["disk", "lmdb", "memcached"] = Field(description="disk, lmdb or memcached")


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
    port: Count | None = None
    timeout_minutes: Positive | None = None


# --- train -----------------------------------------------------------------------------------------------------


class Optimizer(Section):
    """The keys of torch's optimizers; which of them a given optimizer takes is checked once torch is imported."""

    type: str = Field(description="name of the optimizer, such as Adam")
    lr: Rate = Field(description="learning rate")
    weight_decay: Rate = 0.0
    betas: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
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


class TrainKeys(BaseModel):
    """What BasicSR's training loop itself reads."""

    total_iter: Positive = Field(description="iterations to train")
    warmup_iter: Annotated[int, Field(ge=-1)] = -1


class OpenTrain(TrainKeys):
    model_config = OpenSection.model_config


class SRTrain(TrainKeys):
    """What SRModel reads."""

    model_config = Section.model_config

    optim_g: Optimizer = Field(description="type and lr of the optimizer")
    scheduler: dict[str, Any] = Field(description="type and keys of the learning rate's schedule")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    pixel_opt: Typed | None = None
    perceptual_opt: Typed | None = None


class Progressive(Section):
    iters: Annotated[list[Positive], Field(min_length=1)] = Field(description="iterations of each stage")
    gt_sizes: Annotated[list[Positive], Field(min_length=1)] = Field(description="side of the patches of each stage")
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = Field(description="images of a batch of each stage")


class RestorMixerTrain(SRTrain):
    grad_clip: Rate = Field(default=0.01, description="largest norm of the gradient, 0 for no limit")
    amp: Literal["off", "bf16", "fp16", False] = Field(default="off", description="16 bits in the forward pass")
    accumulate: Positive = Field(default=1, description="batches of the loader for one step of the optimizer")
    checkpointing: bool = Field(default=False, description="less memory: compute the activations of blocks twice")
    compile: bool = Field(default=False, description="run the network through torch.compile while training")
    frozen_norms: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="share of the training after which BatchNorm keeps its running statistics"
    )
    max_skipped: Count = Field(default=10, description="steps in a row that may be skipped for NaN or infinity")
    mixup: Annotated[float, Field(gt=0)] | None = Field(default=None, description="blend pairs, by Beta(mixup, mixup)")
    progressive: Progressive | None = Field(default=None, description="stages of growing patches")


# The models whose every key is known. Another model's file may have further keys in these sections.
TRAIN_SECTIONS: dict[str, type[BaseModel]] = {
    "SRModel": SRTrain,
    "SwinIRModel": SRTrain,
    "RestorMixerModel": RestorMixerTrain,
}


# --- path ------------------------------------------------------------------------------------------------------


class PathKeys(BaseModel):
    pretrain_network_g: str | None = None
    strict_load_g: bool = True
    param_key_g: str | None = "params"
    resume_state: str | None = None
    ignore_resume_networks: list[str] | str | None = None
    experiments_root: str | None = None
    results_root: str | None = None


class Paths(PathKeys):
    model_config = Section.model_config


class OpenPaths(PathKeys):
    model_config = OpenSection.model_config


# --- the whole file --------------------------------------------------------------------------------------------


class FileKeys(BaseModel):
    name: Annotated[str, Field(pattern=r"^[^/\\]+$")] = Field(description="the experiment, names its folder")
    model_type: str = Field(description="the registered name of the model, such as RestorMixerModel")
    num_gpu: Count | Literal["auto"] = Field(description="0 for the CPU, a count of GPUs, or auto")
    scale: Positive = 1
    manual_seed: Count | None = None
    device: Literal["cpu", "cuda", "mps"] | None = None
    num_threads: Positive | None = None
    datasets: dict[str, dict[str, Any]] = Field(description="the data, one section per set")
    network_g: Typed = Field(description="type and arguments of the network")
    path: dict[str, Any] = Field(description="weights to start from; 'path: {}' if there are none")
    dist_params: DistParams | None = None
    find_unused_parameters: bool = False


class TrainFile(FileKeys):
    model_config = Section.model_config

    train: dict[str, Any] = Field(description="optimizer, schedule and losses")
    val: dict[str, Any] | None = None
    logger: Logger = Field(description="print_freq, save_checkpoint_freq and use_tb_logger")


class OpenTrainFile(TrainFile):
    model_config = OpenSection.model_config


class TestFile(FileKeys):
    model_config = Section.model_config

    val: dict[str, Any] = Field(description="save_img and metrics")
    train: Any = None  # training's sections may stay in a file used for testing
    logger: Any = None


class OpenTestFile(TestFile):
    model_config = OpenSection.model_config
