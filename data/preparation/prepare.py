"""Convert parts of public datasets to LMDBs or folders of pairs, in parallel and resumably, and check the results.

A part is written to ``<part>.partial`` in the folder of its set and moved when it is complete. An existing part that
was created from the same files with the same settings is kept.
"""

from __future__ import annotations

import multiprocessing
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, field
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

from tqdm import tqdm

from restormixer_arch.data.preparation.find_pairs import Found, Unit
from restormixer_arch.data.preparation.journal import Journal, recipe_of, settings_of
from restormixer_arch.data.preparation.store import STORES, Store, difference, image_key, open_reader, place, remove
from restormixer_arch.data.preparation.sub_images import Prepared, Recipe, prepare_units, start_worker
from restormixer_arch.errors import UserError
from restormixer_arch.folder_lock import locked
from restormixer_arch.output import PART, rename

JOURNAL = "journal.jsonl"  # in the folder of an unfinished part
CHUNK = 16  # maximum number of units that a worker processes, and that are written, at a time
CHUNK_BYTES = 2**23  # maximum total size of several units' files: JPEGs, cut and as PNG, grow to 20 times that
CHUNKS_PER_WORKER = 3  # pending chunks per worker: more would accumulate in memory if the disk is slow
MAX_LISTED = 5  # maximum number of listed problems of one kind
MAX_WORKERS = 61 if sys.platform == "win32" else 2**16  # Windows cannot wait for more processes
NOT_MADE_HERE = "already exists and was not created by this command"
WORKER = "PoolWorker"  # in process names: restormixer_arch/cli/__init__.py does not load torch in these processes


@dataclass(frozen=True)
class Job:
    """A part to prepare, with its recipe and destination.

    Args:
        found: images of the part.
        recipe: settings of the preparation.
        form: output format, ``lmdb`` or ``folder``.
        folder: folder of the set, in which the part's LMDBs or folders are created.
    """

    found: Found
    recipe: Recipe
    form: str
    folder: Path

    @property
    def kinds(self) -> list[str]:
        """The kinds of images that are created, the clean ones first."""
        kinds = dict.fromkeys(kind for unit in self.found.units for kind, _, _ in unit.degraded)
        return ["gt", *kinds, *(f"x{scale}_lq" for scale in self.recipe.scales)]

    @property
    def places(self) -> dict[str, Path]:
        """Kind -> LMDB or folder."""
        return {kind: place(self.folder, self.found.part.name, kind, self.form) for kind in self.kinds}

    @property
    def record(self) -> Path:
        return self.folder / f"{self.found.part.name}.jsonl"

    @property
    def partial(self) -> Path:
        return self.folder / f"{self.found.part.name}.partial"


@dataclass
class Summary:
    """The result for a part: images and bytes by kind, smallest and largest clean image, skipped pairs."""

    job: Job
    images: dict[str, int] = field(default_factory=dict)
    content: dict[str, int] = field(default_factory=dict)
    sizes: tuple[list[int], list[int]] | None = None
    skipped: list[str] = field(default_factory=list)
    resumed: int = 0
    seconds: float = 0.0
    was_there: bool = False


def prepare_part(job: Job, workers: int, skip_bad: bool = False) -> Summary:
    """Prepare a part.

    Args:
        job: part to prepare.
        workers: number of worker processes; with fewer than two, this process does all the work.
        skip_bad: whether to skip pairs that cannot be read or differ in size, instead of stopping at the first.

    Raises:
        UserError: if a pair is invalid, two images would be stored under the same name, the destination contains
            something else, another process writes to it, or a worker process was killed.
    """
    with locked(job.folder, "another --out"):
        return _prepare_part(job, workers, skip_bad)


def _prepare_part(job: Job, workers: int, skip_bad: bool) -> Summary:
    began = time.monotonic()
    settings = settings_of(job.recipe, job.form)
    journal = Journal(job.partial / JOURNAL, settings)
    if journal.finished and journal.has_settings():
        _move(job, journal)  # it was interrupted during the last step
    if _is_prepared(job, settings):
        summary = _summary(job, Journal(job.record, settings))
        summary.was_there = True
        return summary
    if not _can_resume(job, journal):
        _clear_partial(job)
        journal.clear()
    job.partial.mkdir(parents=True, exist_ok=True)
    journal.start()
    left = [unit for unit in job.found.units if unit.name not in journal.records]
    _write(job, journal, left, workers, skip_bad)
    if not journal.made():
        journal.close()
        raise UserError(f"{job.found.folders[0]}: none of {len(left)} pairs could be used: {journal.skipped()[0]}")
    journal.finish()
    _move(job, journal)
    summary = _summary(job, journal)
    summary.resumed, summary.seconds = len(job.found.units) - len(left), time.monotonic() - began
    return summary


def _can_resume(job: Job, journal: Journal) -> bool:
    """Return whether there is an unfinished part with undamaged LMDBs that this job can resume."""
    begun = journal.records and not journal.finished and journal.fits(job.found.units)
    return begun and all(STORES[job.form].can_resume(job.partial / kind) for kind in job.kinds)


def _clear_partial(job: Job) -> None:
    """Remove what another preparation started. Raises UserError if the folder was not created by this command."""
    if not job.partial.is_dir():
        return
    if not (job.partial / JOURNAL).is_file() and any(not PART.match(path.name) for path in job.partial.iterdir()):
        raise UserError(
            f"{job.partial}: was not created by this command and is in the way; rename it, or choose another --out"
        )
    remove(job.partial)


def check_part(job: Job, workers: int) -> tuple[int, list[str]]:
    """Compare prepared images with their sources. Returns the number of images and a line for each problem.

    Images are prepared again, with the settings recorded next to them if there are any, and compared by content.

    Raises:
        UserError: if an LMDB is missing or not in BasicSR's format, or a worker process was killed.
    """
    record = Journal(job.record, {})
    recipe = recipe_of(record.found_settings) if record.found_settings else job.recipe
    known = Job(job.found, recipe, job.form, job.folder)
    readers = {kind: open_reader(path, job.form) for kind, path in known.places.items()}
    left = {kind: set(reader.names) for kind, reader in readers.items()}
    skipped = {name for name, unit in record.records.items() if "skipped" in unit}
    count, problems = 0, []
    for outcomes in _outcomes(known.found.units, recipe, workers, f"check {job.found.shown}"):
        for outcome in outcomes:
            if outcome.problem:
                problems += [outcome.problem] * (outcome.unit.name not in skipped)
            for kind, entries in outcome.entries.items():
                for entry in entries:
                    count += 1
                    listed = entry.key in left[kind]
                    left[kind].discard(entry.key)
                    wrong = difference(readers[kind], entry) or ("" if listed else "is not listed")
                    if wrong:
                        problems.append(f"{known.places[kind]}: image {entry.key!r} {wrong} (of {outcome.unit.gt})")
    for kind, names in left.items():
        if names:
            text = f"{len(names)} images have no source, the first is {min(names)!r}"
            problems.append(f"{known.places[kind]}: {text}")
    return count, problems


def _is_prepared(job: Job, settings: dict[str, object]) -> bool:
    """Return whether the complete part from the same files exists. Raises UserError if something else is in the way."""
    paths, why = conflicting_paths(job, settings)
    if paths:
        raise destination_error(paths, why)
    return job.places["gt"].exists()


def destination_error(paths: Sequence[Path], why: str) -> UserError:
    """Return the error that names all folders of a set that must be removed before it can be prepared."""
    *others, last = ["it", *(path.name for path in paths[1:])]
    it = f"{', '.join(others)} and {last}" if others else last
    if why == NOT_MADE_HERE:
        return UserError(f"{paths[0]}: {why}; choose another --out or, if they are not originals, remove {it}")
    return UserError(f"{paths[0]}: {why}; remove {it}, or choose another --out, to prepare it again")


def conflicting_paths(job: Job, settings: dict[str, object] | None = None) -> tuple[list[Path], str]:
    """Return the LMDBs and folders of a part that were not created by this job, and the reason.

    They include kinds and formats that the job does not create: a later training run would use them.
    There are none if the part is complete and from the same files, or if it only has to be moved.
    """
    settings = settings or settings_of(job.recipe, job.form)
    places = list(job.places.values())
    own = [path for path in places if path.exists()]
    record = Journal(job.record, settings)
    whole = len(own) == len(places) and record.fits(job.found.units, whole=True)
    moving = Journal(job.partial / JOURNAL, settings)
    if whole or (moving.finished and moving.has_settings()):
        return [], ""
    there = [*own, *(path for path in paths_of_part(job.folder, job.found.part.name) if path not in places)]
    why = NOT_MADE_HERE
    if record.fits(job.found.units, whole=True):
        why = f"was prepared, but {next(path.name for path in places if path not in own)} is missing"
    elif record.found_settings is not None:
        why = "was prepared from other files, or they have changed since"
        if record.found_settings.get("version") != settings["version"]:
            why = "was prepared by an earlier version, or from other files, or they have changed since"
        changed = [
            key for key, value in settings.items() if key != "version" and record.found_settings.get(key) != value
        ]
        if changed:
            old, new = ({key: known.get(key) for key in changed} for known in (record.found_settings, settings))
            why = f"was prepared with other settings ({old}, now {new})"
    return there, why if there else ""


def paths_of_part(folder: Path, part: str) -> list[Path]:
    """Return all LMDBs and folders of a part in the folder of a set, of any kind and format."""
    kinds = re.compile(rf"{re.escape(part)}_(gt|(x\d+_)?lq)(\.lmdb)?")
    return sorted(path for path in folder.iterdir() if kinds.fullmatch(path.name)) if folder.is_dir() else []


def _write(job: Job, journal: Journal, left: Sequence[Unit], workers: int, skip_bad: bool) -> None:
    stores: dict[str, Store] = {}
    taken = {
        (kind, image_key(line)): record["unit"]
        for record in journal.made()
        for kind, lines in record["images"].items()
        for line in lines
    }
    try:
        for kind in job.kinds:
            stores[kind] = STORES[job.form](job.partial / kind)
        with closing(_outcomes(left, job.recipe, workers, f"prepare {job.found.shown}")) as prepared:
            for outcomes in prepared:
                bad = [outcome for outcome in outcomes if outcome.problem]
                if bad and not skip_bad:
                    raise UserError(bad[0].problem)
                _check_keys(outcomes, taken)
                for kind, store in stores.items():
                    store.put([entry for outcome in outcomes for entry in outcome.entries.get(kind, ())])
                journal.add(outcomes)
    except BaseException:
        journal.close()
        for store in stores.values():
            store.close_unfinished()
        raise
    for kind, store in stores.items():
        store.close(journal.lines(kind))


def _check_keys(outcomes: Iterable[Prepared], taken: dict[tuple[str, str], str]) -> None:
    """Add the images to ``taken``, (kind, key) -> unit. Raises UserError if one would overwrite another."""
    for outcome in outcomes:
        for kind, entries in outcome.entries.items():
            for entry in entries:
                other = taken.setdefault((kind, entry.key), outcome.unit.name)
                if other != outcome.unit.name:
                    raise UserError(
                        f"{outcome.unit.gt}: would be stored as {entry.key!r} ({kind}), and so would a part of "
                        f"{other!r}; rename one of them"
                    )


def _move(job: Job, journal: Journal) -> None:
    """Move a complete part to its destination; can be repeated after an interruption."""
    for kind, path in job.places.items():
        if (job.partial / kind).exists():
            rename(job.partial / kind, path)
    rename(journal.path, job.record)
    remove(job.partial)


def _outcomes(units: Sequence[Unit], recipe: Recipe, workers: int, title: str) -> Iterator[list[Prepared]]:
    """Yield the prepared units in order, several at a time, and show a progress bar if there is a terminal.

    Raises:
        UserError: if a worker process was killed.
    """
    chunks = list(_chunks(units))
    shown = sys.stderr.isatty()
    with tqdm(total=len(units), desc=title, unit="pair", disable=not shown, dynamic_ncols=True) as bar:
        if workers < 2 or len(chunks) < 2:
            results = (prepare_units(chunk, recipe) for chunk in chunks)
            for outcomes in results:
                yield outcomes
                bar.update(len(outcomes))
            return
        for outcomes in _parallel(chunks, recipe, min(workers, len(chunks), MAX_WORKERS)):
            yield outcomes
            bar.update(len(outcomes))


def _chunks(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Yield the units in order, several at a time; a large one is yielded alone."""
    chunk: list[Unit] = []
    content = 0
    for unit in units:
        size = sum(path.stat().st_size for path in unit.files if path.is_file())
        if chunk and (len(chunk) >= CHUNK or content + size > CHUNK_BYTES):
            yield chunk
            chunk, content = [], 0
        chunk.append(unit)
        content += size
    if chunk:
        yield chunk


class _Workers(SpawnContext):
    """A context that spawns worker processes: forking is not safe with threads, which torch and OpenCV start."""

    @staticmethod
    def Process(*args: Any, **kwargs: Any) -> SpawnProcess:  # noqa: N802, the name that is asked for
        return SpawnProcess(*args, name=WORKER, **kwargs)


def _parallel(chunks: Sequence[Sequence[Unit]], recipe: Recipe, workers: int) -> Iterator[list[Prepared]]:
    """Yield the outcomes of chunks in order, using several processes. Raises UserError if one was killed."""
    waiting: deque = deque()
    with ProcessPoolExecutor(workers, _Workers(), start_worker) as pool:
        try:
            for chunk in chunks:
                waiting.append(pool.submit(prepare_units, chunk, recipe))
                if len(waiting) >= CHUNKS_PER_WORKER * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise UserError("a process was killed; if the memory ran out, lower --workers") from error
        except BaseException:  # do not wait for pending chunks
            for child in multiprocessing.active_children():
                if child.name == WORKER:
                    child.terminate()
            raise


def _summary(job: Job, journal: Journal) -> Summary:
    made = journal.made()
    summary = Summary(job, skipped=journal.skipped())
    for kind in job.kinds:
        summary.images[kind] = sum(len(record["images"].get(kind, ())) for record in made)
        summary.content[kind] = sum(record["bytes"].get(kind, 0) for record in made)
    if made:
        summary.sizes = (min(record["sizes"][0] for record in made), max(record["sizes"][1] for record in made))
    return summary
