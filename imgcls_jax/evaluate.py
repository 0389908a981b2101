"""The one evaluation: used by the training loop and by the eval binary alike; and the files it leaves in W/eval."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from imgcls_jax import atomic, dispatch
from imgcls_jax.metrics import anyof, calibration, examples, multiclass, multilabel, paired
from imgcls_jax.metrics.examples import Examples
from imgcls_jax.objectives import Variables
from imgcls_jax.types import Batch, ConfigError, Spec, UserError
from imgcls_jax.writers import Progress

EvalStep = Callable[[Variables, Batch], dict[str, jax.Array]]


class Stopwatch:
    """How fast an evaluation goes, reading included, from the answer to its first batch on: that one is compiled for.

    What was read ahead in that time is to its credit, so that of an evaluation of few batches the speed is an upper
    limit.
    """

    def __init__(self) -> None:
        self._images, self._since, self._last = 0, 0.0, 0.0

    def gathered(self, images: int) -> None:
        """A batch with so many counted images has been answered."""
        self._last = time.perf_counter()
        if not self._since:
            self._since = self._last
        else:
            self._images += images

    @property
    def images_per_second(self) -> float | None:
        """None if there was only one batch."""
        return self._images / (self._last - self._since) if self._images else None


def evaluate(
    eval_step: EvalStep,
    variables: Variables,
    batches: Iterable[Batch],
    *,
    spec: Spec,
    num_records: int,
    keep_logits: bool,
    progress: Callable[[int], None] = lambda done: None,
    stopwatch: Stopwatch | None = None,
) -> Examples:
    """Runs `eval_step` over global `batches`, every example once, and gathers what it says of each.

    Args:
      variables: what the model is applied with.
      eval_step: jitted, its outputs replicated, so that every process sees every example's row.
      batches: in the order of the split, padded with mask False. A False in the middle is a record that was skipped.
      spec: of the data set.
      num_records: of the split.
      keep_logits: keep them for `report` if they fit in memory; with several labels they are kept always.
      progress: called with the number of batches done.
      stopwatch: told of every batch that was answered.

    Returns:
      The examples, in the order of the split, equal on any number of devices and processes.

    Raises:
      UserError: with several labels, if the logits do not fit.
    """
    multilabel_task = spec.task == "multilabel"
    if multilabel_task and not examples.logits_fit(num_records, spec.num_classes):
        raise UserError(
            f"The logits of {num_records:,} examples and {spec.num_classes:,} classes do not fit in memory, and "
            "several labels cannot be evaluated without: evaluate a part of the split, such as test[:10%]."
        )
    gatherer = examples.Gatherer(spec.task, spec.class_names, num_records, keep_logits=keep_logits or multilabel_task)

    for done, rows in enumerate(dispatch.one_late(eval_step(variables, batch) for batch in batches), 1):
        gatherer.add(rows)
        if stopwatch is not None:
            stopwatch.gathered(int(np.asarray(rows["mask"]).sum()))
        progress(done)
    return gatherer.examples()


def ensemble(members: Sequence[Examples]) -> Examples:
    """What several models say of the same examples, their probabilities averaged.

    Raises:
      UserError: the examples or their classes differ, or the logits were too many to keep.
    """
    first = members[0]
    for other in members[1:]:
        if (first.task, first.class_names) != (other.task, other.class_names):
            raise UserError("The runs of an ensemble must have the same classes, in the same order.")
        if not (np.array_equal(first.index, other.index) and np.array_equal(first.labels, other.labels)):
            raise UserError("The runs of an ensemble were evaluated on different records; give them the same data set.")
    if any(member.logits is None for member in members):
        raise UserError("The logits do not fit in memory; evaluate the ensemble on a part of the split, 'test[:10%]'.")
    stacked = jnp.stack([jnp.asarray(member.logits) for member in members])
    logits = examples.mean_prediction(stacked, first.task)
    rows = examples.ROWS[first.task](logits, jnp.asarray(first.labels))
    as_arrays = {name: np.asarray(row) for name, row in rows.items()}
    return dataclasses.replace(first, rows=as_arrays, logits=np.asarray(logits))


def headlines(task: str, topk: Sequence[int]) -> tuple[str, ...]:
    """Names of the metrics that training logs; the first is what the best checkpoint is chosen by."""
    return multilabel.HEADLINES if task == "multilabel" else multiclass.headlines(topk)


def headline_values(found: Examples, topk: Sequence[int]) -> dict[str, float]:
    """The `headlines`, quickly, without intervals."""
    if found.task == "multilabel":
        return multilabel.headline_values(found)
    return multiclass.headline_values(found, topk)


def report(found: Examples, *, topk: Sequence[int], temperature: float | None = None) -> dict[str, Any]:
    """All metrics with their intervals: what W/eval/<split>.json holds.

    See `multiclass.report`, `multilabel.report` and `anyof.report`; the temperature is for one label an example only.
    """
    if found.task == "any_of":
        return anyof.report(found, topk=topk)
    if found.task == "multilabel":
        return multilabel.report(found)
    return multiclass.report(found, topk=topk, temperature=temperature)


def shown(tta: str) -> dict[str, str]:
    """What an evaluation's file says of eval.tta: nothing where the model was shown the image alone."""
    return {"tta": tta} if tta else {}


def file_name(split: str, *, ema: bool) -> str:
    """The name of a split's files in W/eval/, without their endings; "test[:10%]" is "test__10%_"."""
    name = re.sub(r"[^\w.+%-]", "_", split)
    return f"{name}_ema" if ema else name


def write(workdir: Path, name: str, found: Examples, result: dict[str, Any], *, data: str, split: str) -> Path:
    """Writes W/eval/<name>.json and W/eval/<name>.predictions.npz, each atomically; returns the first's path.

    The second holds an entry an example, in the order of the split: index, label, prediction, correct (bool: top-1, or
    every label; any of those that are right), nll and, with one label, confidence. label and prediction are [N] int64,
    or [N,K] bool. Besides: class_names, data and split, so that only what belongs together is compared.
    """
    if found.task == "multilabel":
        assert found.logits is not None
        outcomes: dict[str, Any] = {"prediction": found.logits > 0}
        outcomes["correct"] = (outcomes["prediction"] == found.labels).all(axis=1)
    elif found.task == "any_of":
        outcomes = {"prediction": found.rows["prediction"].astype(np.int64), "correct": found.rows["rank"] == 0}
    else:
        outcomes = {"prediction": found.rows["prediction"].astype(np.int64), "confidence": found.rows["confidence"]}
        outcomes["correct"] = outcomes["prediction"] == found.labels
    outcomes |= {"index": found.index, "label": found.labels, "nll": found.rows["nll"]}
    outcomes |= {"class_names": np.array(found.class_names), "data": np.array(data), "split": np.array(split)}
    path = workdir / "eval" / f"{name}.json"
    # The predictions first: where there are numbers, there is what they were made of.
    _replace(path.with_name(f"{name}.predictions.npz"), lambda file: np.savez_compressed(file, **outcomes))
    return write_json(path, result)


def write_json(path: Path, result: dict[str, Any]) -> Path:
    """Writes a result atomically and returns its path."""
    _replace(path, lambda file: file.write(to_json(result).encode()))
    return path


def to_json(result: dict[str, Any]) -> str:
    """JSON with a line for each key, and for each entry of a list of dicts or lists."""
    lines = []
    for key, value in result.items():
        nested = isinstance(value, list) and value and isinstance(value[0], (dict, list))
        text = "[\n  " + ",\n  ".join(map(json.dumps, value)) + "\n ]" if nested else json.dumps(value)
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _replace(path: Path, write_to: Callable[[BinaryIO], Any]) -> None:
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        write_to(file)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """W/temperature.json: what the logits of one checkpoint are divided by before the softmax.

    Attributes:
      temperature: T.
      split: it was fitted on.
      step: of the checkpoint.
      ema: whether it belongs to the averaged weights.
      nll_before, nll_after, ece_before, ece_after: on that split.
    """

    temperature: float
    split: str
    step: int
    ema: bool
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float


def fit_temperature(found: Examples, *, split: str, step: int, ema: bool) -> Temperature:
    """The temperature with the least NLL on these examples (`calibration.fit_temperature`).

    Raises:
      ConfigError: the task has several labels.
      UserError: the logits were not kept, or one is not finite.
    """
    if found.task == "multilabel":
        raise ConfigError("--fit_temperature is for tasks with one label an image; this data set has several.")
    if found.logits is None:
        raise UserError(f"The logits of {split} do not fit in memory; fit on a part of it, --split='{split}[:10%]'.")
    if not np.isfinite(found.logits).all():
        raise UserError(f"The model gives logits on {split} that are not finite; no temperature can mend them.")
    right, t = (found.labels == found.rows["prediction"]).astype(np.float64), 1.0
    values: dict[str, float] = {}
    for when in ("before", "after"):
        values[f"nll_{when}"] = float(calibration.nll(found.logits, found.labels, t).mean())
        confidence = calibration.confidence(found.logits, t)
        bins = calibration.equal_width_bins(confidence)
        sums = calibration.bin_sums(bins, confidence, right, np.ones(len(right)))
        values[f"ece_{when}"] = calibration.expected_error(*sums)
        t = calibration.fit_temperature(found.logits, found.labels) if when == "before" else t
    return Temperature(temperature=t, split=split, step=step, ema=ema, **values)


def write_temperature(workdir: Path, fitted: Temperature) -> Path:
    """Writes W/temperature.json atomically and returns its path."""
    return write_json(workdir / "temperature.json", dataclasses.asdict(fitted))


def read_temperature(workdir: Path) -> Temperature | None:
    """What W/temperature.json holds; None if there is none.

    Raises:
      UserError: if it is not what `write_temperature` wrote.
    """
    path = workdir / "temperature.json"
    if not path.exists():
        return None
    try:
        fitted = Temperature(**json.loads(path.read_text()))
        if not (math.isfinite(fitted.temperature) and fitted.temperature > 0):
            raise ValueError(f"temperature is {fitted.temperature}")
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it, or fit again with --fit_temperature.") from error
    return fitted


def temperature_of(workdir: Path, step: int, progress: Progress, *, ema: bool) -> float:
    """The temperature that was fitted for a checkpoint; 1 if there is none, and a line that says so if it is another's.

    Raises:
      UserError: as `read_temperature`.
    """
    fitted = read_temperature(workdir)
    if fitted is None:
        return 1.0
    if (fitted.step, fitted.ema) == (step, ema):
        return fitted.temperature
    of = f"step {fitted.step}{' (EMA)' if fitted.ema else ''}"
    progress.line(f"temperature.json is of {of} and is not used: the probabilities are not calibrated.")
    return 1.0


def read_predictions(workdir: Path, name: str) -> dict[str, np.ndarray]:
    """What W/eval/<name>.predictions.npz holds.

    Raises:
      UserError: if it is not there or cannot be read.
    """
    path = workdir / "eval" / f"{name}.predictions.npz"
    if not path.exists():
        raise UserError(
            f"{path} does not exist; evaluate that run first: python -m imgcls_jax.eval --workdir={workdir}."
        )
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # zipfile, zlib and NumPy raise half a dozen types for damaged files
        raise UserError(f"{path} is damaged ({error}); evaluate that run again.") from error


def compare(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, Any]:
    """Paired comparison of two runs on the same examples; differences are second minus first.

    Args:
      first: as `read_predictions` gives them.
      second: the same.

    Returns:
      num_examples; accuracy: [first, second], top-1 or exact matches; accuracy_difference and nll_difference with
      `_ci95` (`paired`); only_first_correct, only_second_correct: the examples that the runs differ on;
      p_exact, p_mid: McNemar's test on those.

    Raises:
      UserError: if they are not predictions of the same examples.
    """
    for name, what in (("data", "data set"), ("split", "split"), ("class_names", "classes"), ("index", "records")):
        a, b = first[name], second[name]
        if not np.array_equal(a, b):
            shown = f" ({a} and {b})" if a.ndim == 0 else ""
            raise UserError(f"The two runs were not evaluated on the same {what}{shown}; evaluate both on one split.")
    if not np.array_equal(first["label"], second["label"]):
        raise UserError("The labels of the data set changed between the two evaluations; evaluate both runs again.")
    a, b = first["correct"], second["correct"]
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    difference, interval = paired.share_difference(a, b)
    nll, nll_interval = paired.mean_difference(first["nll"], second["nll"])
    exact, mid = paired.mcnemar(only_first, only_second)
    return {
        "num_examples": len(a),
        "accuracy": [float(a.mean()), float(b.mean())],
        "accuracy_difference": difference,
        "accuracy_difference_ci95": interval,
        "nll_difference": nll,
        "nll_difference_ci95": nll_interval,
        "only_first_correct": only_first,
        "only_second_correct": only_second,
        "p_exact": exact,
        "p_mid": mid,
    }


def values(result: dict[str, Any]) -> dict[str, tuple[float | None, list[float] | None]]:
    """Every single number of `report` with its interval, by name; "positive_" or "calibrated_" before a group's."""
    groups = {"": result, "positive_": result.get("binary") or {}, "calibrated_": result.get("calibrated") or {}}
    return {
        prefix + name: (value, group[f"{name}_ci95"])
        for prefix, group in groups.items()
        for name, value in group.items()
        if f"{name}_ci95" in group
    }


def summary(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the table that the eval binary prints: every single number, with its interval."""
    rows = [("examples", f"{result['num_examples']:,}")]
    if result["num_skipped"]:
        rows.append(("skipped", f"{result['num_skipped']:,} records that cannot be read"))
    return rows + [(name, _with_interval(*found)) for name, found in values(result).items()]


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4f}" + (f"  (95% interval {interval[0]:.4f} to {interval[1]:.4f})" if interval else "")
