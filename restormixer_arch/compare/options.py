"""Read and check option files of ``basicsr compare``, and derive those of ``basicsr train`` and ``basicsr test``.

The settings of each competitor are checked as the equivalent option files of ``basicsr train`` and ``basicsr test``,
so the same checks apply; problems are reported under the keys of the compare file. :func:`read_compare_file` imports
neither torch nor basicsr.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from restormixer_arch.config import rules
from restormixer_arch.config.check import (
    option_problems,
    raise_problems,
    read_option_file,
    reject_other_command,
    section_problems,
    unknown_name,
)
from restormixer_arch.config.compare_schema import CompareFile, CompareTrain
from restormixer_arch.errors import Problem

ANY_TOTAL = 1000  # placeholder for the iterations until they are known
MODEL = "RestorMixerModel"  # trains any network of ARCH_REGISTRY
# Keys of the section 'train' that 'basicsr train' accepts; the other two become its iterations and schedule.
TRAIN_KEYS = CompareTrain.model_fields.keys() - {"budget", "eta_min"}
DEFAULTS = {"scale": 1, "manual_seed": 0}
SHARED = ("scale", "num_gpu", "manual_seed", "device", "num_threads")
LOGGER = {"print_freq": 100, "use_tb_logger": False, "keep_last": 1}
CHECKPOINTS = 20  # per training run, if the file has no 'logger'


def read_compare_file(
    option_file: str, force_yml: list[str] | None = None, *, needs_steps: bool = True
) -> dict[str, Any]:
    """Find, read and check a compare file as far as possible without torch; add the defaults and ``file``.

    Args:
        option_file: option file as given by the user.
        force_yml: values that override those of the file.
        needs_steps: whether every competitor trained in a study must have ``step_seconds``.

    Raises:
        UserError: if the file cannot be found or read.
        OptionErrors: if it has problems; all of them are listed.
    """
    given = read_option_file(option_file, force_yml)[1]
    reject_other_command(given, option_file, "compare")
    options = {**DEFAULTS, **given}
    problems = section_problems(CompareFile, options) or _run_problems(options, needs_steps)
    if not problems:
        whole = options_of_run(options, {**options["runs"][0], "competitors": None}) if options.get("runs") else options
        problems = [*_own_problems(whole), *_shared_problems(whole)]
    raise_problems(list(dict.fromkeys(problems)), options, option_file)
    checked = CompareFile.model_validate(options)
    sections = {"measure": checked.measure, "path": checked.path, "context": checked.context}
    filled = {key: section and section.model_dump() for key, section in sections.items()}
    return {**options, **filled, "file": option_file}


def is_trained(options: dict[str, Any], name: str) -> bool:
    """Return whether a competitor is trained here: there is a ``train``, but the competitor has no weights or run."""
    competitor = options["competitors"][name]
    return bool(options.get("train")) and competitor.get("weights") is None and competitor.get("run") is None


def options_of_run(options: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Return the compare file that is equivalent to one of the ``runs`` of a study.

    Its results are written to ``<results_root>/<name of the study>/<name of the run>``.
    """
    names = run.get("competitors") or options["competitors"]
    root = (options.get("path") or {}).get("results_root") or "results"
    return {
        **{key: value for key, value in options.items() if key not in ("runs", "context")},
        "name": name_of_run(run),
        "manual_seed": run["manual_seed"],
        "competitors": {name: given for name, given in options["competitors"].items() if name in names},
        "train": {**(options.get("train") or {}), "budget": {"minutes": run["minutes"]}},
        "path": {**(options.get("path") or {}), "results_root": f"{root}/{options['name']}"},
    }


def name_of_run(run: dict[str, Any]) -> str:
    """Return the name of a run of a study, such as ``24min_seed42``."""
    return f"{run['minutes']:g}min_seed{run['manual_seed']}"


def merge_train(options: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the section ``train`` of one competitor: the common one, overridden by the competitor's own keys.

    A subsection such as ``pixel_opt`` keeps the common keys that it does not override, unless its ``type`` differs.
    """
    train, own = deepcopy(options["train"]), options["competitors"][name].get("train") or {}
    for key, value in own.items():
        train[key] = {**train[key], **value} if _is_merged(train.get(key), value) else value
    return train


def _is_merged(common: Any, own: Any) -> bool:
    """Return whether two subsections of ``train`` can be merged: those of different types have different keys."""
    both = isinstance(common, dict) and isinstance(own, dict)
    return both and own.get("type", common.get("type")) == common.get("type")


def training_options(options: dict[str, Any], name: str, total_iter: int, folder: str) -> dict[str, Any]:
    """Return the content of the option file with which ``basicsr train`` trains one competitor.

    Args:
        options: checked compare file.
        name: name of the competitor.
        total_iter: number of iterations in its budget.
        folder: parent folder of its experiment.
    """
    train = merge_train(options, name)
    schedule = {"type": "CosineAnnealingRestartLR", "periods": [total_iter], "restart_weights": [1]}
    schedule["eta_min"] = train.get("eta_min", 0.0)
    logger = {**LOGGER, "save_checkpoint_freq": max(1, total_iter // CHECKPOINTS)}
    return deepcopy(
        {
            "name": name,
            "model_type": MODEL,
            **{key: options[key] for key in SHARED if options.get(key) is not None},
            "datasets": {phase: data for phase, data in options["datasets"].items() if phase == "train"},
            "network_g": options["competitors"][name]["network_g"],
            "path": {"experiments_root": folder},
            "train": {
                **{key: value for key, value in train.items() if key in TRAIN_KEYS},
                "total_iter": total_iter,
                "scheduler": schedule,
            },
            "logger": options.get("logger") or logger,
        }
    )


def crop_side(options: dict[str, Any]) -> int | None:
    """Return the side of the training crops in input pixels, or None if they have no fixed size."""
    size = options["datasets"]["train"].get("gt_size")
    return None if size is None else size // options["scale"]


def testing_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the option file with which ``basicsr test`` would measure a RestorMixer on the datasets."""
    sets = {phase: dataset for phase, dataset in options["datasets"].items() if phase != "train"}
    return deepcopy(
        {
            "name": options["name"],
            "model_type": MODEL,
            **{key: options[key] for key in SHARED if options.get(key) is not None},
            "datasets": sets,
            "network_g": {"type": "RestorMixer"},
            "path": {},
            "val": {"save_img": True, **options["val"]},
        }
    )


def in_compare_file(options: dict[str, Any], name: str, path: tuple[str, ...]) -> tuple[str, ...]:
    """Convert the path of a key in a competitor's option file to its path in the compare file."""
    own = ("competitors", name)
    if path[:1] == ("network_g",):
        return (*own, *path)
    if path[:1] == ("train",) and _is_own(options, name, path[1:]):
        return (*own, *path)
    return path


def _is_own(options: dict[str, Any], name: str, path: tuple[str, ...]) -> bool:
    """Return whether a key below ``train`` is the competitor's: it sets the key, or replaces the key's subsection."""
    common, own = options["train"], options["competitors"][name].get("train")
    if _holds(own, path):
        return True
    return len(path) > 1 and _holds(own, path[:1]) and not _is_merged(common.get(path[0]), own[path[0]])


def _holds(section: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(section, dict) or key not in section:
            return False
        section = section[key]
    return bool(path)


def _shared_problems(options: dict[str, Any]) -> list[Problem]:
    """Return the problems that ``basicsr test`` and ``basicsr train`` find, under the keys of the compare file."""
    problems = _testing_problems(testing_options(options))
    for name in options["competitors"]:
        if not is_trained(options, name):
            continue
        found = section_problems(CompareTrain, merge_train(options, name), ("train",))
        if options["competitors"][name].get("network_g"):
            found += option_problems(training_options(options, name, ANY_TOTAL, "."), is_train=True)
        problems += [Problem(in_compare_file(options, name, problem.path), problem.text) for problem in found]
    return problems


def _run_problems(options: dict[str, Any], needs_steps: bool) -> list[Problem]:
    """Return the problems of a study's runs, and of the section ``context``, which only a study may have."""
    if not options.get("runs"):
        return [Problem(("context",), "is measured in a study: 'runs' is missing")] if options.get("context") else []
    if (options.get("train") or {}).get("budget") is not None:
        return [Problem(("train", "budget"), "cannot be combined with 'runs', which sets the budgets")]
    problems, competitors = [], options["competitors"]
    for name, given in competitors.items():
        for key in ("weights", "run"):
            if given.get(key):
                text = "a study trains every competitor from scratch; compare trained networks in a file without 'runs'"
                problems.append(Problem(("competitors", name, key), text))
        if needs_steps and is_trained(options, name) and not competitors[name].get("step_seconds"):
            text = "required key is missing: it converts minutes into iterations, see 'basicsr compare --steps'"
            problems.append(Problem(("competitors", name, "step_seconds"), text))
    first, seen = next(iter(competitors)), set()
    for at, run in enumerate(options["runs"]):
        place, names = ("runs", str(at), "competitors"), run.get("competitors") or [first]
        if name_of_run(run) in seen:
            problems.append(Problem(place[:2], f"{name_of_run(run)} exists already"))
        seen.add(name_of_run(run))
        unknown = [name for name in names if name not in competitors]
        problems += [Problem(place, unknown_name(name, "competitor", competitors)) for name in unknown]
        if first not in names:
            problems.append(Problem(place, f"must include {first!r}, which the others are compared with"))
    return problems + _context_problems(options)


def _context_problems(options: dict[str, Any]) -> list[Problem]:
    if not (context := options.get("context")):
        return []
    sizes, own = context.get("sizes") or [1], context_options(options)
    found = [*_testing_problems(own), *_mean_problems(own)]
    problems = _in_context(found)
    if sizes != sorted(set(sizes)) or any(size % sizes[0] for size in sizes):
        problems.append(Problem(("context", "sizes"), f"got {sizes}, expected growing multiples of the first one"))
    return problems


def context_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the option file with which ``basicsr test`` would read the images for the context."""
    return testing_options({**options, "datasets": {"test": options["context"]["dataset"]}})


def _in_context(problems: list[Problem]) -> list[Problem]:
    """Select the dataset's problems from those of :func:`context_options`, under the keys of the compare file."""
    at = ("datasets", "test")
    return [Problem(("context", "dataset", *p.path[2:]), p.text) for p in problems if p.path[:2] == at]


def _testing_problems(options: dict[str, Any]) -> list[Problem]:
    """Return the problems that ``basicsr test`` finds, except for the keys that :func:`_mean_problems` rejects."""
    found = option_problems(options, is_train=False)
    return [problem for problem in found if problem.path[-1:] not in (("mean",), ("std",))]


def _mean_problems(options: dict[str, Any]) -> list[Problem]:
    return [
        Problem(("datasets", phase, key), "pictures are compared in [0, 1], without mean and std")
        for phase, dataset in options["datasets"].items()
        for key in ("mean", "std")
        if phase != "train" and dataset.get(key) is not None
    ]


def _own_problems(options: dict[str, Any]) -> list[Problem]:
    problems = []
    for name, competitor in options["competitors"].items():
        problems += _competitor_problems(options, str(name), competitor)
    budget = (options.get("train") or {}).get("budget")
    if options.get("train") is not None and budget is None:
        problems.append(Problem(("train", "budget"), "required key is missing ('iterations: N' or 'minutes: N')"))
    given = {key for key, value in budget.items() if value is not None} if isinstance(budget, dict) else set()
    if isinstance(budget, dict) and given <= {"iterations", "minutes"} and len(given) != 1:
        problems.append(Problem(("train", "budget"), f"got {budget!r}, expected one of 'iterations' and 'minutes'"))
    if options.get("train") is not None and not any(is_trained(options, name) for name in options["competitors"]):
        problems.append(Problem(("train",), "every competitor already has weights, so there is nothing to train"))
    problems += _mean_problems(options)
    names: dict[str, str] = {}
    for phase, dataset in options["datasets"].items():
        name = str(dataset.get("name"))
        if text := rules.name_problem(name):
            problems.append(Problem(("datasets", phase, "name"), text))
        if dataset.get("color") == "y":
            problems.append(Problem(("datasets", phase, "color"), "got 'y', pictures are compared in RGB"))
        if phase != "train" and names.setdefault(name.casefold(), phase) != phase:
            text = f"{name!r} is the name of datasets.{names[name.casefold()]} already; results are shown under it"
            problems.append(Problem(("datasets", phase, "name"), text))
    return problems


def _competitor_problems(options: dict[str, Any], name: str, competitor: dict[str, Any]) -> list[Problem]:
    at, texts = ("competitors", name), []
    given = {key for key, value in competitor.items() if value is not None}
    if rules.name_problem(name) or name.startswith("."):
        texts.append(("", "is used as a file name: must not contain / or \\ or start with ."))
    if "run" in given and given & {"network_g", "weights", "param_key"}:
        texts.append(("run", "cannot be combined with network_g, weights or param_key"))
    elif not given & {"network_g", "weights", "run"}:
        texts.append(("", "expected network_g, weights, both, or run"))
    elif not given & {"weights", "run"} and options.get("train") is None:
        texts.append(("weights", "required key is missing, since the file has no section 'train'"))
    if "checkpoint" in given and "run" not in given:
        texts.append(("checkpoint", "needs 'run'"))
    if "param_key" in given and not {"weights", "network_g"} <= given:
        texts.append(("param_key", "is for 'weights' of a 'network_g'"))
    if "train" in given and not is_trained(options, name):
        texts.append(("train", "is not trained here: it has weights, or the file has no section 'train'"))
    for key in ("weights", "run"):
        if competitor.get(key) is not None and (text := rules.path_problem(competitor[key])):
            texts.append((key, text))
    return [Problem((*at, key) if key else at, text) for key, text in texts]


def name_problems_of(options: dict[str, Any], folder: str) -> list[Problem]:
    """Return the problems with types and arguments of networks, datasets, losses, metrics and the optimizer.

    BasicSR and the plug-ins must have been imported.
    """
    from restormixer_arch.basicsr_adapter.signatures import name_problems, network_problems

    problems = name_problems(testing_options(options), is_train=False)
    if options.get("context"):
        problems += _in_context(name_problems(context_options(options), is_train=False))
    for name, competitor in options["competitors"].items():
        if is_trained(options, name):
            found = name_problems(training_options(options, name, ANY_TOTAL, folder), is_train=True)
        elif competitor.get("network_g"):
            found = network_problems(competitor["network_g"], ("network_g",))
        else:
            continue
        problems += [Problem(in_compare_file(options, name, problem.path), problem.text) for problem in found]
    return list(dict.fromkeys(problems))
