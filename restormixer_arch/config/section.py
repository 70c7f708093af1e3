"""Define the base classes of the sections of option files; see :mod:`restormixer_arch.config.schema`."""

from __future__ import annotations

from functools import cache

from pydantic import BaseModel, ConfigDict, Field, create_model


class Section(BaseModel):
    """A section that rejects unknown keys. Values are not converted: ``"5"`` is not a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class OpenSection(BaseModel):
    """A section to which a plug-in may add keys."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


@cache
def open_section(section: type[BaseModel]) -> type[BaseModel]:
    """Return a subclass of the section, named ``Open...``, to which a plug-in may add keys."""
    return create_model(f"Open{section.__name__}", __base__=section, __cls_kwargs__={"extra": "allow"})


class Typed(OpenSection):
    """A section that names a registered class; the other keys are the class's arguments."""

    type: str = Field(description="the registered name of the class to build")
