"""The tables of results, compared with manually computed values."""

from __future__ import annotations

import json
import math

from restormixer_arch.training.results import Row, comma_separated, json_text, markdown, with_average, write_tables

ROWS = [
    Row("Rain100H", 100, {"psnr_y": (13.5, 33.0), "ssim_y": (0.4, 0.93)}),
    Row("Test2800", 2800, {"psnr_y": (24.5, 34.0), "ssim_y": (0.8, 0.95)}),
]


def test_average_weights_all_datasets_equally():
    average = with_average(ROWS)[-1]
    assert average == Row("average", 2900, {"psnr_y": (19.0, 33.5), "ssim_y": (0.6000000000000001, 0.94)})
    assert with_average(ROWS[:1]) == ROWS[:1]


def test_markdown():
    assert markdown(with_average(ROWS)) == (
        "| set | images | psnr_y | ssim_y |\n"
        "| --- | --: | --: | --: |\n"
        "| Rain100H | 100 | 13.50 -> 33.00 | 0.4000 -> 0.9300 |\n"
        "| Test2800 | 2800 | 24.50 -> 34.00 | 0.8000 -> 0.9500 |\n"
        "| average | 2900 | 19.00 -> 33.50 | 0.6000 -> 0.9400 |\n"
    )


def test_tables_without_input_values_and_with_a_missing_metric():
    rows = with_average([Row("a", 1, {"psnr": (None, 30.0), "niqe": (None, 4.0)}), Row("b", 2, {"psnr": (None, 31.0)})])
    assert comma_separated(rows) == "set,images,psnr,niqe\na,1,30.0,4.0\nb,2,31.0,\naverage,3,30.5,\n"
    assert markdown(rows).splitlines()[3] == "| b | 2 | 31.00 |  |"


def test_csv_has_input_values_next_to_the_restored_ones():
    assert (
        comma_separated(ROWS[:1])
        == "set,images,psnr_y,psnr_y_input,ssim_y,ssim_y_input\nRain100H,100,33.0,13.5,0.93,0.4\n"
    )


def test_average_of_an_infinite_value_is_infinite(tmp_path):
    rows = with_average([Row("same", 1, {"psnr": (20.0, math.inf)}), Row("other", 1, {"psnr": (20.0, 30.0)})])
    assert rows[-1].values["psnr"] == (20.0, math.inf)
    assert json.loads(json_text(rows))["average"] == {"images": 2, "psnr": {"restored": "inf", "input": 20.0}}
    assert "20.00 -> inf" in markdown(rows) and "inf,20.0" in comma_separated(rows)


def test_results_are_written_as_markdown_csv_and_json(tmp_path):
    assert write_tables(tmp_path, ROWS) == tmp_path / "results.md"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json", "results.md"]
    assert json.loads((tmp_path / "results.json").read_text())["Test2800"]["ssim_y"] == {"restored": 0.95, "input": 0.8}
