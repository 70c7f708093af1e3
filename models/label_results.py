"""Validation results per label, as reported for all-in-one restoration: a table, a file and scalars.

The label of an image is the ``label`` of its dataset item or a part of its path: a folder (``low_haze/0001.png``), or
the end or start of the stem (``0001_low_haze``), see :func:`restormixer_arch.data.degradations.labels.label_of`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basicsr.utils import get_root_logger

from restormixer_arch.data.degradations.labels import CDD11
from restormixer_arch.errors import UserError
from restormixer_arch.output import write_text_atomically

MEAN = "mean"
UNLABELED = "other"  # label of images whose name contains none


@dataclass
class LabelResults:
    """Metric values of single images: label -> metric -> one value per image."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, labels: Iterable[str], values: Iterable[dict[str, float]]) -> LabelResults:
        """Build the results from the label and the metric values of each image."""
        results = cls()
        for label, metrics in zip(labels, values, strict=True):
            for metric, value in metrics.items():
                results.add(label, metric, value)
        return results

    def add(self, label: str, metric: str, value: float) -> None:
        self.values.setdefault(label, {}).setdefault(metric, []).append(value)

    @property
    def labels(self) -> list[str]:
        """Labels of the images: those of CDD-11 in its order, then the others sorted by name."""
        rank = {label: place for place, label in enumerate(CDD11)}
        return sorted(self.values, key=lambda label: (rank.get(label, len(rank)), label))

    def means(self) -> dict[str, dict[str, float]]:
        """Return label -> metric -> mean over the images of that label."""
        return {
            label: {metric: math.fsum(values) / len(values) for metric, values in self.values[label].items()}
            for label in self.labels
        }

    def means_of_labels(self) -> dict[str, float]:
        """Return metric -> mean over the labels' means; each label has the same weight."""
        means = self.means()
        metrics = dict.fromkeys(metric for of_label in means.values() for metric in of_label)
        return {metric: math.fsum(of_label[metric] for of_label in means.values()) / len(means) for metric in metrics}

    def markdown(self, inputs: LabelResults | None = None) -> str:
        """Return a Markdown table with a row per metric, a column per label, and the mean over the labels.

        Args:
            inputs: results of the unrestored inputs, shown in a row ``<metric>_input`` above each metric.
        """
        means, overall = self.means(), self.means_of_labels()
        counts = [len(next(iter(self.values[label].values()))) for label in means]
        lines = [
            f"| metric | {' | '.join([*means, MEAN])} |",
            f"| --- |{' ---: |' * (len(means) + 1)}",
            f"| images | {' | '.join(map(str, [*counts, sum(counts)]))} |",
        ]
        before = inputs.means() if inputs else {}
        for metric, mean in overall.items():
            if before:
                lines.append(_line(f"{metric}_input", metric, before, inputs.means_of_labels()[metric]))
            lines.append(_line(metric, metric, means, mean))
        return "\n".join(lines) + "\n"


def report_per_label(
    model: Any,
    dataset: str,
    results: LabelResults,
    current_iter: Any,
    tb_logger: Any,
    inputs: LabelResults | None = None,
) -> None:
    """Log a table of the results, write it to a Markdown file and add the results to TensorBoard.

    The scalars are named ``metrics/<dataset>/<label>/<metric>``. The file ``<dataset>_labels.md`` in the log folder is
    replaced at each validation. Nothing is done if the dataset has fewer than two labels.

    Args:
        model: model that was validated.
        dataset: name of the dataset.
        results: metrics of the restored images.
        current_iter: current iteration.
        tb_logger: TensorBoard writer, or None.
        inputs: metrics of the unrestored inputs, added to the table.

    Raises:
        UserError: if the file cannot be written.
    """
    if len(set(results.values) - {UNLABELED}) < 2:
        return
    table = results.markdown(inputs)
    get_root_logger().info(f"Validation {dataset} per label, {len(results.values)} labels\n{table}")
    if tb_logger:
        for label, metrics in results.means().items():
            for metric, value in metrics.items():
                tb_logger.add_scalar(f"metrics/{dataset}/{label}/{metric}", value, current_iter)
    title = f"# {dataset} per label\n\n"
    when = f"After {current_iter} iterations.\n\n" if model.opt["is_train"] else ""
    path = Path(model.opt["path"]["log"], f"{dataset}_labels.md")
    try:
        write_text_atomically(path, title + when + table)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def _line(title: str, metric: str, means: dict[str, dict[str, float]], mean: float) -> str:
    cells = [_shown(metric, value) for value in (*(of_label[metric] for of_label in means.values()), mean)]
    return f"| {title} | {' | '.join(cells)} |"


def _shown(metric: str, value: float) -> str:
    return f"{value:.2f}" if "psnr" in metric.lower() else f"{value:.4f}"
