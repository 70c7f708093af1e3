"""Define the sections of option files: one pydantic model per section, chosen by its ``type`` if it has one.

The descriptions document the keys and are shown when a required key is missing. Sections whose keys are arguments of
a class (networks, losses, metrics) are open here; their keys are compared with the signature of the class once it is
imported (:mod:`restormixer_arch.basicsr_adapter.signatures`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model

from restormixer_arch.config.section import OpenSection, Section, Typed, open_section
from restormixer_arch.config.train_schema import MODELS_WITH_EXTRA_KEYS, TRAIN_SECTIONS, GanTrain, Train
from restormixer_arch.config.values import (
    Count,
    Crop,
    FileName,
    Levels,
    Memory,
    Positive,
    Seed,
    Share,
    Template,
    Workers,
)

# --- datasets ----------------------------------------------------------------------------------------------------


class IoBackend(OpenSection):
    type: Literal["disk", "lmdb", "memcached"] = Field(description="disk, lmdb or memcached")


class Dataset(Section):
    """Keys that BasicSR's loader reads for every dataset."""

    name: FileName = Field(description="name of the dataset in logs and results")
    type: str = Field(description="the registered name of the dataset's class")
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
    """Keys of datasets that support training, where they are required; see :func:`for_training`."""

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
    unclipped_noise: Share = Field(0, description="fraction of Gaussian noise that is neither clipped nor rounded")
    compositions: str | None = Field(None, description="JSON file of fixed parameters of the degradations")


def for_training(section: type[BaseModel]) -> type[BaseModel]:
    """Return the training section of a dataset, named ``Train...``, which requires the loader and crop keys."""
    return create_model(f"Train{section.__name__}", __base__=(TrainCrops, section))


# dataset type -> section for validation and testing
DATASETS: dict[str, type[BaseModel]] = {
    "PairedImageDataset": PairedImages,
    "PairedRestorationDataset": RestorationPairs,
    "DegradedDataset": DegradedImages,
    "SingleImageDataset": SingleImages,
}
# dataset type -> section for training
TRAIN_DATASETS = {name: for_training(section) for name, section in DATASETS.items() if issubclass(section, Crops)}


def dataset_section(kind: Any, phase: str) -> type[BaseModel]:
    """Return the model of a ``datasets`` section by its ``type``; types of plug-ins get an open one."""
    known, other = (TRAIN_DATASETS, TrainDataset) if phase == "train" else (DATASETS, Dataset)
    return known[kind] if isinstance(kind, str) and kind in known else open_section(other)


# --- val, path ---------------------------------------------------------------------------------------------------


class Metric(Typed):
    crop_border: Count = 0
    better: Literal["higher", "lower"] = Field(
        "higher",
        description="which values are better (default: lower for NIQE, LPIPS and DISTS, else higher)",
        json_schema_extra=lambda schema: schema.pop("default"),  # it depends on the metric
    )


class TestVal(Section):
    save_img: bool = Field(description="write the restored images to disk")
    val_freq: Positive | None = None
    suffix: str | None = None
    pbar: bool = False
    metrics: dict[FileName, Metric] | None = None


class TrainVal(TestVal):
    val_freq: Positive = Field(description="iterations between two validations")


class Tiles(Section):
    """Tiling in validation and testing; without ``tile`` and ``max_memory``, images are restored in one piece."""

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


class GanPaths(Paths):
    pretrain_network_d: str | None = None
    strict_load_d: bool = True
    param_key_d: str | None = "params"


# --- the complete file -------------------------------------------------------------------------------------------


class Wandb(Section):
    project: str | None = None
    resume_id: str | None = None


class Logger(Section):
    print_freq: Positive = Field(description="iterations between two log lines")
    save_checkpoint_freq: Positive = Field(description="iterations between two checkpoints")
    use_tb_logger: bool = Field(description="write tensorboard scalars")
    wandb: Wandb | None = None
    keep_last: Positive | None = Field(default=None, description="number of newest checkpoints to keep; all if unset")


class DistParams(OpenSection):
    backend: str | None = None
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    timeout_minutes: Positive | None = None


class AnyFile(Section):
    """Keys that the option files of all commands share."""

    name: FileName = Field(description="name of the experiment and its folder")
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
    train: Any = None  # a file used for testing may contain the sections for training
    logger: Any = None


class GanTrainFile(TrainFile):
    network_d: Typed = Field(description="type and arguments of the discriminator")


class GanTestFile(TestFile):
    network_d: Any = None


def sections(model_type: Any, is_train: bool) -> dict[str, type[BaseModel]]:
    """Return the models of ``train``, ``val`` and ``path`` by key, and of the complete file under ``""``.

    They are open if not all keys of ``model_type`` are known.
    """
    name = model_type if isinstance(model_type, str) else ""
    train, tiled = TRAIN_SECTIONS.get(name, Train), name == "RestorMixerModel"
    gan = issubclass(train, GanTrain)
    found: dict[str, type[BaseModel]] = {
        "": GanTestFile if gan else TestFile,
        "val": TiledTestVal if tiled else TestVal,
        "path": GanPaths if gan else Paths,
    }
    if is_train:
        found |= {"": GanTrainFile if gan else TrainFile, "val": TiledTrainVal if tiled else TrainVal, "train": train}
    closed = name in TRAIN_SECTIONS and name not in MODELS_WITH_EXTRA_KEYS
    return found if closed else {key: open_section(section) for key, section in found.items()}
