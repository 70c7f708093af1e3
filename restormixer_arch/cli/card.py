"""``basicsr card``: measure the installed weights on the public test sets, next to published numbers."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from restormixer_arch.cli.parsing import Parser, add_output, check_new_file
from restormixer_arch.config.check import NoDatasetFound, read_request
from restormixer_arch.errors import UserError, did_you_mean
from restormixer_arch.inference.installed import WEIGHTS_FOLDER, installed_tasks
from restormixer_arch.output import note, print_result, write_text_atomically

PUBLISHED = WEIGHTS_FOLDER / "published.tsv"
OURS = "RestorMixer-S"
TRAINED_ON = "synthetic degradations of 147 free photographs"


@dataclass(frozen=True)
class Measurement:
    """A test of the weights of one task: its option file, overrides of that file, and the metrics to report."""

    task: str
    option_file: str
    overrides: tuple[str, ...] = ()
    psnr: str = "psnr_y"
    ssim: str = "ssim_y"


def _sr(scale: int) -> Measurement:
    weights = f"restormixer_arch/weights/restormixer_s_sr_x{scale}.safetensors"
    overrides = (
        f"name=public_sr_x{scale}",
        f"scale={scale}",
        f"network_g:upscale={scale}",
        f"path:pretrain_network_g={weights}",
        f"val:metrics:psnr_y:crop_border={scale}",
        f"val:metrics:ssim_y:crop_border={scale}",
    )
    return Measurement(f"sr_x{scale}", "options/test_public_sr.yml", overrides)


def _others(task: str, label: str) -> Measurement:
    """Return the measurement on test pairs generated with other libraries, see ``basicsr degrade others``."""
    weights = f"restormixer_arch/weights/restormixer_s_{task}.safetensors"
    overrides = [f"name=others_{task}", f"path:pretrain_network_g={weights}"]
    for number, library in enumerate(("albumentations", "kornia"), start=1):
        name, at = f"{library}_{label}", f"datasets:test_{number}"
        overrides += [f"{at}:name={name}"]
        overrides += [f"{at}:dataroot_{kind}=datasets/others/{name}/{kind}.lmdb" for kind in ("gt", "lq")]
    return Measurement(task, "options/test_public_others.yml", tuple(overrides), psnr="psnr", ssim="ssim")


MEASUREMENTS = (
    Measurement("derain", "options/test_public_derain.yml"),
    *(_sr(scale) for scale in (2, 3, 4)),
    Measurement("denoise", "options/test_public_denoise.yml", psnr="psnr", ssim="ssim"),
    _others("derain", "rain"),
    _others("desnow", "snow"),
    _others("dehaze", "haze"),
    _others("deblur", "blur"),
    _others("deblur", "defocus"),
    *(_others("mixed", label) for label in ("rain", "snow", "haze")),
)


@dataclass
class TaskTable:
    """Results of one task: dataset -> (PSNR, SSIM) of the input (None if not measured) and of the installed weights."""

    measurement: Measurement
    inputs: dict[str, tuple[float, float] | None] = field(default_factory=dict)
    ours: dict[str, tuple[float, float]] = field(default_factory=dict)


def run(arguments: list[str]) -> int:
    """Measure and write the tables. Returns the exit code."""
    parser = Parser("card", "Measure the installed weights on public test sets, and list published numbers.")
    tasks = list(dict.fromkeys(measurement.task for measurement in MEASUREMENTS))
    parser.add_argument(
        "--tasks", nargs="+", default=tasks, metavar="TASK", help=f"tasks to measure (default: all): {', '.join(tasks)}"
    )
    add_output(parser, metavar="FILE", help="also write the tables to a Markdown file")
    args = parser.parse_args(arguments)
    for task in args.tasks:
        if task not in tasks:
            raise UserError(f"--tasks: unknown task {task!r}, expected {', '.join(tasks)}.{did_you_mean(task, tasks)}")
    if args.out:
        check_new_file("-o", args.out)
    published = read_published(PUBLISHED)
    texts = []
    for task in [task for task in args.tasks if task not in installed_tasks()]:
        note(f"{task}: no weights are installed")
    for measurement in MEASUREMENTS:
        if measurement.task not in args.tasks or measurement.task not in installed_tasks():
            continue
        try:
            texts.append("\n".join(task_lines(measure(measurement), published)) + "\n")
        except NoDatasetFound as error:
            note(str(error))
            continue
        print_result(texts[-1])
        if args.out:  # after each task, so that nothing is lost if a later one fails
            write_text_atomically(args.out, "\n".join(texts))
    if not texts:
        raise UserError(
            f"nothing to measure for {', '.join(args.tasks)}: no weights are installed, or no test set was found"
        )
    return 0


def measure(measurement: Measurement) -> TaskTable:
    """Test the installed weights with an option file; missing datasets are skipped.

    Raises:
        NoDatasetFound: if all datasets are missing.
        UserError: if the test fails.
    """
    request = read_request(
        measurement.option_file, is_train=False, force_yml=list(measurement.overrides), skip_missing=True
    )
    from restormixer_arch.basicsr_adapter import register

    register.load_plugins()
    from restormixer_arch.training.results import values
    from restormixer_arch.training.run import test

    table = TaskTable(measurement)
    for name, metrics in values(test(request).model).items():
        before, after = zip(metrics[measurement.psnr], metrics[measurement.ssim], strict=True)
        table.inputs[name] = None if None in before else before
        table.ours[name] = after
    return table


Published = Mapping[tuple[str, str], Mapping[str, str]]  # (set, method) -> row of the table


def read_published(path: Path) -> dict[str, dict[tuple[str, str], dict[str, str]]]:
    """Return task -> (set, method) -> row of ``published.tsv`` (params, psnr, ssim, trained_on, source)."""
    tables: dict[str, dict[tuple[str, str], dict[str, str]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            tables.setdefault(row["task"], {})[row["set"], row["method"]] = row
    return tables


def task_lines(table: TaskTable, published: Mapping[str, Published]) -> Iterator[str]:
    """Yield the lines of a Markdown table: input, published methods with their source, and the installed weights."""
    rows = published.get(table.measurement.task, {})
    sets = list(table.ours)
    yield f"| {table.measurement.task} | {' | '.join(sets)} | parameters | trained on | source |"
    yield f"| --- |{' --: |' * len(sets)} --: | --- | --- |"
    measured = [table.inputs[name] for name in sets]
    yield f"| input | {' | '.join(_cell(one) for one in measured)} | | | measured here |"
    for method in dict.fromkeys(method for _, method in rows):
        found = [rows.get((name, method)) for name in sets]
        first = next((row for row in found if row), None)
        if first is None:
            continue
        cells = [_published_cell(row) for row in found]
        yield f"| {method} | {' | '.join(cells)} | {first['params']} | {first['trained_on']} | {first['source']} |"
    ours = [_cell(table.ours[name]) for name in sets]
    yield f"| **{OURS}** | {' | '.join(ours)} | {_parameters(table.measurement.task)} | {TRAINED_ON} | measured here |"


def _cell(values: tuple[float, float] | None) -> str:
    return "" if values is None else f"{values[0]:.2f} / {values[1]:.4f}"


def _published_cell(row: Mapping[str, str] | None) -> str:
    if row is None:
        return ""
    return f"{row['psnr']} / {row['ssim']}" if row["ssim"] else row["psnr"]


def _parameters(task: str) -> str:
    from restormixer_arch.inference.installed import installed_weights
    from restormixer_arch.inference.weights import load_network

    count = sum(parameter.numel() for parameter in load_network(installed_weights(task)).parameters())
    return f"{count / 1e6:.2f} M"
