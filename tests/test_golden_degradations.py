"""Compare every degradation of one photograph with recorded means and standard deviations of 8x8-pixel blocks.

The parameters and values are in ``golden/degradations.json``. After a deliberate change of a degradation,
regenerate them with ``python tests/test_golden_degradations.py``, and compare ``basicsr degrade sheet`` before and
after.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from restore_cases import photograph

from restormixer_arch.data.degradations.compose import (
    add_composition,
    compositions_of,
    compositions_text,
    draw_composition,
)
from restormixer_arch.data.degradations.labels import NAMES

GOLDEN = Path(__file__).parent / "golden" / "degradations.json"
MIXTURES = ("low_haze_rain_snow_blur_defocus_down_noise_poisson_camera_jpeg", "haze_jpeg_blind", "low_haze_snow")
SEEDS = ("0", "1")


def blocks(image):
    """Return means and standard deviations in levels of 255, (H / 8, W / 8, 3), of (H, W, 3) in [0, 1]."""
    height, width, channels = image.shape
    tiles = 255 * image.astype(np.float64).reshape(height // 8, 8, width // 8, 8, channels)
    return {"mean": tiles.mean((1, 3)), "deviation": tiles.std((1, 3))}


def write():
    drawn, values, image = {}, {}, photograph()
    for label in (*NAMES, *MIXTURES):
        scale = 2 if {"down", "blind"} & set(label.split("_")) else 1
        drawn[label] = {
            seed: draw_composition(np.random.default_rng([int(seed), len(label)]), label, None, scale) for seed in SEEDS
        }
        results = {seed: blocks(add_composition(image, drawn[label][seed])) for seed in SEEDS}
        values[label] = {
            seed: {name: np.round(array, 2).tolist() for name, array in result.items()}
            for seed, result in results.items()
        }
    table = {"compositions": json.loads(compositions_text(drawn)), "values": values}
    GOLDEN.write_text(json.dumps(table, separators=(",", ":")) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("label", [*NAMES, *MIXTURES])
def test_recorded_parameters_give_the_recorded_values(golden, label):
    tolerance = 0.5 if {"jpeg", "blind"} & set(label.split("_")) else 0.02  # JPEG rounding depends on the system
    compositions = compositions_of(golden["compositions"])[label]
    for seed in SEEDS:
        for name, values in blocks(add_composition(photograph(), compositions[seed])).items():
            recorded = np.array(golden["values"][label][seed][name])
            np.testing.assert_allclose(values, recorded, rtol=0, atol=tolerance, err_msg=f"{label} {seed} {name}")


@pytest.mark.parametrize("label", [*NAMES, *MIXTURES])
def test_generator_draws_the_recorded_parameters(golden, label):
    """Draws are compared with a tolerance, since processors may round logarithms and powers differently."""
    scale = 2 if {"down", "blind"} & set(label.split("_")) else 1
    for seed in SEEDS:
        drawn = draw_composition(np.random.default_rng([int(seed), len(label)]), label, None, scale)
        text = compositions_text({label: {seed: drawn}})
        assert numbers(json.loads(text)[label][seed]) == numbers(golden["compositions"][label][seed])


def numbers(node):
    """The structure of plain values, with floats that compare equal within a relative error of 1e-9."""
    if isinstance(node, dict):
        return {key: numbers(value) for key, value in node.items()}
    if isinstance(node, list):
        return [numbers(value) for value in node]
    return pytest.approx(node, rel=1e-9) if isinstance(node, float) else node


if __name__ == "__main__":
    write()
