"""Read and check an option file before anything heavy is imported: no torch, no basicsr, no OpenCV here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restormixer_arch.config import rules, schema
from restormixer_arch.config.problems import section_problems, unknown_name
from restormixer_arch.config.yaml_file import apply_overrides, find_in_package, locate_option_file, read_options
from restormixer_arch.errors import OptionErrors, Problem, UserError
from restormixer_arch.output import note, warn


@dataclass(frozen=True)
class Request:
    """A checked option file and the switches of the command line for BasicSR's pipelines.

    Attributes:
        shown: the option file as the user named it, for messages.
        path: the option file.
        options: its content with ``--force_yml`` applied and packaged paths filled in.
        is_train: for training, else for testing.
        launcher: ``none``, ``pytorch`` or ``slurm``.
    """

    shown: str
    path: Path
    options: dict[str, Any]
    is_train: bool
    launcher: str = "none"
    auto_resume: bool = False
    debug: bool = False


def read_request(
    option_file: str,
    *,
    is_train: bool,
    force_yml: list[str] | None = None,
    launcher: str = "none",
    auto_resume: bool = False,
    debug: bool = False,
    skip_missing: bool = False,
) -> Request:
    """Find, read and check an option file.

    Args:
        option_file: the option file as the user named it.
        is_train: for training, else for testing.
        force_yml: overrides ``key:key=value``.
        launcher, auto_resume, debug: see :class:`Request`.
        skip_missing: leave out the data sets whose folder or LMDB is not there, with a note.

    Raises:
        UserError: it cannot be found or read, or all of its data sets are missing.
        OptionErrors: it has problems; all of them are listed.
    """
    path, options = read_option_file(option_file, force_yml)
    if skip_missing:
        _leave_out_missing(options, option_file)
    check_options(options, option_file, is_train)
    advice = rules.window_advice(options) if is_train else None
    if advice:
        warn(f"{option_file}: {advice}")
    return Request(option_file, path, options, is_train, launcher, auto_resume, debug)


def _leave_out_missing(options: dict[str, Any], shown: str) -> None:
    """Remove the data sets of which a folder or LMDB is not there."""
    datasets = options.get("datasets")
    if not isinstance(datasets, dict):
        return  # reported by the check
    missing = {}
    for phase, dataset in datasets.items():
        roots = [dataset.get(key) for key in ("dataroot_gt", "dataroot_lq")] if isinstance(dataset, dict) else []
        absent = [root for root in roots if isinstance(root, str) and not Path(root).expanduser().exists()]
        if absent:
            missing[phase] = f"{dataset.get('name', phase)} ({absent[0]})"
    if len(missing) == len(datasets):
        raise UserError(f"{shown}: datasets: none is there: {', '.join(missing.values())}; see data/DATASETS.md")
    for phase in missing:
        del datasets[phase]
    if missing:
        note(f"{shown}: left out, not there: {', '.join(missing.values())}")


def read_option_file(option_file: str, force_yml: list[str] | None = None) -> tuple[Path, dict[str, Any]]:
    """Find and read an option file, apply overrides, and point paths that only the installed package has to it.

    Returns:
        Where the file is, and its content, unchecked.

    Raises:
        UserError: it cannot be found or read, or an override is wrong.
    """
    path = locate_option_file(option_file)
    options = read_options(path, option_file)
    apply_overrides(options, force_yml or [])
    taken = [] if Path(option_file).expanduser().exists() else [option_file]
    for section, key_path in list(rules.path_keys(options)):
        value = section[key_path[-1]]
        packaged = None if Path(value).expanduser().exists() else find_in_package(value)
        if packaged is not None:
            section[key_path[-1]] = str(packaged)
            taken.append(value)
    if taken:
        note(f"taken from the installed package {Path(__file__).parents[1]}: {', '.join(dict.fromkeys(taken))}")
    return path, options


def check_options(options: dict[str, Any], shown: str, is_train: bool, *, paths: bool = True) -> None:
    """Compare the options with the schema and with each other.

    Args:
        options: the content of the file.
        shown: the file's name in messages.
        is_train: for ``basicsr train``, else for ``basicsr test``.
        paths: also that the files and folders it names exist.

    Raises:
        OptionErrors: with every problem found.
    """
    raise_problems(option_problems(options, is_train, paths=paths), options, shown)


def raise_problems(problems: list[Problem], options: dict[str, Any], shown: str) -> None:
    """Raise OptionErrors with the problems, if there are any, in the order of the file."""
    if problems:
        raise OptionErrors(shown, sorted(problems, key=lambda problem: _position(options, problem.path)))


def option_problems(options: dict[str, Any], is_train: bool, *, paths: bool = True) -> list[Problem]:
    """Return what :func:`check_options` raises."""
    return [*_schema_problems(options, is_train), *rules.file_problems(options, is_train, paths=paths)]


def _schema_problems(options: dict[str, Any], is_train: bool) -> list[Problem]:
    model_type = options.get("model_type")
    problems = []
    for key, section in schema.sections(model_type, is_train).items():
        if not key:
            problems += section_problems(section, options)
        elif isinstance(options.get(key), dict):
            problems += section_problems(section, options[key], (key,))
    datasets = options.get("datasets")
    for phase, dataset in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict):
            section = schema.dataset_section(dataset.get("type"), phase)
            problems += section_problems(section, dataset, ("datasets", str(phase)))
    if is_train and isinstance(options.get("train"), dict) and model_type in list(schema.TRAIN_SECTIONS):
        problems += _scheduler_problems(options["train"].get("scheduler"))
    return problems


def _scheduler_problems(scheduler: Any) -> list[Problem]:
    at = ("train", "scheduler")
    if not isinstance(scheduler, dict):
        return []  # reported already, as missing or as no section
    kind = scheduler.get("type")
    if kind is None:
        return [Problem((*at, "type"), "required key is missing (the kind of schedule)")]
    if kind not in list(schema.SCHEDULERS):
        return [Problem((*at, "type"), unknown_name(kind, "scheduler", schema.SCHEDULERS))]
    return section_problems(schema.SCHEDULERS[kind], scheduler, at)


def _position(options: dict[str, Any], path: tuple[str, ...]) -> list[int]:
    """Return where a key stands in the file, to list problems from top to bottom; a missing key comes last."""
    place, node = [], options
    for key in path:
        keys = [str(name) for name in node] if isinstance(node, dict) else []
        if key not in keys:
            return [*place, len(keys)]
        place.append(keys.index(key))
        node = list(node.values())[place[-1]]
    return place
