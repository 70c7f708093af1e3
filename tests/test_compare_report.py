"""``report.html``: its values, its choice of images, and that it loads no external resources."""

import base64
import io
import json
import math
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from restormixer_arch import cli
from restormixer_arch.compare import results
from restormixer_arch.compare.columns import show_difference
from restormixer_arch.compare.report import page as report
from restormixer_arch.compare.results import Difference, Metric

pytest.importorskip("plotly", reason="plotly is not installed")
from report_cases import HOSTILE, hand_made, picture, written

from restormixer_arch.compare import columns as report_table
from restormixer_arch.compare.report import pictures as report_pictures
from restormixer_arch.compare.report import plots as report_plots

PSNR = Metric(type="calculate_psnr")
NIQE = Metric(type="calculate_niqe", better="lower")


def column(comparison, title):
    return next(column for column in report_table.columns(comparison) if column.title == title)


def decoded(uri):
    head, content = uri.split(",", 1)
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_table_contains_means_and_differences():
    psnr, ssim = column(hand_made(), "rain psnr (dB)"), column(hand_made(), "rain ssim")
    assert [cell.text for cell in psnr.cells] == ["20.00", "31.00", "30.00", "31.50"]  # input, then means of 3 images
    assert [cell.value for cell in psnr.cells] == [20.0, 31.0, 30.0, 31.5]
    assert [cell.best for cell in psnr.cells] == [False, False, False, True]
    assert [cell.note for cell in psnr.cells] == ["", "", "−1.00 (−3.00 to +1.00)", "+0.50"]
    assert [cell.text for cell in ssim.cells] == ["0.5000", "0.9000", "0.9000", "0.8000"]
    assert [cell.best for cell in ssim.cells] == [False, True, True, False]  # all whose text equals that of the best


def test_costs_have_units_and_lower_is_better():
    texts = {c.title: [cell.text for cell in c.cells] for c in report_table.columns(hand_made())}
    assert texts["Parameters"] == ["", "1.500 M", "0.250 M", "12.000 M"]
    assert texts["GMAC"] == ["", "2.00", "0.50", "10.00"]
    assert texts["thop's GMAC"] == ["", "1.75", "", ""]
    assert texts["Latency"] == ["", "100.0 ms", "50.0 ms", "1.50 s"]
    assert texts["Peak memory"] == ["", "300 MiB", "200 MiB", ""]
    assert texts["Training"] == ["", "2.0 min", "", ""]
    best = [cell.best for cell in column(hand_made(), "Latency").cells]
    assert best == [False, False, True, False]
    assert [cell.note for cell in column(hand_made(), "Latency").cells][1] == "90.0 ms to 120.0 ms"
    assert texts["Iterations"] == ["", "600", "", ""]
    assert [cell.note for cell in column(hand_made(), "Iterations").cells] == ["", "4 crops", "", ""]
    assert not any(cell.best for cell in column(hand_made(), "thop's GMAC").cells)


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        (PSNR, math.inf, "∞"),
        (PSNR, -math.inf, "−∞"),
        (PSNR, math.nan, "not a number"),
        (PSNR, -1.005, "−1.00"),
        (Metric(type="calculate_ssim"), 0.91236, "0.9124"),
    ],
)
def test_metric_values_are_formatted_as_text(metric, value, text):
    assert report_table.show_metric(metric, value) == text


def test_difference_without_an_interval_shows_only_the_mean():
    show = partial(report_table.show_metric, PSNR)
    assert show_difference(Difference(mean=0.25, low=None, high=None), show) == "+0.25"
    assert show_difference(Difference(mean=0.0, low=-0.5, high=0.5), show) == "0.00 (−0.50 to +0.50)"


def compared(metric, rows):
    """Return a comparison with one dataset; each row has an image's values, those of the first competitor first."""
    made = hand_made()
    names = [competitor.name for competitor in made.competitors]
    dataset = made.datasets[0].model_copy(
        update={"pictures": [picture(str(i), {"m": dict(zip(names, row, strict=True))}) for i, row in enumerate(rows)]}
    )
    return made.model_copy(update={"metrics": {"m": metric}, "datasets": [dataset]}), dataset


@pytest.mark.parametrize(("metric", "order"), [(PSNR, "2013"), (NIQE, "3102")])
def test_images_are_ordered_by_the_lead_over_the_best_other_competitor(metric, order):
    # leads if higher is better: 0, 2, -4, inf; if lower is better, over the lowest other value: -1, -3, 1, -inf
    rows = [(30, 30, 29), (32, 30, 29), (25, 26, 29), (math.inf, 10, 20)]
    comparison, dataset = compared(metric, rows)
    worst, best = report_pictures.extremes(comparison, dataset)
    assert "".join(p.name for p in worst + best[::-1]) == order
    assert len(worst) == len(best) == 2


def test_images_with_nan_values_are_the_worst_or_the_best():
    """The worst if the first competitor failed, the best if all others did, regardless of other images' leads."""
    rows = [(20, 30, 29), (math.nan, 30, 29), (21, math.nan, math.nan), (22, 30, 29)]
    comparison, dataset = compared(PSNR, rows)
    worst, best = report_pictures.extremes(comparison, dataset)
    assert "".join(p.name for p in worst + best[::-1]) == "1032"


def test_at_most_six_worst_and_best_images_are_chosen_and_a_single_one_is_worst():
    comparison, dataset = compared(PSNR, [(30 + i, 30, 30) for i in range(20)])
    worst, best = report_pictures.extremes(comparison, dataset)
    assert [p.name for p in worst] == ["0", "1", "2", "3", "4", "5"]
    assert [p.name for p in best] == ["19", "18", "17", "16", "15", "14"]
    comparison, dataset = compared(PSNR, [(30, 30, 30)])
    assert [len(part) for part in report_pictures.extremes(comparison, dataset)] == [1, 0]


@pytest.mark.parametrize(
    ("row", "lead", "rival"),
    [
        ((31.0, math.nan, 29.0), 2.0, 1),  # a NaN of another competitor is ignored
        ((math.inf, math.inf, 29.0), 0.0, 0),
        ((math.nan, 30.0, 29.0), math.nan, 0),
    ],
)
def test_lead_with_values_that_are_not_finite(row, lead, rival):
    comparison, dataset = compared(PSNR, [row])
    found, name, value = report_pictures.lead_of(comparison, dataset.pictures[0])
    assert found == pytest.approx(lead, nan_ok=True)
    assert name == comparison.competitors[1 + rival].name and value == row[1 + rival]


def test_single_competitor_is_compared_with_the_input(tmp_path):
    made = written(hand_made(), tmp_path)
    alone = made.model_copy(update={"competitors": made.competitors[:1]})
    lead, rival, value = report_pictures.lead_of(alone, made.datasets[0].pictures[0])
    assert (lead, rival, value) == (10.0, "input", 20.0)
    assert "over the input" in " ".join(report.render(alone, tmp_path).split())


def test_images_are_embedded_losslessly_and_error_maps_use_the_color_scale(tmp_path):
    made = written(hand_made(), tmp_path)
    first = made.datasets[0].pictures[0]
    shown = report_pictures.read(made, first, tmp_path)
    assert [tile.name for tile in shown.tiles] == ["input", *(c.name for c in made.competitors), "truth"]
    for tile, place in zip(shown.tiles, [first.input, *first.restored.values(), first.truth], strict=True):
        np.testing.assert_array_equal(decoded(tile.source), np.asarray(Image.open(tmp_path / place)))
    ours = decoded(shown.tiles[1].error)  # only the right half has errors; no other competitor has any
    colors = [tuple(bytes.fromhex(color[1:])) for color in report_pictures.error_colors(2)]
    assert set(map(tuple, ours[:, :24].reshape(-1, 3))) == {colors[0]}
    assert set(map(tuple, ours[:, 24:].reshape(-1, 3))) == {colors[1]}
    assert shown.brightest == pytest.approx(40 / 255) and shown.tiles[-1].error is None
    assert shown.tiles[1].values == [("psnr", "30.00"), ("ssim", "0.9000")]
    assert shown.corner == (0.5, 0.0)  # the first box inside the half in which the competitors differ


def test_large_images_are_downsampled(tmp_path, monkeypatch):
    made = written(hand_made(), tmp_path)
    monkeypatch.setattr(report_pictures, "SIDE", 12)
    shown = report_pictures.read(made, made.datasets[0].pictures[0], tmp_path)
    assert shown.size == (12, 8) and shown.scale == 0.25
    truth = np.asarray(Image.open(tmp_path / made.datasets[0].pictures[0].truth), dtype=float)
    small = decoded(shown.tiles[-1].source)
    np.testing.assert_allclose(small, truth.reshape(8, 4, 12, 4, 3).mean(axis=(1, 3)), atol=1)  # Pillow rounds twice


def test_images_are_omitted_if_the_page_is_full(tmp_path, monkeypatch):
    made = written(hand_made(), tmp_path)
    whole = report_pictures.galleries(made, tmp_path)
    assert [(len(g.worst), len(g.best)) for g in whole] == [(2, 1), (1, 0)]
    monkeypatch.setattr(report_pictures, "CHARACTERS", 1)  # one image is always shown
    assert [(len(g.worst), len(g.best)) for g in report_pictures.galleries(made, tmp_path)] == [(1, 0), (0, 0)]
    assert "1 of 3 pictures are in this page" in report.render(made, tmp_path)


def test_no_error_maps_without_ground_truth(tmp_path):
    made = written(hand_made(), tmp_path)
    shown = report_pictures.read(made, made.datasets[1].pictures[0], tmp_path)
    assert shown.brightest is None and len(shown.tiles) == 4
    assert all(tile.error is None for tile in shown.tiles)


class Loads(HTMLParser):
    """Collects the addresses in a page and counts its scripts."""

    def __init__(self):
        super().__init__()
        self.places, self.scripts, self.titles = [], 0, []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        for name, value in attributes:
            if name in ("src", "srcset", "href", "action", "poster", "data"):
                self.places.append(value)


def test_page_loads_no_external_resources(tmp_path):
    place = report.write_report(written(hand_made(), tmp_path), tmp_path)
    text = place.read_text(encoding="utf-8")
    page = Loads()
    page.feed(text.replace(report_plots.library(), ""))
    assert len(page.places) > 20
    assert all(place.startswith(("#", "data:")) for place in page.places), page.places
    assert "@import" not in text.split("<body>")[0] and "url(" not in text.split("<body>")[0]
    assert "default-src 'none'" in text
    assert not list(tmp_path.glob(".report*"))


def test_names_are_escaped_in_html(tmp_path):
    made = written(hand_made(), tmp_path)
    text = report.render(made, tmp_path).replace(report_plots.library(), "")
    assert HOSTILE not in text
    assert "&lt;script&gt;" in text
    page, tame = Loads(), Loads()
    page.feed(text)
    tame.feed(report.render(written(hand_made("tame"), tmp_path), tmp_path).replace(report_plots.library(), ""))
    assert page.scripts == tame.scripts


def test_plots_contain_means_latencies_and_parameters():
    made = hand_made()
    latency, parameters = report_plots.plots(made, made.datasets[0])
    x = [json.loads(found) for found in re.findall(r'"x":(\[[^\]]*\])', latency)]
    y = [json.loads(found) for found in re.findall(r'"y":(\[[^\]]*\])', latency)]
    assert (x, y) == ([[100.0], [50.0], [1500.0]], [[31.0], [30.0], [31.5]])
    assert re.findall(r'"x":\[([^\]]*)\]', parameters) == ["1.5", "0.25", "12.0"]
    assert re.findall(r'"arrayminus":\[([\d.]+)', latency)[0].startswith("10")  # 100 ms, lower quartile 90 ms
    assert re.findall(r'"textposition":"(\w+) center"', latency) == ["top", "bottom", "top"]
    assert '"type":"log"' in latency and "50 100 200 500 1000" in " ".join(re.findall(r'"(\d+)"', latency))


def test_plot_omits_values_that_are_not_finite():
    made, _ = compared(PSNR, [(math.nan, 30, math.inf)])
    assert re.findall(r'"y":\[([^\]]*)\]', report_plots.plots(made, made.datasets[0])[0]) == ["30.0"]
    made, _ = compared(PSNR, [(math.nan, math.nan, math.inf)])
    assert '"y":[' not in report_plots.plots(made, made.datasets[0])[0]


def test_plot_axis_is_linear_if_the_values_are_close():
    made = hand_made()
    close = [c.model_copy(update={"parameters": 500_000 + 1000 * i}) for i, c in enumerate(made.competitors)]
    latency, parameters = report_plots.plots(made.model_copy(update={"competitors": close}), made.datasets[0])
    assert '"type":"log"' in latency and '"type":"log"' not in parameters


def test_report_command_recreates_the_same_page_from_results(tmp_path, capsys):
    made = written(hand_made(), tmp_path)
    text = report.write_report(made, tmp_path).read_text(encoding="utf-8")
    results.write(made, tmp_path)
    (tmp_path / report.FILE).unlink()
    assert cli.main(["compare", "--report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / report.FILE}\n"
    ids = r'"?[0-9a-f]{8}-[0-9a-f-]{27}"?'  # plotly's random names of plots
    assert re.sub(ids, "", (tmp_path / report.FILE).read_text(encoding="utf-8")) == re.sub(ids, "", text)


def fails(folder, capsys):
    assert cli.main(["compare", "--report", str(folder)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_user_errors_are_reported_in_one_line(tmp_path, capsys, monkeypatch):
    assert "results.json: cannot be read: No such file" in fails(tmp_path, capsys)
    (tmp_path / "results.json").write_text("{}")
    assert "results.json: name: Field required, expected results of basicsr compare" in fails(tmp_path, capsys)
    made = written(hand_made(), tmp_path)
    results.write(made, tmp_path)
    place = tmp_path / made.datasets[0].pictures[0].truth
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(place)
    assert "has 48 x 32 pixels, expected 4 x 5 pixels as the other pictures of 'a'" in fails(tmp_path, capsys)
    place.write_bytes(b"no picture")
    assert f"{place}: this picture of the comparison cannot be read" in fails(tmp_path, capsys)
    monkeypatch.setattr(report, "find_spec", lambda name: None if name == "plotly" else True)
    assert "needs plotly, which is not installed. Run: pip install jinja2 plotly" in fails(tmp_path, capsys)
    assert not (tmp_path / report.FILE).exists()


def test_report_that_cannot_be_written_is_a_user_error(tmp_path, capsys):
    results.write(written(hand_made(), tmp_path), tmp_path)
    (tmp_path / report.FILE).mkdir()
    assert "report.html: cannot be written" in fails(tmp_path, capsys)


def test_plot_names_are_placed_away_from_the_nearest_point():
    assert report_plots._sides([(0.0, 1.0), (0.1, 0.9), (5.0, 3.0), (5.0, 3.2)]) == ["top", "bottom", "bottom", "top"]
    assert report_plots._sides([(1.0, 30.0)]) == ["top"]
    assert report_plots._sides([(1.0, 30.0), (1.0, 30.0)]) == ["top", "top"]
    assert report_plots._sides([]) == []
