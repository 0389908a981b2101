"""One self-contained HTML page about a run, or several: what they scored, how they got there, where they are wrong.

Everything is in the file: no network, no other file. Numbers come from W/eval/*.json, curves from W/metrics.jsonl, the
pictures from the data set, by the record numbers in W/eval/*.predictions.npz. What is missing is a sentence in its
place.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgcls_jax import atomic
from imgcls_jax.types import UserError

if TYPE_CHECKING:
    from imgcls_jax.build import Run
    from imgcls_jax.data.sources import Source
    from imgcls_jax.report.overlays import Overlays
    from imgcls_jax.report.recorded import Recorded
    from imgcls_jax.state import TrainState


@dataclasses.dataclass(frozen=True)
class AtHand:
    """What a run that has just ended leaves in memory: its objects and its last state."""

    run: Run
    state: TrainState


def write_at_end(run: Run, workdir: Path, state: TrainState) -> None:
    """Writes W/report.html of a run that has just ended; one warning line if that fails: the run has not."""
    try:
        write([workdir], workdir / "report.html", at_hand={workdir: AtHand(run, state)})
    except Exception as error:  # whatever it is, the run is done and saved
        print(f"warning: {workdir / 'report.html'} was not written ({type(error).__name__}: {error}).", file=sys.stderr)


def write(workdirs: Sequence[Path], output: Path, *, at_hand: Mapping[Path, AtHand] | None = None) -> None:
    """Writes the report of runs to a file, atomically.

    Args:
      workdirs: of the runs; the first is what the others are compared with.
      output: the HTML file.
      at_hand: of runs that have just ended, which wait for the report: overlays that take long are left out. The
        others' objects are built, and their weights restored, when needed.

    Raises:
      UserError: if one is not a work directory, or a file in it is damaged.
    """
    from imgcls_jax.report import recorded

    runs = recorded.read(workdirs)
    save(_render(runs, [_pictures(run, (at_hand or {}).get(run.workdir)) for run in runs]), output)


def save(text: str, output: Path) -> None:
    """Writes a page, atomically."""
    with atomic.replacing(output) as path:
        path.write_bytes(text.encode(errors="replace"))  # names of classes and files may be bytes that are no text


def render(template: str, **values: Any) -> str:
    """The text of a page: a template of this folder, filled in, with the style that all have."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("imgcls_jax", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    css = (Path(__file__).parent / "page.css").read_text()
    return environment.get_template(template).render(css=css, **values)


def _render(runs: Sequence[Recorded], pictures: Sequence[dict[str, Any]]) -> str:
    from imgcls_jax import diagnosis, evaluate, writers
    from imgcls_jax.report import figures, recorded

    return render(
        "page.html.j2",
        runs=runs,
        pictures=pictures,
        details=[[_details(result) for result in run.evaluations.values()] for run in runs],
        values=evaluate.values,
        headlines=_headlines(runs),
        warnings=[(run.name, text) for run in runs for text in recorded.warnings(run)],
        overfitting_rule=diagnosis.RULE,
        comparisons=_comparisons(runs),
        curves={"runs": [run.name for run in runs], "charts": figures.charts([run.events for run in runs])},
        differences=recorded.differences(runs),
        settings=recorded.settings,
        training_seconds=recorded.training_seconds,
        duration=writers.duration,
        script=(Path(__file__).parent / "page.js").read_text(),
    )


def _headlines(runs: Sequence[Recorded]) -> list[str]:
    """Names of the numbers that come first: of `evaluate.values`, those that any run has."""
    from imgcls_jax import evaluate

    found = {name for run in runs for result in run.evaluations.values() for name in evaluate.values(result)}
    top = sorted((name for name in found if name.startswith("top")), key=lambda name: int(name[3:]))
    others = ("map", "exact_match", "f1_micro", "balanced_accuracy", "f1_macro", "nll", "calibrated_nll", "ece")
    several = any(result["task"] == "multilabel" for run in runs for result in run.evaluations.values())
    return top + [name for name in others if name in found and (several or name != "f1_micro")]


def _comparisons(runs: Sequence[Recorded]) -> list[dict[str, Any]]:
    """Paired differences of each run from the first, by evaluation that both have; `problem` where there are none."""
    from imgcls_jax import evaluate

    rows = []
    for run in runs[1:]:
        for name in [name for name in runs[0].evaluations if name in run.evaluations]:
            row: dict[str, Any] = {"run": run.name, "evaluation": name, "problem": ""}
            try:
                first, second = (evaluate.read_predictions(r.workdir, name) for r in (runs[0], run))
                row |= evaluate.compare(first, second)
            except UserError as error:
                row["problem"] = str(error)
            rows.append(row)
    return rows


def _details(result: dict[str, Any]) -> dict[str, Any]:
    """The confusion matrix of an evaluation: the cells' shares, a picture where there are too many, and the pairs.

    And the rows of the classes, of many those with the lowest F1.
    """
    import numpy as np

    from imgcls_jax.report import figures, pictures

    matrix, classes = result.get("confusion_matrix"), figures.listed_classes(result["per_class"])
    if not matrix:
        return {"pairs": [], "shares": None, "heat_map": None, "classes": classes}
    counts, names = np.array(matrix), [row["class"] for row in result["per_class"]]
    shares, named = figures.shares(counts), len(names) <= figures.MAX_NAMED_CLASSES
    return {
        "pairs": figures.confused_pairs(counts, names),
        "shares": shares.tolist() if named else None,
        "heat_map": None if named else pictures.heat_map(figures.shrink(shares, figures.MAX_CELLS)),
        "classes": classes,
    }


def _pictures(run: Recorded, at_hand: AtHand | None) -> dict[str, Any]:
    """What needs the data set or the model: galleries by evaluation (with what to say of them), augmentation, cost.

    A data set that is not there, on the machine where the report is made, costs the pictures: `problem` says so.
    """
    from imgcls_jax import build, evaluate
    from imgcls_jax.models import cost
    from imgcls_jax.report import pictures

    found: dict[str, Any] = {"galleries": {}, "augmented": [], "cost": None, "problem": ""}
    try:
        built = at_hand.run if at_hand else build.build(run.config)
        found["cost"] = cost.count(built.model, build.image_shape(run.config))
        found["augmented"] = pictures.augmented(built)
    except UserError as error:
        return found | {"problem": str(error)}
    for name, result in run.evaluations.items():
        try:
            predictions = evaluate.read_predictions(run.workdir, name)
            source = _source(built, predictions)
            chosen = [pictures.choose(predictions, right=right) for right in (False, True)]
            explained, note = _overlays(run, built, at_hand, result, source, predictions, chosen[0] + chosen[1])
            tiles = [pictures.gallery(source, predictions, part, explained) for part in chosen]
            found["galleries"][name] = (note, [(*_TITLES["confidence" in predictions][i], tiles[i]) for i in (0, 1)])
        except UserError as error:  # this data set is not here; the others may be
            found["galleries"][name] = (str(error), [])
    return found


def _source(built: Run, predictions: Mapping[str, Any]) -> Source:
    """The split that an evaluation was made on."""
    from imgcls_jax.data import sources

    name, split = str(predictions["data"]), str(predictions["split"])
    if name == built.spec.name:
        return built.open_split(split)
    return sources.open_source(name, split, data_dir=built.config.data.data_dir)  # the run was asked about other data


# (title, what to say if it is empty) of the mistakes and of the hits, by whether a confidence orders them.
_TITLES = {
    True: (("Most confident mistakes", "There is no mistake."), ("Least confident hits", "There is no hit.")),
    False: (
        ("Mistakes with the largest loss", "There is no mistake."),
        ("Hits with the largest loss", "There is no hit."),
    ),
}

_METHODS = {
    "gradcam": "Beside each, where the model looks for the class it predicts (Grad-CAM).",
    "rollout": "Beside each, where the model looks (attention rollout).",
    "occlusion": "Beside each, where hiding a part takes away from the class it predicts (occlusion).",
}


def _overlays(
    run: Recorded,
    built: Run,
    at_hand: AtHand | None,
    result: Mapping[str, Any],
    source: Source,
    predictions: Mapping[str, Any],
    chosen: Sequence[int],
) -> tuple[Overlays | None, str]:
    """Overlays of the chosen examples of an evaluation, or None, and what to say: how they are made or why not."""
    import jax

    from imgcls_jax.report import overlays, pictures

    try:
        if at_hand:
            overlays.check_time(built, run.events, len(chosen))
        weights = overlays.from_memory(at_hand.state) if at_hand else overlays.from_checkpoint(built, run.workdir)
        found = overlays.make(built, weights(result), source, predictions, chosen, 2 * pictures.TILES)
    except (UserError, jax.errors.JaxRuntimeError) as error:  # the second: the device has no memory for it
        return None, f"Without overlays: {str(error).splitlines()[0]}"
    return found, _METHODS[found.method]
