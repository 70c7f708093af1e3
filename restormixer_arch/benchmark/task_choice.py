"""Fit and test the task choice of ``--task auto``: ``python -m restormixer_arch.benchmark.task_choice``.

``--fit DIR`` degrades the clean photographs in ``DIR/train_gt.lmdb`` at random and writes the fitted coefficients.
``--table DIR`` chooses a task for every image of the fixed sets ``DIR/test_*`` and prints the confusion matrix;
``--set val`` uses ``val_*`` instead.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from restormixer_arch.data.degradations.compose import add_composition, draw_composition
from restormixer_arch.data.degradations.labels import label_of, parse_label
from restormixer_arch.data.lmdb_io import LmdbImages
from restormixer_arch.errors import UserError, file_error, print_user_error
from restormixer_arch.inference.choose_task import (
    CLEAN,
    MIN_PROBABILITY,
    MIXED,
    MODEL,
    STATISTICS,
    Choice,
    choose_task,
    regression_features,
    window_statistics,
)
from restormixer_arch.output import print_error, print_result, write_text_atomically

TASK_OF = {
    "rain": "derain",
    "snow": "desnow",
    "haze": "dehaze",
    "low": "low_light",
    **dict.fromkeys(("blur", "defocus"), "deblur"),
    **dict.fromkeys(("noise", "poisson", "camera"), "denoise"),
}
TASKS = (CLEAN, *dict.fromkeys(TASK_OF.values()), MIXED)
LABELS = ("clean",) * 3 + ("rain", "snow", "haze", "low") * 2 + ("blur", "defocus", "noise", "camera", "poisson")
MIXTURES = ("low_haze", "low_rain", "low_snow", "haze_rain", "haze_snow", "low_haze_rain", "low_haze_snow")
MIXTURE_SHARE, JPEG_SHARE, JPEG_QUALITY = 0.18, 0.4, (70, 99)
PER_PHOTO, SEED = 4, 0
CLEAN_WEIGHT = 2.5  # weight of the class ``clean``, since leaving clean images unchanged matters most
PENALTY, ITERATIONS, DIGITS = 1e-4, 300, 5


def task_of(label: str) -> str:
    """Return the task that removes the degradations of a label: ``clean`` for none, ``mixed`` for several."""
    parts = parse_label(label)
    return CLEAN if not parts else TASK_OF[parts[0]] if len(parts) == 1 else MIXED


def degraded_statistics(source: tuple[Path, str, int]) -> list[tuple[np.ndarray, str]]:
    """Return the statistics and tasks of random degradations of one photograph, given as (LMDB, name, seed)."""
    folder, name, seed = source
    cv2.setNumThreads(1)
    rng = np.random.default_rng([SEED, seed])
    photo = np.clip(np.ascontiguousarray(LmdbImages(folder, "--fit").read(name)[..., ::-1]), 0, 1)
    found = []
    for _ in range(PER_PHOTO):
        labels = MIXTURES if rng.random() < MIXTURE_SHARE else LABELS
        label = labels[rng.integers(len(labels))]
        image = np.rint(add_composition(photo, draw_composition(rng, label)) * 255).astype(np.uint8)
        if rng.random() < JPEG_SHARE:
            quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(*JPEG_QUALITY))]
            coded = cv2.imencode(".jpg", image[..., ::-1], quality)[1]  # OpenCV uses BGR
            image = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1]
        found.append((window_statistics(image.astype(np.float32) / np.float32(255)), task_of(label)))
    return found


def fit_model(statistics: np.ndarray, tasks: Sequence[str]) -> dict[str, list]:
    """Fit a :class:`~restormixer_arch.inference.choose_task.Model` and return the content of its file.

    Args:
        statistics: S statistics of N images, (N, S).
        tasks: true task of each image, from :data:`TASKS`.
    """
    from scipy.optimize import minimize

    center, spread = statistics.mean(0), statistics.std(0) + 1e-9
    inputs = regression_features(statistics, center, spread)
    truth = np.eye(len(TASKS))[[TASKS.index(task) for task in tasks]]
    of_class = np.where(np.array(TASKS) == CLEAN, CLEAN_WEIGHT, 1) / np.maximum(truth.sum(0), 1)
    share = truth @ of_class
    share /= share.sum()

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(inputs.shape[1], len(TASKS))
        scores = inputs @ weights
        scores -= scores.max(1, keepdims=True)
        total = np.exp(scores).sum(1, keepdims=True)
        value = share @ (np.log(total[:, 0]) - (scores * truth).sum(1)) + PENALTY * (weights**2).sum()
        slope = inputs.T @ (share[:, None] * (np.exp(scores) / total - truth)) + 2 * PENALTY * weights
        return value, slope.ravel()

    start = np.zeros(inputs.shape[1] * len(TASKS))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS}).x
    arrays = {"center": center, "spread": spread, "weights": found.reshape(-1, len(TASKS))}
    return {"tasks": list(TASKS), **{name: np.round(values, DIGITS).tolist() for name, values in arrays.items()}}


def fit(folder: Path, out: Path, processes: int) -> None:
    """Fit the coefficients to degradations of the images in ``folder/train_gt.lmdb`` and write them to ``out``."""
    root = folder / "train_gt.lmdb"
    sources = [(root, name, place) for place, name in enumerate(LmdbImages(root, "--fit").names)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        found = list(tqdm(pool.imap(degraded_statistics, sources, chunksize=8), total=len(sources), desc="photos"))
    samples = [sample for samples in found for sample in samples]
    model = fit_model(np.array([values for values, _ in samples]), [task for _, task in samples])
    write_text_atomically(out, json.dumps({"statistics": STATISTICS, **model}, separators=(",", ":")) + "\n")
    print_result(f"{out}: fitted to {len(samples)} degraded images of {len(sources)} photographs")


def fixed_images(folder: Path, kind: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the task and pixels (uint8 RGB) of all images of the fixed sets ``<kind>_*``, and of the clean images once.

    Raises:
        UserError: if there are no fixed sets.
    """
    roots = sorted(folder.glob(f"{kind}_*/lq.lmdb"))
    clean = folder / f"{kind}_gt.lmdb"
    if not roots:
        raise UserError(f"{folder}: holds no sets {kind}_*/lq.lmdb; see 'basicsr prepare photos'")
    for root in [*roots, *([clean] if clean.is_dir() else [])]:
        images = LmdbImages(root, "--table")
        for name in images.names:
            task = CLEAN if root == clean else task_of(label_of(name) or CLEAN)
            yield task, np.rint(images.read(name)[..., ::-1] * 255).astype(np.uint8)


def confusion_table(choices: Sequence[tuple[str, Choice]]) -> str:
    """Return the confusion table in Markdown: a row per actual task, and an extra column for uncertain choices."""
    columns = [*TASKS, "unsure"]
    counts = {task: dict.fromkeys(columns, 0) for task in TASKS}
    for truth, choice in choices:
        counts[truth]["unsure" if choice.probability < MIN_PROBABILITY else choice.task] += 1
    lines = [f"| actual \\ chosen | images | {' | '.join(columns)} |", f"|{' --- |' * (len(columns) + 2)}"]
    for task, row in counts.items():
        if number := sum(row.values()):
            cells = [f"**{row[name]}**" if name == task else str(row[name] or "") for name in columns]
            lines.append(f"| {task} | {number} | {' | '.join(cells)} |")
    right = sum(choice.task == truth and choice.probability >= MIN_PROBABILITY for truth, choice in choices)
    left = sum(choice.task == CLEAN or choice.probability < MIN_PROBABILITY for _, choice in choices)
    lines += ["", f"Of {len(choices)} images {right} are classified correctly; {left} are left unchanged."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m restormixer_arch.benchmark.task_choice",
        description="Fit or test the choice of 'basicsr restore --task auto'.",
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--table", type=Path, metavar="DIR", help="print the confusion table of the sets in DIR")
    action.add_argument("--fit", type=Path, metavar="DIR", help="fit to degraded photographs of DIR/train_gt.lmdb")
    parser.add_argument("--set", choices=["test", "val"], default="test", help="of --table (default test)")
    parser.add_argument("--out", type=Path, default=MODEL, metavar="FILE", help="of --fit (default: the package's)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="of --fit (default 2)")
    options = parser.parse_args(arguments)
    if options.processes < 1:
        parser.error(f"argument --processes: expected a positive whole number, got {options.processes}")
    try:
        if options.fit:
            fit(options.fit, options.out, options.processes)
        else:
            images = fixed_images(options.table, options.set)
            print_result(confusion_table([(truth, choose_task([image])) for truth, image in images]))
    except UserError as error:
        print_user_error(error)
        return 2
    except OSError as error:
        if not error.strerror:
            raise
        print_error(f"error: {file_error(error)}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
