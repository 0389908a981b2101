"""What unlabelled images add to a thousand labelled ones of Fashion-MNIST: a table over methods and seeds.

python tools/few_labels.py OUT [--seeds=3] [--methods=supervised,fixmatch,...] [-- --config.KEY=VALUE ...]

Seed s learns from the labels of train[1000s:1000(s+1)] alone; all methods of a seed have the same labels, and the other
images of train without theirs. What stands after -- is for all runs. Each run has a work directory in OUT and is
continued where it stopped. At its end the test split is evaluated, with the averaged weights if a run keeps some.

The table gives the mean of top-1 over the seeds, and the mean of the differences from "supervised" and from "smoothed"
(supervised with label smoothing) with the same labels, each with the 95% interval of Student's t over the seeds.
OUT/few_labels.json has the figures of each seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import stats

ROOT = Path(__file__).parents[1]
LABELLED = 1000
METHODS = ("supervised", "smoothed", "pseudo_labels", "noisy_student", "fixmatch", "mean_teacher")
CONFIGS = {"noisy_student": "noisy_student", "pseudo_labels": "noisy_student", "mean_teacher": "mean_teacher"}


def command(method: str, seed: int, workdir: Path, more: Sequence[str]) -> list[str]:
    """The program and flags of a run."""
    first, last = LABELLED * seed, LABELLED * (seed + 1)
    others = f"train[{last}:]" if not first else f"train[:{first}]+train[{last}:]"
    program = "self_train" if method in ("noisy_student", "pseudo_labels") else "main"
    flags = [
        f"--config={ROOT}/configs/{CONFIGS.get(method, 'fixmatch')}.py:fashion_mnist",
        f"--workdir={workdir}",
        f"--config.seed={seed}",
        f"--config.data.train_split=train[{first}:{last}]",
        f"--unlabelled={others}" if program == "self_train" else f"--config.data.unlabelled={others}",
    ]
    if method in ("supervised", "smoothed"):
        flags[-1:] = ["--config.objective.name=supervised", "--config.data.unlabelled="]
    if method == "smoothed":  # what a sceptic would try first, and what the noisy student's first teacher is
        flags += ["--config.loss.label_smoothing=0.1"]
    if method == "pseudo_labels":  # Lee 2013: hard labels of all images, once, and no noise
        flags += [
            "--config.loss.label_smoothing=0.0",
            "--labels=hard",
            "--rounds=1",
            "--min_confidence=0",
            "--per_class=0",
        ]
        flags += ["--student.model.drop_path=0.0", "--student.augment.device=('pad_and_crop(2)', 'flip()')"]
    return [sys.executable, "-m", f"imgcls_jax.{program}", *flags, *more]


def top1(workdir: Path) -> float:
    """Test top-1 of the last round, of the averaged weights if there are any."""
    rounds = sorted(workdir.glob("round*"), key=lambda path: int(path.name[5:]))
    folder = (rounds[-1] if rounds else workdir) / "eval"
    path = folder / "test_ema.json"
    return float(json.loads((path if path.exists() else folder / "test.json").read_text())["top1"])


def interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half the width of its 95% interval)."""
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def table(found: dict[str, list[float]]) -> str:
    """In Markdown."""
    against = [method for method in ("supervised", "smoothed") if method in found]
    titles = ["method", "test top-1", "by seed", *(f"more than {method}" for method in against)]
    lines = [f"| {' | '.join(titles)} |", "| --- " * len(titles) + "|"]
    for method, values in found.items():
        cells = [method, "{:.4f} ± {:.4f}".format(*interval(values)), ", ".join(f"{value:.4f}" for value in values)]
        for other in against:
            more = np.subtract(values, found[other]).tolist()
            cells.append("" if method == other else "{:+.4f} ± {:.4f}".format(*interval(more)))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the work directories")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("more", nargs="*", help="flags of all runs")
    args = parser.parse_args()
    methods = args.methods.split(",")
    if methods[0] != "supervised" or set(methods) - set(METHODS) or args.seeds < 2:
        parser.error(f"--methods are supervised and then any of {', '.join(METHODS[1:])}; --seeds at least 2")
    found: dict[str, list[float]] = {method: [] for method in methods}
    for seed in range(args.seeds):  # all methods of a seed before the next: a table of fewer seeds is a table too
        for method in methods:
            workdir = args.out / f"{method}-{seed}"
            done = subprocess.run(command(method, seed, workdir, args.more), cwd=ROOT)
            if done.returncode:
                return done.returncode
            found[method].append(top1(workdir))
            print(f"{method}, seed {seed}: {found[method][-1]:.4f}", flush=True)
    print(table(found))
    (args.out / "few_labels.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
