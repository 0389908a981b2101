"""Distillation on Fashion-MNIST: LeNet-5 alone, and taught by a teacher in every way that `objective.distill` knows.

    python benchmarks/distillation.py --teacher=W --output=FOLDER [--seeds=3] [--epochs=100] [--temperatures=1,2,4]

W is the work directory of a run of configs/resnet.py:fashion_mnist. All students have the same 1,000 labelled images
(--labelled), steps and recipe, configs/lenet.py; "semi" sees as many of the other 59,000 (--unlabelled) a step besides,
"unlabelled" no label at all. Each student is a work directory in FOLDER: the same command again goes on where it was
stopped. At the end it prints a Markdown table and writes FOLDER/distillation.json.

The interval of a mean is Student's over the seeds; p and the interval of a difference to "alone" are Welch's t-test,
two-sided, and "after Holm" corrects p for the number of rows. What is asked first, before any temperature is chosen, is
the recipe's own: labelled at T = 4. The seeds say how much training varies, not how much another test set would.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
PRIMARY = ("labelled", 4.0)
# What each kind overrides of configs/distill.py, and whether it has a temperature.
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "alone": ({"objective.name": "supervised", "teacher.from": ()}, False),
    "unlabelled": ({"objective.alpha": 1.0}, True),
    "labelled": ({}, True),
    "semi": ({}, True),
    "hard": ({"objective.target": "hard", "objective.alpha": 0.5}, False),
    "features": ({"objective.alpha": 0.0, "objective.feature_weight": 1.0}, False),
}


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="work directory of the teacher's run")
    parser.add_argument("--output", type=Path, required=True, help="folder of the students' work directories")
    parser.add_argument("--data", default="fashion_mnist", help="the DATA of configs/distill.py")
    parser.add_argument("--labelled", default="train[:1000]", help="split with labels")
    parser.add_argument("--unlabelled", default="train[1000:]", help="split without, for the kind semi")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind")
    parser.add_argument("--epochs", type=float, default=100.0, help="passes over the labelled images")
    parser.add_argument("--temperatures", default="1,2,4", help="of the kinds that have one")
    parser.add_argument("--kinds", default=",".join(KINDS), help="with alone among them")
    args = parser.parse_args()
    if "alone" not in args.kinds.split(",") or set(args.kinds.split(",")) - set(KINDS) or args.seeds < 2:
        parser.error(f"--kinds needs alone, and others of {', '.join(KINDS)}; --seeds at least 2")
    temperatures = [float(t) for t in args.temperatures.split(",")]
    students = [(kind, t) for kind in args.kinds.split(",") for t in (temperatures if KINDS[kind][1] else [None])]

    sys.path.insert(0, str(ROOT))
    from imgcls_jax import atomic, platform

    platform.initialize()
    started = time.monotonic()
    found: dict[tuple[str, float | None, int], float] = {}
    for seed in range(args.seeds):  # a seed after the other: stopped early, it still compares like with like
        for kind, temperature in students:
            top1 = student(args, kind, temperature, seed)
            if top1 is None:
                return 143
            found[kind, temperature, seed] = top1
            done = f"{len(found)}/{len(students) * args.seeds}, {time.monotonic() - started:.0f} s"
            print(f"{done}: {kind} T={temperature} seed {seed}: {top1:.4f}", flush=True)
    rows = summary({key: [found[*key, seed] for seed in range(args.seeds)] for key in students})
    result = {
        "settings": {name: str(value) for name, value in vars(args).items()},
        "teacher_top1": _top1(Path(args.teacher)),
        "rows": rows,
    }
    with atomic.replacing(args.output / "distillation.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nThe teacher: {result['teacher_top1']}\n\n{table(rows)}\n\n{statement(rows)}")
    return 0


def student(args: argparse.Namespace, kind: str, temperature: float | None, seed: int) -> float | None:
    """Trains one student, or goes on with it, or reads what it reached: test top-1; None if a signal stopped it."""
    from imgcls_jax import config as config_lib
    from imgcls_jax import train

    name = kind if temperature is None else f"{kind}-T{temperature:g}"
    workdir = args.output / f"{name}-seed{seed}"
    values = {"teacher.from": (args.teacher,), **KINDS[kind][0]}
    values |= {"seed": seed, "total_epochs": args.epochs, "data.train_split": args.labelled}
    values |= {"objective.temperature": temperature} if temperature is not None else {}
    values |= {"data.unlabelled": args.unlabelled} if kind == "semi" else {}
    config = config_lib.load(f"{ROOT / 'configs/distill.py'}:{args.data}")
    for key, value in values.items():
        group, _, leaf = key.rpartition(".")
        (config[group] if group else config)[leaf] = value
    return _top1(workdir) if train.train(config, workdir) == 0 else None


def _top1(workdir: Path) -> float | None:
    path = workdir / "eval/test.json"
    return float(json.loads(path.read_text())["top1"]) if path.exists() else None


def summary(found: dict[tuple[str, float | None], list[float]]) -> list[dict[str, Any]]:
    """A row for each kind and temperature: mean, its 95% interval, difference to "alone", its interval, p, Holm's p."""
    from scipy import stats

    alone, rows = found["alone", None], []
    for (kind, temperature), values in found.items():
        row: dict[str, Any] = {"kind": kind, "temperature": temperature, "top1": values, "mean": float(np.mean(values))}
        half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
        row["mean_ci95"] = [row["mean"] - float(half), row["mean"] + float(half)]
        if kind != "alone":
            test = stats.ttest_ind(values, alone, equal_var=False)
            interval = test.confidence_interval(0.95)
            row["difference"] = row["mean"] - float(np.mean(alone))
            row["difference_ci95"] = [float(interval.low), float(interval.high)]
            row["p"] = float(test.pvalue)
        rows.append(row)
    tested = [row for row in rows if "p" in row]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return rows


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 65-70, 1979) of p-values, in their order."""
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(steps, 1.0)
    return [float(p) for p in corrected]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown; shares in per cent, differences in points."""
    percent = lambda x: f"{100 * x:.2f}"  # noqa: E731
    points = lambda x: f"{100 * x:+.2f}"  # noqa: E731
    lines = ["| student | T | test top-1, % (95%) | to alone, points (95%) | p | p after Holm |", "| --- " * 6 + "|"]
    for row in rows:
        temperature = "" if row["temperature"] is None else f"{row['temperature']:g}"
        low, high = map(percent, row["mean_ci95"])
        cells = [row["kind"], temperature, f"{percent(row['mean'])} ({low} to {high})", "", "", ""]
        if "p" in row:
            low, high = map(points, row["difference_ci95"])
            cells[3:] = [f"{points(row['difference'])} ({low} to {high})", f"{row['p']:.2g}", f"{row['p_holm']:.2g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def statement(rows: Sequence[dict[str, Any]]) -> str:
    """Which students are significantly better than the one alone, in a few sentences."""
    label = lambda row: row["kind"] + (f" T={row['temperature']:g}" if row["temperature"] else "")  # noqa: E731
    better = [label(row) for row in rows if row.get("p_holm", 1.0) < 0.05 and row["difference"] > 0]
    tested = [row for row in rows if "p" in row]
    text = f"Better than alone after Holm's correction over {len(tested)} rows: {', '.join(better) or 'none'}."
    for row in tested:
        if (row["kind"], row["temperature"]) == PRIMARY:
            verdict = "is" if row["p"] < 0.05 and row["difference"] > 0 else "is not"
            text = f"{label(row)}, asked first, {verdict} significantly better (p = {row['p']:.2g}). {text}"
    return text


if __name__ == "__main__":
    sys.exit(main())
