"""The keys of ``datasets.<phase>``, by the data set's type and by whether it is trained on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from restormixer_arch.basicsr_adapter.option_schema import Count, IoBackend, OpenSection, Positive, Section


class DatasetKeys(BaseModel):
    """What BasicSR's loader reads for any data set."""

    name: str = Field(description="names the set in logs and results")
    type: str = Field(description="the registered name of the data set's class")
    num_worker_per_gpu: Count | None = None
    batch_size_per_gpu: Positive | None = None
    dataset_enlarge_ratio: Annotated[float, Field(gt=0)] = 1
    use_shuffle: bool | None = None
    prefetch_mode: Literal["cpu", "cuda"] | None = None
    num_prefetch_queue: Positive = 1
    pin_memory: bool = False
    persistent_workers: bool = False


class TrainDatasetKeys(DatasetKeys):
    num_worker_per_gpu: Count = Field(description="loader processes, 0 to load in the main one")
    batch_size_per_gpu: Positive = Field(description="images per iteration")


class OpenDataset(DatasetKeys):
    model_config = OpenSection.model_config


class OpenTrainDataset(TrainDatasetKeys):
    model_config = OpenSection.model_config


class ImageKeys(BaseModel):
    """What BasicSR's image data sets share."""

    io_backend: IoBackend = Field(description="'type: disk' for folders, 'type: lmdb' for LMDBs")
    dataroot_lq: str = Field(description="folder or LMDB of the degraded images")
    meta_info_file: str | None = None
    color: Literal["y"] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None


class PairKeys(ImageKeys):
    dataroot_gt: str = Field(description="folder or LMDB of the clean images")
    filename_tmpl: str = "{}"


class SingleImages(DatasetKeys, ImageKeys):
    model_config = Section.model_config


class PairedImages(DatasetKeys, PairKeys):
    model_config = Section.model_config

    gt_size: Positive | None = None
    use_hflip: bool | None = None
    use_rot: bool | None = None


class TrainPairedImages(TrainDatasetKeys, PairKeys):
    model_config = Section.model_config

    gt_size: Positive = Field(description="side of the square crops")
    use_hflip: bool = Field(description="flip at random")
    use_rot: bool = Field(description="turn by multiples of 90 degrees at random")


class RestorationPairs(PairedImages):
    recursive: bool = False
    shared_gt: bool = False


class TrainRestorationPairs(TrainPairedImages):
    recursive: bool = False
    shared_gt: bool = False


class DegradedKeys(BaseModel):
    dataroot_gt: str = Field(description="folder or LMDB of the clean images")
    io_backend: IoBackend = Field(description="'type: disk' for folders, 'type: lmdb' for LMDBs")
    degradations: str | list[str] | dict[str, Any] = Field(
        description="cdd11, a list of labels such as low_haze, or a table label -> {weight, strength}"
    )
    seed: Count = 0
    recursive: bool = False
    resize: list[float] | None = Field(None, description="[low, high] of a random reduction before the crop, at most 1")
    unclipped_noise: Annotated[float, Field(ge=0, le=1)] = Field(
        0, description="share of Gaussian noise that is neither clipped nor rounded"
    )
    compositions: str | None = Field(None, description="JSON file of fixed parameters of the degradations")


class DegradedImages(DatasetKeys, DegradedKeys):
    model_config = Section.model_config

    gt_size: Positive | None = None
    use_hflip: bool | None = None
    use_rot: bool | None = None


class TrainDegradedImages(TrainDatasetKeys, DegradedKeys):
    model_config = Section.model_config

    gt_size: Positive = Field(description="side of the square crops")
    use_hflip: bool = Field(description="flip at random")
    use_rot: bool = Field(description="turn by multiples of 90 degrees at random")


# type -> (section to train on, section to validate or test on)
DATASETS: dict[str, tuple[type[BaseModel], type[BaseModel]]] = {
    "PairedImageDataset": (TrainPairedImages, PairedImages),
    "PairedRestorationDataset": (TrainRestorationPairs, RestorationPairs),
    "DegradedDataset": (TrainDegradedImages, DegradedImages),
    "SingleImageDataset": (OpenTrainDataset, SingleImages),
}
NEEDS_SCALE = {"PairedImageDataset", "PairedRestorationDataset", "DegradedDataset"}
WITHOUT_TRUTH = {"SingleImageDataset"}
NO_REFERENCE_METRICS = {"calculate_niqe"}


def dataset_section(options: dict[str, Any], phase: str) -> type[BaseModel]:
    """Return the model of one ``datasets`` section; a type of a plug-in gets an open one."""
    for_training, for_validation = DATASETS.get(options.get("type"), (OpenTrainDataset, OpenDataset))
    return for_training if phase == "train" else for_validation
