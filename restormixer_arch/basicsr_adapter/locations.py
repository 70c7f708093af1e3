"""Where files are: in the working directory first, then in the installed package.

BasicSR resolves every relative path of an option file against the working directory. The option files, the sample
data and the weights that ship with this project are installed inside the package, so ``options/x.yml``, ``data/y`` and
``restormixer_arch/weights/z`` are looked up there when the working directory has no such file.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path, PurePath

from restormixer_arch.errors import UserError, did_you_mean

PACKAGED = {
    "options": "restormixer_arch.options",
    "data": "restormixer_arch.data",
    "restormixer_arch": "restormixer_arch",
}


def package_folders(top: str) -> list[Path]:
    """Return the installed folders behind a key of :data:`PACKAGED` without importing them."""
    spec = find_spec(PACKAGED[top])
    return [Path(folder) for folder in spec.submodule_search_locations] if spec else []


def in_package(path: str | Path) -> Path | None:
    """Return the installed file that a relative path such as ``data/samples/x.lmdb`` names, or None."""
    parts = PurePath(path).parts
    if not parts or parts[0] not in PACKAGED or ".." in parts:
        return None
    for folder in package_folders(parts[0]):
        candidate = folder.joinpath(*parts[1:])
        if candidate.exists():
            return candidate
    return None


def locate_option_file(path: str | Path) -> Path:
    """Return the option file, from the working directory or else from the package.

    Raises:
        UserError: there is no such file; neighbours and shipped files with a similar name are offered.
    """
    given = Path(path).expanduser()
    found = given if given.exists() else in_package(path)
    if found is None:
        shipped = [f"options/{file.name}" for folder in package_folders("options") for file in folder.glob("*.yml")]
        raise UserError(f"{path}: no such option file.{_suggestion(given, shipped)}")
    if found.is_dir():
        files = sorted(file.name for file in found.glob("*.yml"))
        raise UserError(f"{path}: is a folder, an option file was expected ({', '.join(files) or 'no *.yml in it'})")
    return found


def missing(path: str | Path) -> str:
    """Say that a path does not exist, where it was looked for, and what lies nearby under a similar name."""
    given = Path(path).expanduser()
    absent = given
    while not absent.parent.exists():  # ends at the root or at '.'
        absent = absent.parent
    place = "" if given.is_absolute() else f" in {Path.cwd()}"
    reason = "does not exist" if absent == given else f"does not exist (there is no {str(absent)!r}{place})"
    return f"{reason}.{_suggestion(absent)}"


def closest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that ``did_you_mean`` would offer."""
    hint = did_you_mean(name, choices)
    return hint[hint.index("'") + 1 : hint.rindex("'")] if hint else None


def _suggestion(path: Path, shipped: Iterable[str] = ()) -> str:
    folder = path.parent
    neighbours = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    close = closest(path.name, neighbours)
    if close:
        return f" Did you mean '{folder / close}'?"
    by_name = {PurePath(file).name: file for file in shipped}
    close = closest(path.name, by_name)
    return f" Did you mean '{by_name[close]}', which is installed?" if close else ""
