"""Read and check an option file before anything heavy is imported: no torch, no basicsr, no OpenCV here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from restormixer_arch.basicsr_adapter import locations, option_checks, option_schema, option_val
from restormixer_arch.basicsr_adapter.option_datasets import dataset_section
from restormixer_arch.basicsr_adapter.option_faults import Fault, OptionErrors, section_faults, unknown_name
from restormixer_arch.basicsr_adapter.output import note, warn
from restormixer_arch.basicsr_adapter.yaml_reader import apply_overrides, read_options


@dataclass(frozen=True)
class Request:
    """A checked option file and the switches of the command line that BasicSR's pipelines heed.

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
) -> Request:
    """Find, read and check an option file.

    Raises:
        UserError: it cannot be found or read.
        OptionErrors: it has faults; all of them are listed.
    """
    path = locations.locate_option_file(option_file)
    options = read_options(path, option_file)
    apply_overrides(options, force_yml or [])
    taken = take_packaged_paths(options)
    if not Path(option_file).expanduser().exists():
        taken.insert(0, option_file)
    if taken:
        note(f"taken from the installed package {Path(__file__).parents[1]}: {', '.join(taken)}")
    check_options(options, option_file, is_train)
    advice = option_checks.padded_windows(options) if is_train else None
    if advice:
        warn(f"{option_file}: {advice}")
    return Request(option_file, path, options, is_train, launcher, auto_resume, debug)


def take_packaged_paths(options: dict[str, Any]) -> list[str]:
    """Point paths that only the installed package has to it, in place; return them as they were written."""
    taken = []
    for section, path in list(option_checks.path_keys(options)):
        value = section[path[-1]]
        packaged = None if Path(value).expanduser().exists() else locations.in_package(value)
        if packaged is not None:
            section[path[-1]] = str(packaged)
            taken.append(value)
    return list(dict.fromkeys(taken))


def check_options(options: dict[str, Any], shown: str, is_train: bool, *, paths: bool = True) -> None:
    """Compare the options with the schema and with each other.

    Args:
        options: the content of the file.
        shown: the file's name in messages.
        is_train: for ``basicsr train``, else for ``basicsr test``.
        paths: also that the files and folders it names are there.

    Raises:
        OptionErrors: with every fault found.
    """
    raise_faults(option_faults(options, is_train, paths=paths), options, shown)


def raise_faults(faults: list[Fault], options: dict[str, Any], shown: str) -> None:
    """Raise OptionErrors with the faults, if there are any, in the order of the file."""
    if faults:
        raise OptionErrors(shown, sorted(faults, key=lambda fault: _position(options, fault.path)))


def option_faults(options: dict[str, Any], is_train: bool, *, paths: bool = True) -> list[Fault]:
    """Return what :func:`check_options` raises."""
    faults = [*_schema_faults(options, is_train), *option_checks.phases(options, is_train)]
    if is_train:
        faults += option_checks.schedule(options)
        faults += option_checks.crops(options)
        faults += option_checks.logging(options)
    faults += option_checks.scale(options)
    faults += option_checks.databases(options)
    faults += option_checks.metrics_without_truth(options)
    if paths:
        faults += option_checks.missing_paths(options)
    return faults


def _schema_faults(options: dict[str, Any], is_train: bool) -> list[Fault]:
    schema = option_schema
    model_type = options.get("model_type")
    known = isinstance(model_type, str) and model_type in schema.TRAIN_SECTIONS
    if is_train:
        whole = schema.TrainFile if known else schema.OpenTrainFile
    else:
        whole = schema.TestFile if known else schema.OpenTestFile
    val = option_val.section(model_type if known else None, is_train)
    sections = {"path": schema.Paths if known else schema.OpenPaths, "val": val}
    if is_train:
        sections["train"] = schema.TRAIN_SECTIONS[model_type] if known else schema.OpenTrain
    faults = section_faults(whole, options)
    for key, section in sections.items():
        if isinstance(options.get(key), dict):
            faults += section_faults(section, options[key], (key,))
    datasets = options.get("datasets")
    for phase, dataset in datasets.items() if isinstance(datasets, dict) else ():
        if isinstance(dataset, dict):
            faults += section_faults(dataset_section(dataset, phase), dataset, ("datasets", str(phase)))
    if known and is_train and isinstance(options.get("train"), dict):
        faults += _scheduler_faults(options["train"].get("scheduler"))
    return faults


def _scheduler_faults(scheduler: Any) -> list[Fault]:
    at = ("train", "scheduler")
    if not isinstance(scheduler, dict):
        return []  # reported already, as missing or as no section
    kind = scheduler.get("type")
    if kind is None:
        return [Fault((*at, "type"), "required key is missing (the kind of schedule)")]
    if kind not in option_schema.SCHEDULERS:
        return [Fault((*at, "type"), unknown_name(kind, "scheduler", option_schema.SCHEDULERS))]
    return section_faults(option_schema.SCHEDULERS[kind], scheduler, at)


def _position(options: dict[str, Any], path: tuple[str, ...]) -> list[int]:
    """Where a key stands in the file, to list faults from top to bottom; a missing key comes last in its section."""
    place, node = [], options
    for key in path:
        keys = [str(name) for name in node] if isinstance(node, dict) else []
        if key not in keys:
            return [*place, len(keys)]
        place.append(keys.index(key))
        node = list(node.values())[place[-1]]
    return place
