"""Fill the template of ``report.html`` and write the page."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from restormixer_arch.compare import columns, tables
from restormixer_arch.compare.results import Comparison
from restormixer_arch.errors import UserError
from restormixer_arch.output import write_text_atomically

FILE = "report.html"
NEEDED = ("jinja2", "plotly")
INSTALL = "pip install jinja2 plotly"


def write_report(comparison: Comparison, folder: Path) -> Path:
    """Write ``report.html`` atomically.

    Args:
        comparison: results of the comparison.
        folder: folder of its images, to which the report is written.

    Returns:
        The path of the report.

    Raises:
        UserError: if an image cannot be read, the folder cannot be written to, or a library is not installed.
    """
    require_libraries()
    place = folder / FILE
    text = render(comparison, folder)
    try:
        return write_text_atomically(place, text)
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {error.strerror}") from error


def require_libraries() -> None:
    """Check that a report can be created, before anything is measured.

    Raises:
        UserError: if jinja2 or plotly is not installed.
    """
    for package in NEEDED:
        if find_spec(package) is None:
            raise UserError(f"{FILE} needs {package}, which is not installed. Run: {INSTALL}")


def render(comparison: Comparison, folder: Path) -> str:
    """Return the page as text; jinja2 and plotly must be installed."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from restormixer_arch.compare.report import pictures, plots

    environment = Environment(
        loader=PackageLoader("restormixer_arch.compare.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2")
    return page.render(
        comparison=comparison,
        columns=columns.columns(comparison),
        names=[tables.INPUT, *(competitor.name for competitor in comparison.competitors)],
        plots={dataset.name: plots.plots(comparison, dataset) for dataset in comparison.datasets},
        plotly=plots.library(),
        galleries=pictures.galleries(comparison, folder),
        zoom=pictures.ZOOM,
        error_colors=pictures.error_colors(),
        facts=list(facts(comparison.machine)),
    )


def facts(machine: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the properties of the machine as (name, text), with all versions as one text."""
    for name, value in machine.items():
        text = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else str(value)
        yield name.replace("_", " "), text
