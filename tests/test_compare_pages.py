"""Pages of studies from given values: tables, plots, and joining the parts of one study."""

from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from restormixer_arch import cli
from restormixer_arch.compare import results, study, study_page, study_plots


def example(points):
    """Return a study of two networks on two images; ``points`` maps minutes to the lead of the second one in dB."""
    common = {"manual_seed": 1, "iterations": 1, "operations": 1.0, "dataset": "d", "metric": "psnr"}
    rows = [
        study.Row(competitor=name, minutes=minutes, values={"a": 30 + lead, "b": 20 + lead}, **common)
        for minutes, lead_over in points.items()
        for name, lead in (("first", 0.0), ("second", lead_over))
    ]
    costs = {
        "arch": "x",
        "arguments": {},
        "lr": 1.0,
        "step_seconds": 1.0,
        "parameters": 1,
        "flops": 2e9,
        "latency": 0.1,
    }
    networks = [study.Network(name=name, **costs) for name in ("first", "second")]
    metrics = {"psnr": results.Metric(type="calculate_psnr")}
    inputs = {"d": {"psnr": 12.0}}
    return study.Study(name="s", machine={}, networks=networks, metrics=metrics, inputs=inputs, rows=rows)


def test_crossing_is_interpolated_on_a_logarithmic_time_scale():
    """From +1 at 6 minutes to -1 at 24, the zero on a log scale is at 12 minutes."""
    crossed = example({6: 1.0, 24: -1.0, 96: -3.0})
    assert study_page.crossings(crossed, ("d", "psnr")) == ["- second and first cross at about 12 minutes."]
    assert study_page.crossings(example({6: 1.0, 24: 2.0}), ("d", "psnr")) == []
    unsure = example({6: 1.0, 24: 0.5, 96: -1.0})
    unsure.rows[3].values["b"] -= 1.5  # at 24 minutes +0.5 on one image and -1 on the other, -0.25 on average
    at = 6 * 4 ** (1 / 1.25)  # between 6 and 24, although only the interval at 96 is below 0
    assert study_page.crossings(unsure, ("d", "psnr")) == [f"- second and first cross at about {at:.0f} minutes."]
    unsure.rows[5].values["b"] += 4  # at 96 minutes -1 and +3: the interval contains 0
    assert study_page.crossings(unsure, ("d", "psnr")) == []
    page = study_page.markdown(crossed)
    assert "| second | 26.00; +1.00 (+1.00 to +1.00) | 24.00; -1.00 (-1.00 to -1.00) |" in page
    assert "| input | 12.00 | 12.00 | 12.00 |" in page


def test_means_per_label_use_common_seeds_and_the_longest_common_budget():
    """Means are over images and the seeds that all networks have, for the longest budget shared by most networks."""
    labeled = example({6: 7.0, 24: 1.0})
    for row in labeled.rows[-2:]:
        labeled.rows.append(row.model_copy(update={"manual_seed": 2, "values": {"a": 33.0, "b": 25.0}}))
    labeled.rows.append(labeled.rows[-1].model_copy(update={"manual_seed": 3, "values": {"a": 0.0, "b": 0.0}}))
    names = {"a": "1_low_haze", "b": "2_low_haze"}
    for row in labeled.rows:
        row.values = {names[name]: value for name, value in row.values.items()} | {"3_rain": 9.0, "4": 50.0}
    labeled.rows.append(labeled.rows[0].model_copy(update={"minutes": 96}))  # only for the first network
    page = study_page.markdown(labeled)
    table = "Per label, after 24 minutes, seeds 1, 2:\n\n|  | first | second |\n| --- | --: | --: |\n"
    assert table + "| low_haze | 27.00 | 27.50 |\n| rain | 9.00 | 9.00 |\n\n" in page + "\n"
    assert "over the seeds by the variance of all" in page
    alone = study_page.markdown(example({6: 1.0}))
    assert "Per label" not in alone and "only over the photographs, since each network was trained with one" in alone


def test_pages_of_several_studies(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(example({6: 1.0, 24: -1.0}).model_dump_json(), encoding="utf-8")
    files = [str(tmp_path / f"{name}.json") for name in ("a", "b")]
    assert cli.main(["compare", "--pages", *files, "--out", str(tmp_path / "out")]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"a.md", "a.png", "b.md", "b.png", "studies.png"}
    assert set(capsys.readouterr().out.split()) == {str(tmp_path / "out" / name) for name in written}


@pytest.mark.parametrize(("second", "legends"), [("second", 1), ("third", 2)])
def test_each_row_of_curves_with_other_networks_has_its_legend(tmp_path, monkeypatch, second, legends):
    other = example({6: 1.0})
    other.networks[0].name, other.networks[1].name = "own", second
    for row, name in zip(other.rows, ("own", second), strict=True):
        row.competitor = name
    figures = []
    monkeypatch.setattr(study_plots, "_save", lambda figure, path: figures.append(figure))
    measure = ("d", "psnr")
    first = other if second == "second" else example({6: 1.0})
    study_plots.draw_curves([(first, measure), (other, measure)], tmp_path / "x.png")
    (figure,) = figures
    assert sum(panel.get_legend() is not None for panel in figure.axes) == legends
    names = "own" if legends == 1 else "first or own"
    assert f"difference from {names}, over" in figure.get_supxlabel()


@pytest.mark.parametrize("names", [["a/x", "b/x"], ["a/x", "b/studies"], ["a/study", "b/s"]])
def test_pages_with_the_same_name_are_rejected(tmp_path, capsys, names):
    files = [tmp_path / f"{name}.json" for name in names]
    for file in files:
        file.parent.mkdir()
        file.write_text(example({6: 1.0}).model_dump_json(), encoding="utf-8")
    assert cli.main(["compare", "--pages", *map(str, files), "--out", str(tmp_path / "out")]) == 2
    stem = files[1].stem
    wanted = f"basicsr: error: {files[1]}: another page would be named {stem!r} too; give the file another name\n"
    assert capsys.readouterr().err == wanted and not (tmp_path / "out").exists()
    # Alone, the file is accepted.
    assert cli.main(["compare", "--pages", str(files[1]), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "study.json: name: Field required, expected results of basicsr compare"),
        (b"\xff", "study.json: the file: Invalid JSON: expected value at line 1 column 1, expected results of basicsr"),
        (None, "study.json: cannot be read: No such file or directory"),
    ],
)
def test_invalid_study_file_is_reported_in_one_line(tmp_path, capsys, content, message):
    file = tmp_path / "study.json"
    if content is not None:
        file.write_bytes(content)
    assert cli.main(["compare", "--pages", str(file), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"basicsr: error: {tmp_path / message}") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.rows.clear(), "a study has at least one network and one row"),
        (lambda s: s.networks.pop(), "second, 6 minutes: not one of the networks"),
        (lambda s: s.inputs.clear(), "first, 6 minutes: no input of d by psnr"),
        (lambda s: s.rows[1].values.clear(), "second, 6 minutes: the images of d differ from those of earlier rows"),
        (lambda s: reverse(s.rows[1]), "second, 6 minutes: the images of d differ from those of earlier rows"),
        (
            lambda s: s.rows.append(s.rows[1].model_copy(update={"manual_seed": 2, "iterations": 3})),
            "second, 6 minutes: trained for different iterations with different seeds",
        ),
        (
            lambda s: s.context.update(first=use(1), second=use(1, sizes=(8, 32))),
            "the context of second has other crops or images than that of first",
        ),
    ],
)
def test_inconsistent_rows_are_reported_in_one_line(tmp_path, capsys, change, message):
    wrong = example({6: 1.0})
    change(wrong)
    file = tmp_path / "study.json"
    file.write_text(wrong.model_dump_json(), encoding="utf-8")
    assert cli.main(["compare", "--pages", str(file), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"basicsr: error: {file}: the file: Value error, {message}")


def test_difference_is_between_the_means_over_all_seeds():
    """Seed 2 raises the first network by 2 dB, its mean by 1 dB; the second, with seed 1 only, still leads by 1 dB."""
    seeds = example({6: 2.0})
    values = {name: value + 2 for name, value in seeds.rows[0].values.items()}
    seeds.rows.append(seeds.rows[0].model_copy(update={"manual_seed": 2, "values": values}))
    means = [seeds.mean(name, 6, ("d", "psnr")) for name in ("second", "first")]
    assert seeds.difference("second", 6, ("d", "psnr")).mean == means[0] - means[1] == 1


def test_intervals_without_seed_variance_are_explained():
    """Seeds with equal means but different values per image differ only by chance."""
    seeds = example({6: 1.0})
    seeds.rows.append(seeds.rows[0].model_copy(update={"manual_seed": 2, "values": {"a": 31.0, "b": 19.0}}))
    text = "The seeds differ by no more than chance here; the intervals are only over the photographs."
    assert text in study_page.markdown(seeds)
    seeds.rows[-1].values = {"a": 32.0, "b": 22.0}
    assert text not in study_page.markdown(seeds)


def test_gain_of_larger_crops():
    """One network gains 1 and 3 dB on two photographs; the other gains 4 dB more on the second photograph."""
    small, other = use(1.0), use(1.0)
    other.psnr[16]["2_rain"] += 4
    half = stats.t.ppf(0.975, 1)
    found = small.gain()
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - half, 2 + half))
    assert small.gain("rain") == found and small.labels == ["rain"]
    more = other.gain(over=small)
    assert (more.mean, more.low) == pytest.approx((2, 2 - 2 * half))
    lead_over = other.lead_over(small)  # 0 and 4 dB in the larger crop
    assert (lead_over.mean, lead_over.low) == pytest.approx((2, 2 - 2 * half))


def test_images_of_one_photograph_are_averaged():
    """Two photographs with two labels each: the interval is over two values, not four."""
    both = example({6: 0.0})
    both.rows[0].values = {f"{photo}_{label}": 30.0 for photo in "ab" for label in ("rain", "low_haze")}
    both.rows[1].values = {"a_rain": 31.0, "a_low_haze": 33.0, "b_rain": 29.0, "b_low_haze": 31.0}
    found = both.difference("second", 6, ("d", "psnr"))
    assert found.mean == 1.0 and found.high == pytest.approx(1 + stats.t.ppf(0.975, 1))


def use(gain, sizes=(8, 16)):
    """Return a context in which the larger crop gains ``gain`` dB for one image and 2 dB more for the other."""
    values = {"1_rain": 20.0, "2_rain": 10.0}, {"1_rain": 20.0 + gain, "2_rain": 12.0 + gain}
    psnr = dict(zip(sizes, values, strict=True))
    return study.ContextUse(psnr=psnr, radius={50: 1, 90: 2, 99: 3})


def write_part(folder, part, field=None):
    """Write the folder of a part of a study, with ``field`` as receptive field of each network, and return its path."""
    (folder / "context").mkdir(parents=True)
    (folder / "study.json").write_text(part.model_dump_json(), encoding="utf-8")
    for name in part.context:
        study_plots.write_field(field, folder / "context" / f"{name}.png")
    return str(folder)


def parts_of_a_study(tmp_path):
    """Return a study and its parts: both networks at 6 minutes; the second at 24, other latency; the first at 24."""
    whole = example({6: 1.0, 24: -1.0})
    short, first, second = (whole.model_copy(deep=True) for _ in range(3))
    short.rows, first.rows, second.rows = whole.rows[:2], whole.rows[2:3], whole.rows[3:]
    first.networks, second.networks = whole.networks[:1], [whole.networks[1].model_copy(update={"latency": 9.0})]
    short.context, first.context, second.context = {"second": use(9)}, {"first": use(1)}, {"second": use(2)}
    fields = [np.full((5, 5), value) for value in (1.0, 2.0, 3.0)]
    for field in fields:
        field[0, 0] /= 10
    folders = [tmp_path / name for name in ("short", "first", "second")]
    return whole, [write_part(*each) for each in zip(folders, (short, second, first), fields, strict=True)]


def test_joining_the_parts_gives_the_complete_study(tmp_path, capsys):
    whole, folders = parts_of_a_study(tmp_path)
    out = tmp_path / "out"
    assert cli.main(["compare", "--join", *folders, "--out", str(out)]) == 0
    joined = study.Study.model_validate_json((out / "study.json").read_text(encoding="utf-8"))
    assert list(joined.context) == ["first", "second"]
    assert [joined.context[name].psnr[16]["1_rain"] for name in joined.context] == [21, 22]  # after 24 minutes
    assert joined.networks == [n.model_copy(update={"latency": None}) for n in whole.networks]
    assert joined.minutes == [6, 24]
    for network in whole.networks:
        for minutes in whole.minutes:
            wanted = whole.rows_by_seed(network.name, minutes, ("d", "psnr"))
            assert joined.rows_by_seed(network.name, minutes, ("d", "psnr")) == wanted
    written = {str(path.relative_to(out)) for path in out.rglob("*.*")}
    assert written == {
        "study.json", "study.md", "study.png", "context.png", "context/first.png", "context/second.png"
    }  # fmt: skip
    assert len(capsys.readouterr().out.split()) == 4
    page = (out / "study.md").read_text(encoding="utf-8")
    assert (
        "| first | 30" not in page
        and "latency" not in page
        and "latency" in study_page.markdown(whole)
        and "25.00 | 25.00" in page
        and "-1.00 (-1.00 to -1.00)" in page
    )
    assert cli.main(["compare", "--join", *folders, "--out", str(out)]) == 2  # nothing is overwritten
    assert f"--out: {str(out / 'study.json')!r} already exists" in capsys.readouterr().err


def reverse(row):
    row.values = dict(reversed(row.values.items()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.rows.append(example({6: 1.0}).rows[1]), "second, 6 minutes, manual_seed 1 is already in "),
        (lambda part: setattr(part, "name", "t"), "differs from {first} in its name: they are not parts of one study"),
        (lambda part: part.networks[0].arguments.update(width=2), "differs from {first} in arguments of second:"),
        (lambda part: part.inputs["d"].update(psnr=12.02), "differs from {first} in the inputs of d:"),
        (lambda part: part.rows[0].values.update(c=1.0), "differs from {first} in the pictures:"),
        (lambda part: reverse(part.rows[0]), "differs from {first} in the pictures:"),
        (
            lambda part: part.rows.append(
                part.rows[0].model_copy(update={"minutes": 6, "manual_seed": 2, "iterations": 3})
            ),
            "differs from {first} in the iterations of second, 6 minutes:",
        ),
        (lambda part: part.metrics.update(ssim=part.metrics["psnr"]), "differs from {first} in its metrics:"),
        (
            lambda part: part.context.update(second=use(2, sizes=(8, 32))),
            "the context of second has other crops or images than that of first",
        ),
    ],
)
def test_incompatible_part_is_reported_in_one_line(tmp_path, capsys, change, message):
    _, folders = parts_of_a_study(tmp_path)
    file = tmp_path / "first" / "study.json"
    part = study.Study.model_validate_json(file.read_text(encoding="utf-8"))
    change(part)
    file.write_text(part.model_dump_json(), encoding="utf-8")
    assert cli.main(["compare", "--join", *folders, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    message = message.format(first=tmp_path / "short" / "study.json")
    assert line.startswith(f"basicsr: error: {file}: {message}") and not (tmp_path / "out").exists()


def test_page_shows_receptive_fields_next_to_the_study(tmp_path, capsys):
    _, folders = parts_of_a_study(tmp_path)
    assert cli.main(["compare", "--pages", f"{folders[1]}/study.json", "--out", str(tmp_path / "out")]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"s.md", "s.png", "s_context.png"}
    assert set(capsys.readouterr().out.split()) == {str(tmp_path / "out" / name) for name in written}


def test_missing_receptive_field_is_reported_in_one_line(tmp_path, capsys):
    _, folders = parts_of_a_study(tmp_path)
    field = tmp_path / "first" / "context" / "second.png"
    field.unlink()
    assert cli.main(["compare", "--join", *folders, "--out", str(tmp_path / "out")]) == 2
    wanted = f"basicsr: error: {field}: the receptive field cannot be read: No such file or directory\n"
    assert capsys.readouterr().err == wanted


def test_receptive_field_is_written_on_a_logarithmic_scale(tmp_path):
    """White is the largest gradient outside the center, which is black; a tenth of it is one of five decades darker."""
    field = np.zeros((3, 3))
    field[1] = 2.0, 50.0, 0.2
    field[0] = 2e-5, 2e-9, 0.0
    study_plots.write_field(field, tmp_path / "f.png")
    with Image.open(tmp_path / "f.png") as image:
        assert np.asarray(image).tolist() == [[0, 0, 0], [255, 0, 204], [0, 0, 0]]


def test_first_network_has_no_error_bars_even_if_its_seeds_differ():
    seeds = example({6: 1.0})
    for lead, row in zip((0.3, 0.5), list(seeds.rows), strict=True):
        values = {name: value + lead * (1 if name == "a" else 2) for name, value in row.values.items()}
        seeds.rows.append(row.model_copy(update={"manual_seed": 2, "values": values}))
    for name, bars in (("first", False), ("second", True)):
        panels = MagicMock(), MagicMock()
        study_plots._draw_network(seeds, name, ("d", "psnr"), panels, "o")
        assert (panels[0].errorbar.call_args.kwargs["yerr"] > 0).all() == bars
