"""Define the section ``train`` of option files for each model; see :mod:`restormixer_arch.config.schema`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from restormixer_arch.config.section import Section, Typed
from restormixer_arch.config.values import Count, Crop, Positive, Rate

TORCH_OPTIMIZERS = ("Adam", "AdamW", "Adamax", "SGD", "ASGD", "RMSprop", "Rprop")  # those that BasicSR's models support


COMMON_KEYS = ("type", "lr", "weight_decay")  # keys of every optimizer


def _leave_open_for_other_packages(json_schema: dict[str, Any]) -> None:
    """Restrict all but the common keys to torch's optimizers in the JSON Schema for editors."""
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
    """Keys that BasicSR's training loop itself reads."""

    total_iter: Positive = Field(description="iterations to train")


class Optimization(Section):
    """Keys of the optimizer and the losses, without the schedule."""

    optim_g: Optimizer = Field(description="type and lr of the optimizer")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    pixel_opt: Typed | None = None
    perceptual_opt: Typed | None = None


class SRTrain(Train, Optimization):
    """What SRModel reads."""

    scheduler: dict[str, Any] = Field(description="type and keys of the learning rate's schedule")


class Steps(Section):
    """Keys that define the training steps of RestorMixerModel."""

    grad_clip: Rate = Field(default=0.01, description="maximum norm of the gradient, 0 for no clipping")
    amp: Literal["off", "bf16", "fp16", False] = Field(default="off", description="16 bits in the forward pass")
    tf32: bool | None = Field(
        default=None, description="TF32 on a GPU, in convolutions and products; torch's own settings if unset"
    )
    accumulate: Positive = Field(default=1, description="batches of the loader for one step of the optimizer")
    checkpointing: bool = Field(default=False, description="save memory: recompute activations in the backward pass")
    compile: bool = Field(default=False, description="run the network through torch.compile while training")
    freeze_norms_after: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="fraction of training after which BatchNorm is frozen; 0: from the start",
    )
    max_skipped: Count = Field(default=10, description="steps in a row that may be skipped for NaN or infinity")
    mixup: Annotated[float, Field(gt=0, le=1e6)] | None = Field(
        default=None, description="blend pairs, with weights from Beta(mixup, mixup)"
    )
    cutblur: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, description="probability of CutBlur")


class Progressive(Section):
    iters: Annotated[list[Positive], Field(min_length=1)] = Field(description="iterations of each stage")
    gt_sizes: Annotated[list[Crop], Field(min_length=1)] = Field(description="side of the patches of each stage")
    batch_sizes: Annotated[list[Positive], Field(min_length=1)] = Field(description="images of a batch of each stage")


class RestorMixerTrain(SRTrain, Steps):
    progressive: Progressive | None = Field(default=None, description="stages with increasing patch size")


class GanTrain(SRTrain):
    """What SRGANModel and the models made of it read."""

    optim_d: Optimizer = Field(description="type and lr of the discriminator's optimizer")
    gan_opt: Typed = Field(description="the adversarial loss, such as GANLoss")
    ldl_opt: Typed | None = None
    net_d_iters: Positive = Field(default=1, description="steps of the discriminator for one of network_g")
    net_d_init_iters: Count = Field(default=0, description="iterations at the start that train the discriminator alone")


# model -> section; for other models, any keys are allowed besides those of Train
TRAIN_SECTIONS: dict[str, type[BaseModel]] = {
    "SRModel": SRTrain,
    "SwinIRModel": SRTrain,
    "SRGANModel": GanTrain,
    "ESRGANModel": GanTrain,
    "RestorMixerModel": RestorMixerTrain,
    "RealESRNetModel": SRTrain,
    "RealESRGANModel": GanTrain,
    "VideoBaseModel": SRTrain,
    "VideoRecurrentModel": SRTrain,
    "VideoRecurrentGANModel": GanTrain,
    "EDVRModel": SRTrain,
}
# models of TRAIN_SECTIONS whose files may have further keys in any section
MODELS_WITH_EXTRA_KEYS = (
    "RealESRNetModel",
    "RealESRGANModel",
    "VideoBaseModel",
    "VideoRecurrentModel",
    "VideoRecurrentGANModel",
    "EDVRModel",
)
