"""Tables of a comparison against expected text."""

import csv
import math

import pytest
from scipy import stats

from restormixer_arch.compare import results, tables
from restormixer_arch.compare.run import combine_images

MACHINE = {"processor": "Abacus", "threads": 2, "versions": {"torch": "2.9.0"}}
METRICS = {
    "psnr": results.Metric(type="calculate_psnr"),
    "niqe": results.Metric(type="calculate_niqe", better="lower"),
    "ssim": results.Metric(type="calculate_ssim"),
}
INPUTS = [(20.0, 9.0, 0.5), (22.0, 9.5, 0.7)]  # PSNR, NIQE, SSIM of two images
RESTORED = {"ours": [(30.0, 5.0, 0.9), (32.0, 5.0, 0.8)], "a|b": [(29.0, 4.0, 0.9), (33.0, 5.0, 0.8)]}
EXPECTED = r"""# trial

Means over rain (2 pictures). Each network without given weights was trained for 600 iterations. The best value of a column is bold.

|  | psnr (dB) | niqe | ssim | Parameters | GMAC | thop's GMAC | Latency | Peak memory | Iterations | Training |
| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |
| input | 21.00 | 9.25 | 0.6000 |  |  |  |  |  |  |  |
| ours | **31.00** | 5.00 | **0.8500** | **0.500 M** | 2.00 | 1.50 | **25.0 ms** | 100 MiB | 600 | 1.5 min |
| a\|b | **31.00** | **4.50** | **0.8500** | 1.250 M | **1.00** |  | 1.20 s |  |  |  |

GMAC, latency (median of 7 runs in turn) and peak memory of the process are those of one 64x64 picture on Abacus, 2 threads, torch 2.9.0. GMAC counts scans and attention, with BatchNorm folded; thop counts only some types of layers, unfolded.
Lower is better: niqe.

Difference from ours on the same images: mean and 95% interval over the photographs (Student's t).

|  | psnr (dB) | niqe | ssim |
| --- | --: | --: | --: |
| a\|b | 0.00 (−12.71 to +12.71) | −0.50 (−6.85 to +5.85) | 0.0000 (0.0000 to 0.0000) |
"""  # noqa: E501 - table rows cannot be wrapped; Student's t for one degree of freedom is 12.7062


def rows(values, **places):
    named = [dict(zip(METRICS, picture, strict=True)) for picture in values]
    return {"rain": [{"name": f"{i}", "values": found, **places} for i, found in enumerate(named)]}


def competitor(name, parameters, flops, latency, **more):
    latency = {"median": latency, "low": latency, "high": latency, "runs": 7}
    return {"name": name, "arch": name.upper(), "parameters": parameters, "flops": flops, "latency": latency, **more}


def comparison(restored=RESTORED):
    training = {"iterations": 600, "batch_size": 4, "seconds": 90}
    ours = competitor("ours", 500_000, 4e9, 0.025, peak_bytes=100 * 2**20, thop_macs=1.5e9, training=training)
    data = combine_images(rows(INPUTS, input="i", truth=None), {n: rows(v, restored="r") for n, v in restored.items()})
    both = [ours, competitor("a|b", 1_250_000, 2e9, 1.2)]
    return results.Comparison(
        name="trial", machine=MACHINE, size=64, budget="600 iterations", metrics=METRICS,
        competitors=[one for one in both if one["name"] in restored], datasets=data,
    )  # fmt: skip


def test_markdown_matches_the_expected_text():
    assert tables.markdown(comparison()) == EXPECTED


def test_images_of_one_photograph_are_averaged():
    """Two photographs with two labels each and leads of 1, 3 and -1, 1: the interval is that of the means 2 and 0."""
    names = [f"{photo}_{label}" for photo in "ab" for label in ("rain", "low_haze")]

    def named(values):
        return {"x": [{"name": n, "values": {"psnr": v}, "restored": "r"} for n, v in zip(names, values, strict=True)]}

    inputs = {"x": [{"name": n, "values": {"psnr": 20.0}, "input": "i", "truth": None} for n in names]}
    found = combine_images(inputs, {"ours": named([30.0] * 4), "b": named([31.0, 33.0, 29.0, 31.0])})
    difference = found[0].difference["psnr"]["b"]
    assert difference.mean == 1.0 and difference.high == pytest.approx(1 + stats.t.ppf(0.975, 1))


def test_single_competitor_is_not_bold_and_has_no_difference():
    text = tables.markdown(comparison({"ours": RESTORED["ours"]}))
    assert "**" not in text and "Difference" not in text and "| ours | 31.00 | 5.00 |" in text


def test_nan_is_not_the_best_value_but_infinity_is():
    restored = {"ours": [(math.nan, 5.0, 0.9)] * 2, "a|b": [(29.0, 4.0, math.inf)] * 2}
    text = tables.markdown(comparison(restored))
    assert "| ours | not a number | 5.00 | 0.9000 |" in text and r"| a\|b | 29.00 | **4.00** | **∞** |" in text


def test_markdown_and_csv_files(tmp_path):
    places = tables.write(comparison(), tmp_path)
    assert [path.name for path in places] == ["table.md", "table.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.csv", "table.md"]
    assert places[0].read_text(encoding="utf-8") == EXPECTED
    with places[1].open(newline="", encoding="utf-8") as file:
        before, ours, other = csv.DictReader(file)
    assert {key: value for key, value in before.items() if value} == {
        "competitor": "input", "rain psnr": "21.0", "rain niqe": "9.25", "rain ssim": "0.6",
    }  # fmt: skip
    assert (ours["arch"], ours["macs"], ours["thop_macs"], ours["training_seconds"]) == ("OURS", "2000000000.0",
        "1500000000.0", "90.0")  # fmt: skip
    assert ours["rain psnr difference"] == ours["rain psnr low"] == other["peak_bytes"] == ""
    assert (other["rain niqe"], other["rain niqe difference"], other["latency_seconds"]) == ("4.5", "-0.5", "1.2")
    assert float(other["rain psnr high"]) == pytest.approx(12.7062, abs=1e-4)


def test_results_round_trip_through_json(tmp_path):
    restored = {"ours": [(math.inf, 5.0, 0.9), (32.0, 5.0, 0.8)], "a|b": RESTORED["a|b"]}
    written = comparison(restored)
    assert results.write(written, tmp_path) == tmp_path / "results.json"
    assert results.read(tmp_path) == written
    assert results.read(tmp_path).datasets[0].mean("psnr", "ours") == math.inf
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
