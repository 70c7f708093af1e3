"""What the section ``val`` of an option file may hold; see :mod:`restormixer_arch.basicsr_adapter.option_schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError

from restormixer_arch.basicsr_adapter.option_schema import Count, OpenSection, Positive, Section, Typed
from restormixer_arch.memory import parse_bytes


class Metric(Typed):
    better: Literal["higher", "lower"] = "higher"


def _memory(text: str) -> str:
    try:
        parse_bytes(text)
    except ValueError as error:
        raise PydanticCustomError("memory", "an amount of memory such as 3G or 800M") from error
    return text


class ValKeys(BaseModel):
    save_img: bool = Field(description="write the restored images to disk")
    val_freq: Positive | None = None
    suffix: str | None = None
    pbar: bool = False
    metrics: dict[str, Metric] | None = None


class TrainVal(ValKeys):
    model_config = Section.model_config
    val_freq: Positive = Field(description="iterations between two validations")


class OpenTrainVal(TrainVal):
    model_config = OpenSection.model_config


class TestVal(ValKeys):
    model_config = Section.model_config


class OpenTestVal(TestVal):
    model_config = OpenSection.model_config


class TileKeys(BaseModel):
    """Tiles of validated and tested pictures; without ``tile`` and ``max_memory`` each is restored whole."""

    tile: Annotated[int, Field(ge=64)] | None = None
    tile_overlap: Count | None = None
    tile_blend: Literal["hann", "linear"] | None = None
    max_memory: Annotated[str, AfterValidator(_memory)] | None = None


class TiledTrainVal(TrainVal, TileKeys):
    model_config = Section.model_config


class TiledTestVal(TestVal, TileKeys):
    model_config = Section.model_config


# The models that know more keys of 'val' than BasicSR's, in training and in testing.
VAL_SECTIONS: dict[str, tuple[type[BaseModel], type[BaseModel]]] = {"RestorMixerModel": (TiledTrainVal, TiledTestVal)}


def section(model_type: str | None, is_train: bool) -> type[BaseModel]:
    """The section of a model whose keys are known, or of any other, None."""
    others = (OpenTrainVal, OpenTestVal) if model_type is None else (TrainVal, TestVal)
    return VAL_SECTIONS.get(model_type, others)[0 if is_train else 1]
