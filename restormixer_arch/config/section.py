"""What the sections of an option file are made of; see :mod:`restormixer_arch.config.schema`."""

from __future__ import annotations

from functools import cache

from pydantic import BaseModel, ConfigDict, Field, create_model


class Section(BaseModel):
    """A section that knows all of its keys. Values are compared as they are: ``"5"`` is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class OpenSection(BaseModel):
    """A section to which a plug-in may add keys."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


@cache
def open_section(section: type[BaseModel]) -> type[BaseModel]:
    """Return the same section, named ``Open...``, to which a plug-in may add keys."""
    return create_model(f"Open{section.__name__}", __base__=section, __cls_kwargs__={"extra": "allow"})


class Typed(OpenSection):
    """A section that names a registered class; the other keys are the class's arguments."""

    type: str = Field(description="the registered name of the class to build")
