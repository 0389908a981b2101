"""How a run fares on what it was not trained on: corrupted images, and images of other data sets.

Each function takes a run and the variables of one of its checkpoints, and returns what a file in W/eval holds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls_jax import train, writers
from imgcls_jax.augment import corruptions, host
from imgcls_jax.build import Run
from imgcls_jax.data import slices, sources
from imgcls_jax.data.views import ForeignSource
from imgcls_jax.metrics import intervals, ranking
from imgcls_jax.metrics.examples import Examples
from imgcls_jax.types import ConfigError, UserError, check_choice

FROST_NOTE = "synthetic_frost stands in for frost, whose photographs are not ours: compare it with itself only"


def corruption_names(text: str) -> tuple[str, ...]:
    """Names of corruptions from "snow,fog", in the paper's order; all from "true", the bare flag.

    Raises:
      ConfigError: there is no such corruption.
    """
    wanted = corruptions.NAMES if text == "true" else tuple(text.split(","))
    for name in wanted:
        check_choice("--corruptions", name, corruptions.NAMES)
    return tuple(name for name in corruptions.NAMES if name in wanted)


def severities(texts: Sequence[str]) -> tuple[int, ...]:
    """Severities from ["1", "5"], ascending, each once. Raises ConfigError if one is not 1 to 5."""
    known = [str(severity) for severity in corruptions.SEVERITIES]
    for text in texts:
        check_choice("--severities", text, known)
    return tuple(sorted({int(text) for text in texts}))


def corrupted(
    run: Run,
    variables: dict[str, Any],
    split: str,
    names: Sequence[str],
    levels: Sequence[int],
    progress: writers.Progress,
) -> dict[str, Any]:
    """Accuracy on a split under each corruption at each severity (arXiv:1903.12261).

    Each record's corruption is a function of its place in the split: the same in every run, on any number of processes.

    Args:
      run: with one label an example.
      variables: what its model is applied with.
      split: to corrupt.
      names: of `corruptions.NAMES`.
      levels: the severities.
      progress: shows how far it is.

    Returns:
      num_examples, num_skipped; severities.
      clean_accuracy: without corruption; every accuracy is top-1 and has Wilson's 95% interval under `_ci95`.
      results: a row for each corruption and severity: corruption, severity, correct, accuracy.
      mean_errors: by corruption, the mean of 1 - accuracy over the severities.
      mean_error: the mean of those: the mean corruption error before it is divided by a baseline's; its interval is the
        bootstrap's over the examples.
      notes: what a reader must know.

    Raises:
      ConfigError: the examples have several labels.
    """
    if run.spec.task == "multilabel":
        raise ConfigError("--corruptions is for tasks with one label an image; this data set has several.")
    clean = train.evaluate_split(run, variables, split, progress, keep_logits=False)
    wrong = np.zeros(len(clean))  # by example, over all corruptions and severities
    results = []
    for name in names:
        for severity in levels:
            corruption = corruptions.Corruption(name, severity)
            found = train.evaluate_split(run, variables, split, progress, keep_logits=False, transforms=(corruption,))
            right = _right(found)
            wrong += ~right
            results.append({"corruption": name, "severity": severity, **_accuracy(right)})
            done = f"{len(results)}/{len(names) * len(levels)}"
            progress.update(f"{done} {name}, severity {severity}: accuracy {results[-1]['accuracy']:.4f}")
    progress.line("")
    wrong /= len(results)
    mean = intervals.with_bootstrap(lambda w: {"mean_error": intervals.weighted_mean(wrong, w)}, len(wrong), {})
    return {
        "num_examples": len(clean),
        "num_skipped": clean.num_skipped,
        "severities": list(levels),
        **{f"clean_{key}": value for key, value in _accuracy(_right(clean)).items()},
        "results": results,
        "mean_errors": {name: float(np.mean(list(_errors(results, name)))) for name in names},
        **mean,
        "notes": [FROST_NOTE] if "synthetic_frost" in names else [],
    }


def against(result: dict[str, Any], baseline: dict[str, Any], path: Path) -> dict[str, Any]:
    """The mean corruption error (arXiv:1903.12261, section 4.2) of one result of `corrupted`, relative to another's.

    Args:
      result: of the run.
      baseline: of the run that it is compared with, on the same examples.
      path: of the baseline, for messages.

    Returns:
      baseline: the path.
      corruption_errors: by corruption, the sum of the errors over the severities divided by the baseline's; None where
        the baseline makes no error.
      mce: their mean; 1 is as the baseline.
      relative_mce: the same of errors less the clean error: what the corruptions add. None where they add nothing to
        the baseline's.

    Raises:
      UserError: the baseline is of other examples, or lacks a corruption or severity.
    """
    if any(baseline[key] != result[key] for key in ("data", "split", "num_examples", "severities")):
        raise UserError(
            f"{path} is of another data set, split or other severities; evaluate that run with the same flags first."
        )
    missing = [name for name in result["mean_errors"] if name not in baseline["mean_errors"]]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; evaluate that run with these corruptions too.")
    clean, clean_base = (1 - r["clean_accuracy"] for r in (result, baseline))
    ratios, relative = {}, []
    for name, error in result["mean_errors"].items():
        base = baseline["mean_errors"][name]
        ratios[name] = _ratio(error, base)
        relative.append(_ratio(error - clean, base - clean_base))
    return {
        "baseline": str(path),
        "corruption_errors": ratios,
        "mce": _mean(list(ratios.values())),
        "relative_mce": _mean(relative),
    }


def data_and_split(text: str, data_dir: str | None) -> tuple[str, str]:
    """(data set, split) from "NAME" or "NAME:split"; the split is "test" by default, where there is one.

    Raises:
      ConfigError: there is no such data set or split.
    """
    part = r"\w+(\[[^\]]*\])?"
    found = re.fullmatch(rf"(.+?):({part}(\+{part})*)", text)
    name, split = (found[1], found[2]) if found and found[1] not in sources.OPENERS else (text, "")
    spec = sources.spec(name, data_dir=data_dir)
    split = split or next((s for s in ("test", "validation", "val") if s in spec.splits), next(iter(spec.splits)))
    slices.check("--ood", split, spec)
    return name, split


def foreign(run: Run, variables: dict[str, Any], name: str, split: str, progress: writers.Progress) -> Examples:
    """What the model says of another data set's images, brought to its channels and size; the labels mean nothing.

    They go through the transformations of the run's evaluation and, where these leave another size, are resized.
    """
    c = run.config.data
    source = sources.open_source(name, split, data_dir=c.data_dir)
    other = dataclasses.replace(run, open_split=lambda _: ForeignSource(source, run.spec, c.channels))
    resize = host.Resize(c.image_size)
    return train.evaluate_split(other, variables, split, progress, keep_logits=True, transforms=(resize,))


def rejection(inside: Examples, outside: Examples) -> dict[str, Any]:
    """How well scores tell examples of the run's data set (positive) from those of another.

    Args:
      inside: of a split of the run's data set, with their logits.
      outside: of the other, with their logits.

    Returns:
      num_examples, num_outside; scores: a row for each score: score, and what `separation` gives. The scores:
      max_softmax: the largest probability (arXiv:1610.02136);
      energy: the log of the sum of the exponentials of the logits, T = 1 (arXiv:2010.03759).

    Raises:
      UserError: the logits were too many to keep, or one is not finite.
    """
    rows = []
    for examples in (inside, outside):
        if examples.logits is None:
            raise UserError(f"The logits of {len(examples):,} examples do not fit in memory; take a part of the split.")
        if not np.isfinite(examples.logits).all():
            raise UserError("The model gives logits that are not finite; no score can be made of them.")
    for name, score in SCORES.items():
        rows.append({"score": name, **separation(score(inside), score(outside))})
    return {"num_examples": len(inside), "num_outside": len(outside), "scores": rows}


def _max_softmax(found: Examples) -> np.ndarray:
    # From the logits and not the confidence, which float32 rounds to 1 for all that are sure: ties that are none.
    logits = found.logits.astype(np.float64)  # type: ignore[union-attr]
    rest = np.sort(logits, axis=1)[:, :-1] - logits.max(axis=1, keepdims=True)
    score: np.ndarray = -np.log(np.exp(rest).sum(axis=1).clip(np.finfo(float).tiny))
    return score


def _energy(found: Examples) -> np.ndarray:
    from scipy.special import logsumexp

    score: np.ndarray = logsumexp(found.logits.astype(np.float64), axis=1)  # type: ignore[union-attr]
    return score


# Larger for what is more like the data set of the run. The first rises with the largest probability p: -log(1/p - 1).
SCORES = {"max_softmax": _max_softmax, "energy": _energy}


def separation(inside: np.ndarray, outside: np.ndarray) -> dict[str, Any]:
    """How well a score, larger for what is inside, separates.

    Args:
      inside: [N] scores.
      outside: [M] scores.

    Returns:
      auroc: the share of pairs in which the one inside scores higher, ties half; its interval is the jackknife's.
      fpr95: the share of the outside that is let in by the strictest threshold that lets in 95% of the inside; its
        interval is Wilson's, for that threshold.
    """
    positive = np.arange(len(inside) + len(outside)) < len(inside)
    curve = ranking.curve(np.concatenate([inside, outside]), positive)
    assert curve.roc_auc is not None
    threshold = np.sort(inside)[len(inside) - math.ceil(0.95 * len(inside))]
    let_in = int((outside >= threshold).sum())
    return {
        "auroc": curve.roc_auc,
        "auroc_ci95": intervals.jackknife_interval(curve.roc_auc, curve.roc_influence),
        "fpr95": let_in / len(outside),
        "fpr95_ci95": intervals.share_interval(let_in, len(outside)),
    }


def rejection_table(result: dict[str, Any]) -> str:
    """The scores, a line each."""
    lines = ["  " + "score".ljust(12) + "AUROC  (95% interval)".rjust(28) + "FPR@95  (95% interval)".rjust(28)]
    for row in result["scores"]:
        cells = [f"{row[k]:.4f}  ({row[k + '_ci95'][0]:.4f} to {row[k + '_ci95'][1]:.4f})" for k in ("auroc", "fpr95")]
        lines.append("  " + row["score"].ljust(12) + "".join(cell.rjust(28) for cell in cells))
    return "\n".join(lines)


def read_corrupted(workdir: Path, name: str) -> tuple[dict[str, Any], Path]:
    """What an evaluation of corruptions left in W/eval/<name>_corruptions.json, and the path.

    Raises:
      UserError: there is none, or it is damaged.
    """
    path = workdir / "eval" / f"{name}_corruptions.json"
    if not path.exists():
        raise UserError(
            f"{path} does not exist; make it first: python -m imgcls_jax.eval --workdir={workdir} --corruptions."
        )
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        for key in ("data", "split", "num_examples", "severities", "clean_accuracy", "mean_errors"):
            found[key]
        return found, path
    except (ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}); evaluate that run with --corruptions again.") from error


def corruption_table(result: dict[str, Any]) -> str:
    """The accuracies, a line a corruption and a column a severity, and the means."""
    levels, width = result["severities"], max(len(row["corruption"]) for row in result["results"])
    ratios = result.get("corruption_errors", {})
    heads = [*(f"sev. {level}" for level in levels), "mean err", *(["CE"] if ratios else [])]
    lines = ["  " + "accuracy".ljust(width) + "".join(head.rjust(10) for head in heads)]
    for name, error in result["mean_errors"].items():
        cells = [f"{row['accuracy']:.4f}" for row in result["results"] if row["corruption"] == name]
        cells += [f"{error:.4f}", *([_number(ratios[name])] if ratios else [])]
        lines.append("  " + name.ljust(width) + "".join(cell.rjust(10) for cell in cells))
    clean = 1 - result["clean_accuracy"]
    low, high = result["mean_error_ci95"]
    rows = [("clean error", f"{clean:.4f}")]
    rows += [("mean error", f"{result['mean_error']:.4f}  (95% interval {low:.4f} to {high:.4f})")]
    if ratios:
        rows += [("mCE", f"{_number(result['mce'])}, against {result['baseline']}")]
        rows += [("relative mCE", _number(result["relative_mce"]))]
    return "\n".join([*lines, writers.table(rows), *(f"  {note}" for note in result["notes"])])


def _right(found: Examples) -> np.ndarray:
    right: np.ndarray = found.labels == found.rows["prediction"]
    return right


def _accuracy(right: np.ndarray) -> dict[str, Any]:
    correct, n = int(right.sum()), len(right)
    return {"correct": correct, "accuracy": correct / n, "accuracy_ci95": intervals.share_interval(correct, n)}


def _errors(results: Sequence[dict[str, Any]], name: str) -> Iterator[float]:
    return (1 - row["accuracy"] for row in results if row["corruption"] == name)


def _ratio(value: float, base: float) -> float | None:
    """None if `base` is 0, but for rounding: both are differences and means of shares of examples."""
    return value / base if abs(base) > 1e-9 else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
