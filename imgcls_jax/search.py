"""Finds images by what is in them: those that are nearest to an image, and those that are nearly the same.

python -m imgcls_jax.search build --workdir=W INPUT... --index=I [--step=N] [--ema] [--recursive]
python -m imgcls_jax.search query --index=I IMAGE... [--top_k=12] [--html=out.html] [--json] [--workdir=W]
python -m imgcls_jax.search duplicates --index=I [--threshold=0.02] [--html=out.html] [--json]

build       puts images into the index I, by the features that the model of a run has of them. INPUT is a file, a
            folder, a pattern such as 'photos/*.jpg', or - for a list of files on standard input. Done again it embeds
            what is new or has changed (another size or time of the last change), drops what is gone from the disk, and
            leaves the rest alone, also what INPUT does not name. If it is killed, the same command continues it.
query       shows the images of the index that are nearest to an image, which need not be one of them.
duplicates  shows groups of images that lie within a distance of each other, directly or by way of others in the group.

A distance is one less the cosine of two images' features: 0 is the same, 1 has nothing in common. --json prints an
object a line, for an image or for a group; --html writes a page with pictures, one file that needs no other.

Exit codes: 0 done; 3 the index is built but for images that cannot be read; 1 another error; 2 bad command line.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from imgcls_jax import cli, predictions, search_index, writers
from imgcls_jax import config as config_lib
from imgcls_jax.predictions import Record
from imgcls_jax.search_index import Image, Index
from imgcls_jax.types import ConfigError, PyTree, UserError

if TYPE_CHECKING:
    from imgcls_jax.build import Run
    from imgcls_jax.inference import Answer

COMMANDS = ("build", "query", "duplicates")

USAGE = (
    "Usage: python -m imgcls_jax.search build --workdir=W INPUT... --index=I, query --index=I IMAGE..., or "
    "duplicates --index=I; see --help."
)

DISTANCE = "A distance is one less the cosine of two images' features: 0 is the same, 1 has nothing in common."

# Groups of duplicates on a page, and pictures of each; --json has them all.
MAX_GROUPS, MAX_TILES = 200, 24


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    command = argv[0] if argv and argv[0] in COMMANDS else ""
    values = _flags(command)
    inputs = cli.parse(values, ["search", *argv[bool(command) :]])
    if not command or values.index is None or bool(inputs) == (command == "duplicates"):
        raise ConfigError(USAGE)
    return {"build": build_main, "query": query_main, "duplicates": duplicates_main}[command](values, inputs)


def _flags(command: str) -> flags.FlagValues:
    """The flags of a command; without one those of all."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may stand after inputs
    flags.DEFINE_string("index", None, "folder of the index", flag_values=values)
    if command != "duplicates":
        flags.DEFINE_string(
            "workdir", None, "the run's work directory; query: if it has been moved since", flag_values=values
        )
    if command in ("build", ""):
        flags.DEFINE_integer("step", None, "build: checkpoint to use; the newest by default", flag_values=values)
        flags.DEFINE_boolean("ema", False, "build: use the averaged weights", flag_values=values)
        flags.DEFINE_boolean("recursive", False, "build: read the folders within a folder too", flag_values=values)
    if command in ("query", ""):
        flags.DEFINE_integer("top_k", 12, "query: how many images to show", lower_bound=1, flag_values=values)
    if command in ("duplicates", ""):
        text = "duplicates: the largest distance"
        flags.DEFINE_float("threshold", 0.02, text, lower_bound=0.0, upper_bound=2.0, flag_values=values)
    if command != "build":
        flags.DEFINE_string("html", None, "query, duplicates: page to write", flag_values=values)
        flags.DEFINE_boolean("json", False, "query, duplicates: print JSON, an object a line", flag_values=values)
    return values


def build_main(values: flags.FlagValues, inputs: Sequence[str]) -> int:
    """Makes an index, or brings it up to date. Returns the exit code."""
    if values.workdir is None:
        raise ConfigError(USAGE)
    from imgcls_jax.data.inputs import STDIN, image_files

    search_index.faiss()  # before hours of work
    workdir, folder = Path(values.workdir), Path(values.index)
    config = config_lib.read(workdir / "config.json")
    listed = sys.stdin.buffer.read() if STDIN in inputs else b""
    files = image_files(inputs, recursive=values.recursive, listed=listed)

    from imgcls_jax import build, platform, workdirs

    platform.initialize()
    run = build.build(config)
    step, variables = workdirs.restore_variables(run.abstract_state, workdir, values.step, ema=values.ema)
    mark = search_index.fingerprint(config, variables)
    model = search_index.Model(str(workdir.absolute()), step, values.ema, mark)
    with search_index.locked(folder):
        index = Index.open(folder) if search_index.exists(folder) else None
        if index is not None and index.model.fingerprint != mark:
            raise UserError(
                f"{folder} is of another model, {index.model}, than {model}: name another --index, or that --workdir "
                "and --step, or delete the folder to build it anew."
            )
        progress = writers.Progress()
        changes = update(run, variables, model, index, files, folder, progress)
    for path, reason in changes.failed.items():
        progress.line(f"{_shown(path)}: {reason}")
    progress.line(f"{changes}; the index is {folder}")
    return cli.SOME_FAILED if changes.failed else 0


@dataclasses.dataclass(frozen=True)
class Changes:
    """What a build has made of an index.

    Attributes:
      added: images that are new.
      changed: images that were embedded again.
      dropped: images that are gone, or cannot be read any more.
      kept: images that were left alone.
      failed: why, by path, of those that cannot be read.
    """

    added: int
    changed: int
    dropped: int
    kept: int
    failed: Mapping[str, str]

    def __str__(self) -> str:
        counts = f"{self.added:,} added, {self.changed:,} changed, {self.dropped:,} dropped, {self.kept:,} kept"
        total = self.added + self.changed + self.kept
        return f"{total:,} images: {counts}; {len(self.failed):,} could not be read"


def update(
    run: Run,
    variables: PyTree,
    model: search_index.Model,
    index: Index | None,
    files: Sequence[str],
    folder: Path,
    progress: writers.Progress,
) -> Changes:
    """Brings an index up to date with image files, and writes it; `folder` is locked and `model` the index's.

    Size and time of the last change say whether a file is another one, as they do for make and rsync: to hash the
    content would be to read every file of the collection each time. They are taken before the file is read, so that
    what is changed meanwhile is found the next time.

    Raises:
      UserError: if there is no index yet and no image to make one of.
    """
    now = {path: _look(path) for path in map(os.path.abspath, files)}
    rows = {image.path: row for row, image in enumerate(index.images)} if index is not None else {}
    todo = [path for path in now if index is None or path not in rows or now[path] != index.images[rows[path]]]
    gone = [row for path, row in rows.items() if path not in now and _is_gone(path)]
    found = _embed(run, variables, model, now, todo, folder / "new", progress)
    good = {path: vector for path, vector in found.items() if isinstance(vector, np.ndarray)}
    failed = {path: reason for path, reason in found.items() if isinstance(reason, str)}
    if index is None:
        if not good:
            _journal(folder / "new").unlink()
            path, reason = next(iter(failed.items()))
            raise UserError(
                f"None of {len(found):,} images can be read ({_shown(path)}: {reason}), so that there is nothing to "
                f"make the index {folder} of; name some that can."
            )
        index = Index(model, len(next(iter(good.values()))))
    index.drop(gone + [rows[path] for path in todo if path in rows])
    kept = len(index)
    # What could not be looked at could not be read either: it has failed.
    index.add([image for path in good if (image := now[path])], np.array(list(good.values())))
    if todo or gone or index.model != model:
        index.model = model
        index.save(folder)
    _journal(folder / "new").unlink()
    changed, lost = (sum(path in rows for path in part) for part in (good, failed))
    return Changes(len(good) - changed, changed, len(gone) + lost, kept, failed)


def _embed(
    run: Run,
    variables: PyTree,
    model: search_index.Model,
    now: Mapping[str, Image | None],
    todo: Sequence[str],
    output: Path,
    progress: writers.Progress,
) -> dict[str, np.ndarray | str]:
    """The features [D] float32 of each file of `todo`, or why there are none, in that order.

    They stand in a journal, OUTPUT.partial, from which the next call goes on after a kill. What it says of a file that
    is not as it was is not used.
    """
    from imgcls_jax import inference

    size = inference.batch_size(run, len(todo))
    partial = predictions.Partial(output, {"model": model.fingerprint}, batch_size=size, num_images=len(todo))

    def records() -> Iterator[Record]:
        """Those that are of use."""
        wanted = set(todo)
        for record in partial.records():
            if record["path"] in wanted and record["file"] == _state(now[record["path"]]):
                yield record

    try:
        done = {record["path"] for record in records()}
        if done:
            progress.line(f"{partial.path} has {len(done):,} of {len(todo):,} images; it is continued.")
        pace, count = writers.Pace(progress, len(todo)), len(done)
        for answers in features_of(run, variables, [path for path in todo if path not in done], size):
            partial.add(_record(answer, now[answer.path]) for answer in answers)
            count += len(answers)
            pace.update(count)
        found = {record["path"]: _features(record) for record in records()}
    finally:
        partial.close()
    return {path: found[path] for path in todo}


def features_of(run: Run, variables: PyTree, files: Sequence[str], batch_size: int) -> Iterator[list[Answer]]:
    """The pooled features of image files, one array [D] float32 of each, a batch of files at a time."""
    from imgcls_jax import inference
    from imgcls_jax.representation import features

    step = features.model_step(run, variables)
    if files:
        yield from inference.answers(run, files, lambda batch: (step(batch)["value"],), batch_size)


def _state(image: Image | None) -> list[int] | None:
    return None if image is None else [image.size, image.mtime_ns]


def _record(answer: Answer, image: Image | None) -> Record:
    """A line of the journal."""
    record: Record = {"path": answer.path, "file": _state(image)}
    if error := _problem(answer):
        return record | {"error": error}
    return record | {"vector": base64.b64encode(answer.values[0].astype("<f4").tobytes()).decode()}


def _features(record: Record) -> np.ndarray | str:
    return record["error"] if "error" in record else np.frombuffer(base64.b64decode(record["vector"]), "<f4")


def _problem(answer: Answer) -> str | None:
    """Why an image has no features to search by; None if it has."""
    if answer.error is None and not np.isfinite(answer.values[0]).all():
        return "the model's features of it are not finite"
    return answer.error


def _journal(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def _look(path: str) -> Image | None:
    """The file as it is now; None if that cannot be told, which reading it will explain."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Image(path, found.st_size, found.st_mtime_ns)


def _is_gone(path: str) -> bool:
    """Whether there is no such file, and not only no way to it for now, such as a missing permission."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def query_main(values: flags.FlagValues, inputs: Sequence[str]) -> int:
    """Shows the images nearest to some. Returns 0."""
    from imgcls_jax.data.inputs import image_files

    files = image_files(inputs)
    index = Index.open(Path(values.index))

    from imgcls_jax import inference, platform

    platform.initialize()
    run, variables = restored(index, Path(values.index), values.workdir)
    batches = features_of(run, variables, files, inference.batch_size(run, len(files)))
    answers = [answer for batch in batches for answer in batch]
    good = [answer for answer in answers if _problem(answer) is None]
    bad = [answer for answer in answers if _problem(answer) is not None]
    if good:
        distances, rows = index.query(np.stack([answer.values[0] for answer in good]), values.top_k)
        found = [
            (answer.path, [(index.images[row].path, _digits(d)) for d, row in zip(*pair, strict=True)])
            for answer, *pair in zip(good, distances, rows, strict=True)
        ]
        with cli.whole_output():
            _print_neighbours(found, as_json=values.json)
        if values.html is not None:
            _write_neighbours(found, index, Path(values.html))
    if bad:
        more = f" (and {len(bad) - 1} more of {len(answers)})" if len(bad) > 1 else ""
        rest = "; the other images are answered" if good else "; name an image that can be read"
        raise UserError(f"Cannot read {_shown(bad[0].path)}: {_problem(bad[0])}{more}{rest}.")
    return 0


def restored(index: Index, folder: Path, workdir: str | None) -> tuple[Run, PyTree]:
    """The model that an index is of, and its variables.

    Raises:
      UserError: if it is not there any more, or another one is in its place.
    """
    from imgcls_jax import build, workdirs

    where = Path(workdir or index.model.workdir)
    config = config_lib.read(where / "config.json")
    run = build.build(config)
    try:
        _, variables = workdirs.restore_variables(run.abstract_state, where, index.model.step, ema=index.model.ema)
    except UserError as error:
        reason = str(error).removesuffix(".")
        raise UserError(f"{reason}; the index {folder} is of step {index.model.step}: build it anew.") from error
    if search_index.fingerprint(config, variables) != index.model.fingerprint:
        raise UserError(
            f"{folder} is of another model than {where} has at step {index.model.step}: give the --workdir of the one "
            f"it was built with ({index.model.workdir} then), or delete the index and build it anew."
        )
    return run, variables


# An image's path, and those of its neighbours with their distances.
Found = tuple[str, list[tuple[str, float]]]


def _print_neighbours(found: Iterable[Found], *, as_json: bool) -> None:
    for path, neighbours in found:
        if as_json:
            print(json.dumps({"path": path, "neighbours": [{"path": p, "distance": d} for p, d in neighbours]}))
            continue
        print(_shown(path))
        for neighbour, distance in neighbours:
            print(f"  {distance:.4f}  {_shown(neighbour)}")


def _write_neighbours(found: Iterable[Found], index: Index, output: Path) -> None:
    from imgcls_jax.report import neighbours
    from imgcls_jax.report.neighbours import Section, tile

    sections = [
        Section(_shown(os.path.basename(path)), tuple(tile(p, f"distance {d:.4f}") for p, d in near), tile(path))
        for path, near in found
    ]
    notes = [f"{len(index):,} images, by the features of {index.model}.", DISTANCE]
    neighbours.write("Nearest images", notes, sections, output)


def duplicates_main(values: flags.FlagValues, inputs: Sequence[str]) -> int:
    """Shows groups of images that are nearly the same. Returns 0."""
    del inputs
    index = Index.open(Path(values.index))
    progress = writers.Progress()
    groups = index.duplicates(values.threshold, writers.Pace(progress, len(index)).update)
    with cli.whole_output():
        for rows in groups:
            members = _members(index, rows)
            if values.json:
                print(json.dumps({"images": [{"path": path, "distance": d} for path, d in members]}))
                continue
            print(f"{len(rows):,} images")
            for path, distance in members:
                print(f"  {distance:.4f}  {_shown(path)}")
    if values.html is not None:
        _write_duplicates(index, groups, values.threshold, Path(values.html))
    extra = sum(len(rows) - 1 for rows in groups)
    progress.line(
        f"{len(groups):,} groups at distance {values.threshold:g} or less; {extra:,} of {len(index):,} images have "
        "another one before them."
    )
    return 0


def _members(index: Index, rows: np.ndarray) -> list[tuple[str, float]]:
    """The images of a group, each with its distance from the first."""
    distances = index.distances(rows[0], rows)
    return [(index.images[row].path, _digits(d)) for row, d in zip(rows, distances, strict=True)]


def _write_duplicates(index: Index, groups: Sequence[np.ndarray], threshold: float, output: Path) -> None:
    from imgcls_jax.report import neighbours
    from imgcls_jax.report.neighbours import Section, tile

    sections = []
    for rows in groups[:MAX_GROUPS]:
        members = _members(index, rows[:MAX_TILES])
        note = f"The first {MAX_TILES} of them; --json has all." if len(rows) > MAX_TILES else ""
        tiles = tuple(tile(path, f"distance {d:.4f}") for path, d in members)
        sections.append(Section(f"{len(rows):,} images", tiles, note=note))
    notes = [
        f"{len(groups):,} groups of {len(index):,} images lie within a distance of {threshold:g}, by the features of "
        f"{index.model}. The distances are from the first of a group.",
        DISTANCE,
    ]
    if len(groups) > MAX_GROUPS:
        notes.append(f"The {MAX_GROUPS} largest groups are shown; --json has all.")
    neighbours.write("Images that are nearly the same", notes, sections, output)


def _digits(distance: np.float32) -> float:
    """The digits that a float32 has, and no more."""
    return float(str(distance))


def _shown(path: str) -> str:
    from imgcls_jax.data.pipeline import printable

    return printable(path)


if __name__ == "__main__":
    cli.program(main)
