"""Apply several degradations to an image, named by a label as in CDD-11 (Guo et al., "OneRestore", ECCV 2024).

They are applied in physical order, along the path of the light, regardless of their order in the label:

1. ``haze`` fills the complete distance between the scene and the camera.
2. ``rain`` and ``snow``: single drops and flakes are visible only near the camera, so they are in front of the haze.
3. ``blur``: the camera moves during the exposure and smears everything in view; ``defocus``: so does its lens.
4. ``down``: the sensor samples the image; the later steps act on its pixels.
5. ``low``: less light falls on the scene, the haze and the drops, and the sensor adds its noise.
6. ``noise``, ``poisson`` and ``camera``: noise of other sources is added to the stored values.
7. ``jpeg``: the image is written to a file.
8. ``blind``: the file is resized, compressed and shared twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from restormixer_arch.data.degradations.blind import BlindParameters, Order, add_blind, draw_blind
from restormixer_arch.data.degradations.defocus import DefocusParameters, add_defocus, draw_defocus
from restormixer_arch.data.degradations.downsample import DownsampleParameters, add_downsample
from restormixer_arch.data.degradations.haze import HazeParameters, add_haze, draw_haze
from restormixer_arch.data.degradations.jpeg import JpegParameters, add_jpeg, draw_jpeg
from restormixer_arch.data.degradations.labels import parse_label
from restormixer_arch.data.degradations.low_light import LowLightParameters, add_low_light, draw_low_light
from restormixer_arch.data.degradations.motion_blur import MotionBlurParameters, add_motion_blur, draw_motion_blur
from restormixer_arch.data.degradations.noise import (
    CameraNoiseParameters,
    GaussianNoiseParameters,
    PoissonNoiseParameters,
    add_camera_noise,
    add_gaussian_noise,
    add_poisson_noise,
    draw_camera_noise,
    draw_gaussian_noise,
    draw_poisson_noise,
)
from restormixer_arch.data.degradations.rain import Rain, RainParameters, add_rain, draw_rain
from restormixer_arch.data.degradations.snow import SnowParameters, add_snow, draw_snow
from restormixer_arch.errors import UserError

Draw = Callable[[np.random.Generator, float | None], Any]
Add = Callable[[np.ndarray, Any], np.ndarray]


# name -> (function that draws parameters, function that applies them), in order of application; `down` draws nothing
DEGRADATIONS: dict[str, tuple[Draw | None, Add]] = {
    "haze": (draw_haze, add_haze),
    "rain": (draw_rain, add_rain),
    "snow": (draw_snow, add_snow),
    "blur": (draw_motion_blur, add_motion_blur),
    "defocus": (draw_defocus, add_defocus),
    "down": (None, add_downsample),
    "low": (draw_low_light, add_low_light),
    "noise": (draw_gaussian_noise, add_gaussian_noise),
    "poisson": (draw_poisson_noise, add_poisson_noise),
    "camera": (draw_camera_noise, add_camera_noise),
    "jpeg": (draw_jpeg, add_jpeg),
    "blind": (draw_blind, add_blind),
}


# name -> class of its parameters; for rain, the class of one shower
PARAMETERS: dict[str, type] = {
    "haze": HazeParameters,
    "rain": RainParameters,
    "snow": SnowParameters,
    "blur": MotionBlurParameters,
    "defocus": DefocusParameters,
    "down": DownsampleParameters,
    "low": LowLightParameters,
    "noise": GaussianNoiseParameters,
    "poisson": PoissonNoiseParameters,
    "camera": CameraNoiseParameters,
    "jpeg": JpegParameters,
    "blind": BlindParameters,
}


@dataclass(frozen=True)
class Composition:
    """A label and its ``steps``, pairs of a degradation's name and its parameters, in order of application."""

    label: str
    steps: tuple[tuple[str, Any], ...]

    def unclipped(self) -> Composition:
        """Return a copy whose Gaussian noise is not clipped to [0, 1]."""
        steps = (
            (name, replace(parameters, clip=False) if name == "noise" else parameters)
            for name, parameters in self.steps
        )
        return Composition(self.label, tuple(steps))


def draw_composition(
    rng: np.random.Generator, label: str, strength: float | None = None, scale: int = 1
) -> Composition:
    """Draw the parameters of all degradations of a label.

    Args:
        rng: the only source of randomness; it advances by the same amount for any ``strength``.
        label: names joined by ``_``, or ``clean`` for no degradation.
        strength: strength of all degradations, from 0 to 1; None draws one for each from [0, 1].
        scale: downsampling factor of ``down`` and ``blind``.

    Raises:
        UserError: if the label is invalid.
        ValueError: if ``strength`` is not in [0, 1], or ``scale`` is less than 1.
    """
    names = parse_label(label)
    steps = []
    for name in [name for name in DEGRADATIONS if name in names]:
        draw, _ = DEGRADATIONS[name]
        if name == "blind":
            steps.append((name, draw_blind(rng, strength, scale)))
        else:
            steps.append((name, draw(rng, strength) if draw else DownsampleParameters(scale)))
    return Composition(label, tuple(steps))


def add_composition(image: np.ndarray, composition: Composition) -> np.ndarray:
    """Apply all steps to an image, one after the other.

    Args:
        image: RGB image (H, W, 3) or gray image (H, W, 1), float32 in [0, 1].
        composition: composition drawn by :func:`draw_composition`.

    Returns:
        Degraded image, float32 (H, W, C) in [0, 1]; ``down`` and ``blind`` divide its sides by their scale.

    Raises:
        TypeError: if the image is not a float32 array.
        ValueError: if its shape or value range is invalid, or a side is not a multiple of the scale.
    """
    result = image.copy()
    for name, parameters in composition.steps:
        _, add = DEGRADATIONS[name]
        result = add(result, parameters)
    return result


def compositions_text(compositions: Mapping[str, Mapping[str, Composition]]) -> str:
    """Return a mapping label -> image -> composition as JSON text for :func:`read_compositions`."""
    table = {
        label: {name: {step: asdict(parameters) for step, parameters in one.steps} for name, one in images.items()}
        for label, images in compositions.items()
    }
    return json.dumps(table, separators=(",", ":"))


def read_compositions(source: Path) -> dict[str, dict[str, Composition]]:
    """Read a mapping label -> image -> composition from a JSON file.

    Raises:
        UserError: if the file cannot be read, or a parameter is unknown, missing or invalid.
    """
    try:
        return compositions_of(json.loads(source.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source}: holds no parameters of degradations ({error})") from error


def compositions_of(table: Mapping[str, Any]) -> dict[str, dict[str, Composition]]:
    """Convert the parsed values of a JSON file to a mapping label -> image -> composition."""
    return {
        label: {
            name: Composition(label, tuple((step, _parameters(step, values)) for step, values in steps.items()))
            for name, steps in images.items()
        }
        for label, images in table.items()
    }


def _parameters(step: str, values: Mapping[str, Any]) -> Any:
    if step == "rain" and "showers" in values:
        mist = values["mist"]
        showers = tuple(RainParameters(**shower) for shower in values["showers"])
        return Rain(showers, _parameters("haze", mist) if mist else None)
    if step == "blind":
        orders = {order: dict(values[order]) for order in ("first", "second")}
        values = {**values, **{name: Order(**{**one, "sigma": tuple(one["sigma"])}) for name, one in orders.items()}}
    if step == "haze":
        values = {**values, "airlight": tuple(values["airlight"])}
    return PARAMETERS[step](**values)
