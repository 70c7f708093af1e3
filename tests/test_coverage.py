"""Coverage of real pairs by generated ones: residual statistics with manually computed values."""

import cv2
import numpy as np
import pytest

from restormixer_arch.cli import main
from restormixer_arch.data.degradations.coverage import compare_coverage, compare_folders, residual_statistics
from restormixer_arch.data.degradations.rain import RainParameters, add_rain
from restormixer_arch.errors import UserError

GRAY = np.full((128, 128, 3), 0.4, np.float32)


def rain(**changes):
    base = {"angle": 0, "angle_spread": 0.0, "length": 40, "width": 2, "density": 5, "intensity": 0.8, "layers": 1}
    return add_rain(GRAY, RainParameters(**{**base, **changes}))


def test_residual_statistics_of_equal_images():
    found = residual_statistics(GRAY, GRAY)
    assert found["psnr"] == 99 and found["mean"] == 0 and found["positive"] == 0.5


def test_psnr_includes_a_color_shift_with_zero_mean():
    """0.2 more red and 0.2 less green cancel in the mean of the channels; the mean squared error is 0.08 / 3."""
    shifted = GRAY + np.array([0.2, -0.2, 0], np.float32)
    found = residual_statistics(shifted, GRAY)
    assert found["psnr"] == pytest.approx(-10 * np.log10(0.08 / 3), abs=1e-4) and abs(found["mean"]) < 1e-4


def test_bright_veil_has_a_smooth_positive_residual():
    ramp = GRAY + np.linspace(0, 0.2, 128, dtype=np.float32)[:, None, None]
    found = residual_statistics(ramp, GRAY)
    assert found["mean"] == pytest.approx(25.5, rel=0.01) and found["positive"] == 1
    assert found["smooth"] > 0.9
    assert found["psnr"] == pytest.approx(-10 * np.log10(0.2**2 / 3), abs=0.1)


def test_darkening_has_a_negative_residual():
    found = residual_statistics(GRAY * np.float32(0.5), GRAY)
    assert found["positive"] == 0 and found["mean"] == pytest.approx(-51, rel=0.01)


@pytest.mark.parametrize("angle", [-40, 0, 25])
def test_streak_angle_is_estimated(angle):
    found = residual_statistics(rain(angle=angle), GRAY)
    assert found["angle"] == pytest.approx(abs(angle), abs=6)
    assert found["coherence"] > 0.7 and found["skewness"] > 1


def test_run_and_width_grow_with_streak_length_and_width():
    short, long, wide = (residual_statistics(rain(**kind), GRAY) for kind in ({"length": 12}, {}, {"width": 6}))
    assert long["run"] > 1.5 * short["run"] and wide["width"] > 1.5 * long["width"]


def test_share_of_pairs_outside_the_drawn_range():
    drawn = [(rain(seed=seed), GRAY) for seed in range(12)]
    public = [(rain(seed=50), GRAY), (GRAY * np.float32(0.5), GRAY)]
    shares = {row.name: row.outside for row in compare_coverage(drawn, public)}
    assert shares["mean"] >= 0.5 and shares["positive"] >= 0.5
    with pytest.raises(ValueError, match="at least one pair"):
        compare_coverage(drawn, [])


def test_coverage_command(folder, capsys):
    for kind in ("lq", "gt"):
        (folder / kind).mkdir()
        for seed in range(3):
            image = rain(seed=seed) if kind == "lq" else GRAY
            cv2.imwrite(str(folder / kind / f"{seed}.png"), np.round(image * 255).astype(np.uint8))
    arguments = ["degrade", "coverage", "--lq", "lq", "--gt", "gt", "--labels"]
    assert main([*arguments, "rain", "--count", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| residual | drawn: 5 % |") and len(lines) == 11
    assert main([*arguments, "rian"]) == 2 and "Did you mean" in capsys.readouterr().err
    assert main([*arguments, "down"]) == 2  # images of different sizes, which were once reported as equal
    assert "--labels: scale 1 does not allow 'down'; 2, 3 or 4 does, got 'down'" in capsys.readouterr().err
    rows = compare_folders("lq", "gt", ["rain"], count=6)
    assert lines[2].startswith("| psnr | ") and f"{rows[0].public[1]:.2f}" in lines[2]
    (folder / "gt/2.png").unlink()
    assert main([*arguments, "rain"]) == 2 and "has no partner of '2.png'" in capsys.readouterr().err


def test_too_small_images_are_rejected(folder):
    """This applies to the pairs and to the clean images to degrade."""
    for kind, shape in (("lq", (40, 31)), ("gt", (40, 31)), ("clean", (1, 40)), ("large", (32, 32))):
        (folder / kind).mkdir()
        cv2.imwrite(f"{kind}/a.png", np.full((*shape, 3), 90, np.uint8))
    with pytest.raises(UserError, match=r"lq/a\.png: is 40x31, expected at least 32 pixels a side"):
        compare_folders("lq", "gt", ["rain"], clean="large", count=1)
    with pytest.raises(UserError, match=r"clean/a\.png: is 1x40, expected at least 32 pixels a side"):
        compare_folders("large", "large", ["rain"], clean="clean", count=1)
    assert compare_folders("large", "large", ["rain"], count=1)[0].public == (99, 99, 99)


def test_pairs_of_different_sizes_are_rejected(folder):
    """This applies even if both are larger than the evaluated corner."""
    for kind, side in (("lq", 300), ("gt", 600)):
        (folder / kind).mkdir()
        cv2.imwrite(f"{kind}/a.png", np.full((side, side, 3), 90, np.uint8))
    with pytest.raises(UserError, match="--lq: lq: 'a.png' and its partner are of different sizes"):
        compare_folders("lq", "gt", ["rain"], count=1)
