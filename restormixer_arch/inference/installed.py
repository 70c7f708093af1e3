"""Find the weights that are installed with the package, without importing torch."""

from __future__ import annotations

from pathlib import Path

from restormixer_arch.errors import UserError, did_you_mean

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"  # the weights that are installed with the package
PREFIX = "restormixer_s_"
DEFAULT_TASK, AUTO = "derain", "auto"
BF16_TASKS = ("derain", "mixed", "sr_x2", "sr_x3", "sr_x4")  # lose less than 0.02 dB in bfloat16 on the samples


def installed_tasks() -> list[str]:
    """Return the tasks with installed weights, in alphabetical order."""
    return sorted(file.stem.removeprefix(PREFIX) for file in WEIGHTS_FOLDER.glob(f"{PREFIX}*.safetensors"))


def installed_weights(task: str) -> Path:
    """Return the file of the installed weights for a task.

    Raises:
        UserError: if there are none; the message lists the tasks that have weights.
    """
    path, tasks = WEIGHTS_FOLDER / f"{PREFIX}{task}.safetensors", installed_tasks()
    if path.is_file():
        return path
    if task == AUTO:
        raise UserError(f"--task: {AUTO!r} is for 'basicsr restore'; expected one of {', '.join(tasks)}")
    there = f"installed are: {', '.join(tasks)}" if tasks else "this installation has no weights at all"
    raise UserError(f"--task: no weights for {task!r}; {there}.{did_you_mean(task, tasks)}")


def scale_of_task(task: str) -> int:
    """Return the upscale factor of the installed weights for a task."""
    return int(task.removeprefix("sr_x")) if task.startswith("sr_x") else 1


def suits_bf16(path: Path) -> bool:
    """Return whether these are installed weights that lose less than 0.02 dB in bfloat16; False for any other file."""
    return path.parent == WEIGHTS_FOLDER and path.stem.removeprefix(PREFIX) in BF16_TASKS
