"""Several degradations of one image, named by a label as in CDD-11 (Guo et al., "OneRestore", ECCV 2024).

They are applied in the order in which they arise on the light's way, whatever their order in the label:

1. ``haze`` lies between the scene and the camera, all the way.
2. ``rain`` and ``snow`` are seen singly only where they are near, so in front of the haze.
3. ``blur``: the camera moves during the exposure and smears all it sees.
4. ``down``: the sensor's pixels sample the image; what follows happens at each pixel.
5. ``low``: there is less light, on the haze and the drops as on the scene, and the sensor's noise comes in here.
6. ``noise`` and ``poisson``: noise of further sources, on stored values.
7. ``jpeg``: the file is written last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from restormixer_arch.data.downsample import DownsampleParameters, add_downsample
from restormixer_arch.data.haze import add_haze, draw_haze
from restormixer_arch.data.jpeg import add_jpeg, draw_jpeg
from restormixer_arch.data.labels import parse_label
from restormixer_arch.data.low_light import add_low_light, draw_low_light
from restormixer_arch.data.motion_blur import add_motion_blur, draw_motion_blur
from restormixer_arch.data.noise import add_gaussian_noise, add_poisson_noise, draw_gaussian_noise, draw_poisson_noise
from restormixer_arch.data.rain import add_rain, draw_rain
from restormixer_arch.data.snow import add_snow, draw_snow

Draw = Callable[[np.random.Generator, float | None], Any]
Add = Callable[[np.ndarray, Any], np.ndarray]


# name -> (draws parameters, applies them), in the order of application; the scale of `down` is given and not drawn
DEGRADATIONS: dict[str, tuple[Draw | None, Add]] = {
    "haze": (draw_haze, add_haze),
    "rain": (draw_rain, add_rain),
    "snow": (draw_snow, add_snow),
    "blur": (draw_motion_blur, add_motion_blur),
    "down": (None, add_downsample),
    "low": (draw_low_light, add_low_light),
    "noise": (draw_gaussian_noise, add_gaussian_noise),
    "poisson": (draw_poisson_noise, add_poisson_noise),
    "jpeg": (draw_jpeg, add_jpeg),
}


@dataclass(frozen=True)
class Composition:
    """A label and its ``steps``, each a name and its parameters, in the order of application."""

    label: str
    steps: tuple[tuple[str, Any], ...]


def draw_composition(
    rng: np.random.Generator, label: str, strength: float | None = None, scale: int = 1
) -> Composition:
    """Draw the parameters of all degradations of a label.

    Args:
        rng: the only source of chance, advanced alike whatever ``strength`` is.
        label: names joined by ``_``, or ``clean`` for none.
        strength: of every one, from 0 to 1; None draws one for each from [0.25, 1].
        scale: of ``down``.

    Raises:
        UserError: the label is none.
        ValueError: ``strength`` is not in [0, 1], or ``scale`` is less than 1.
    """
    names = parse_label(label)
    steps = []
    for name in [name for name in DEGRADATIONS if name in names]:
        draw, _ = DEGRADATIONS[name]
        steps.append((name, draw(rng, strength) if draw else DownsampleParameters(scale)))
    return Composition(label, tuple(steps))


def add_composition(image: np.ndarray, composition: Composition) -> np.ndarray:
    """Return the image with every step applied, one after the other.

    Args:
        image: (H, W, 3) RGB or (H, W, 1), float32 in [0, 1].
        composition: what :func:`draw_composition` drew.

    Returns:
        float32 (H, W, C) in [0, 1]; with ``down`` the sides are divided by its scale.

    Raises:
        TypeError: the image is not a float32 array.
        ValueError: its shape or range is another, or a side is no multiple of the scale.
    """
    result = image.copy()
    for name, parameters in composition.steps:
        _, add = DEGRADATIONS[name]
        result = add(result, parameters)
    return result
