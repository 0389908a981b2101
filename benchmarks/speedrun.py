"""Time to 94% on Fashion-MNIST: configs/speedrun.py beside a plain ResNet of its size in torch, and without its parts.

    python benchmarks/speedrun.py --output=F --torch_python=VENV/bin/python [--seeds=5] [--epochs=20]
    python benchmarks/speedrun.py --output=F --ablations=4 [--seeds=2]

A run's time is that of the whole command, from its start to the end of its process: imports, reading, compilation
with an empty cache, training, evaluation of all test images, checkpoint and report. Nothing but the data set is there
before. torch's is trained the ordinary way (workers/torch_speedrun.py), its time likewise, with a test after each
epoch; the first epoch that reaches 94% is told too, though nobody may stop there who does not look at the test labels.
Both take turns, a seed each. Runs that are done are kept in F, so the same command goes on where it was stopped. At
the end come a Markdown table and speedrun.json; means are with the 95% interval of Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import turns
from turns import HERE

CONFIG = f"{HERE.parent / 'configs/speedrun.py'}:fashion_mnist"
TARGET = 0.94
# torch's residual net: one block a stage, 40 to 160 channels. It has 0.48 million parameters, ours 0.49.
PLAIN: dict[str, Any] = {"stage_sizes": (1, 1, 1), "width": 40}
# What a row does without, or has in its place: flags for the config.
ABLATIONS: dict[str, tuple[str, ...]] = {
    "torch's residual net for airbench's": (
        "--config.model.name=resnet20",
        f"--config.model.stage_sizes={PLAIN['stage_sizes']}",
        f"--config.model.width={PLAIN['width']}",
        "--config.model.stem=half",
        "--config.model.shortcut=conv",
        "--config.optimizer.freeze=()",
    ),
    "first filters learned too": ("--config.optimizer.freeze=()",),
    "SGD for Muon": (
        "--config.optimizer.name=sgd",
        "--config.optimizer.lr=0.2",
        "--config.optimizer.weight_decay=5e-4",
    ),
    "with Lookahead": ("--config.optimizer.lookahead_steps=5",),
    "without crops": ("--config.augment.device=('flip()',)",),
    "without mirror images": ("--config.augment.device=('pad_and_crop(1)',)",),
    "without label smoothing": ("--config.loss.label_smoothing=0.0",),
    "without views": ("--config.eval.tta=",),
    "batches of 128": ("--config.batch_size=128", "--config.optimizer.lr=0.007"),
}


def whole_run(folder: Path, seed: int, flags: Sequence[str]) -> dict[str, Any]:
    """{seconds, top1, images_per_second} of one run of ours; reads what an earlier one left."""
    done = folder / "run.json"
    if done.exists():
        return json.loads(done.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    env = {**os.environ, "PYTHONPATH": str(HERE.parent), "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-m", "imgcls_jax.main", f"--config={CONFIG}", f"--config.seed={seed}", *flags]
    start = time.perf_counter()
    with (folder / "log").open("wb") as log:
        code = subprocess.run([*command, f"--workdir={folder / 'W'}"], env=env, stdout=log, stderr=log).returncode
    seconds = time.perf_counter() - start
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}: see {folder / 'log'}")
    events = [json.loads(line) for line in (folder / "W/metrics.jsonl").read_text().splitlines()]
    rates = [event["train/images_per_second"] for event in events if "train/images_per_second" in event]
    top1 = json.loads((folder / "W/eval/test.json").read_text())["top1"]
    found = {"seconds": seconds, "top1": top1, "images_per_second": statistics.median(rates)}
    turns.write_json(done, found)
    return found


def torch_run(folder: Path, seed: int, args: argparse.Namespace, data: Path) -> dict[str, Any]:
    """{seconds, top1, images_per_second, parameters, seconds_to_target} of one run in torch; reads an earlier one's."""
    done = folder / "run.json"
    if done.exists():
        return json.loads(done.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    command = [args.torch_python, str(HERE / "workers/torch_speedrun.py"), f"--data={data}", f"--epochs={args.epochs}"]
    command += ["--stage_sizes", *map(str, PLAIN["stage_sizes"]), f"--width={PLAIN['width']}", f"--seed={seed}"]
    env = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
    start = time.perf_counter()
    output = subprocess.run(
        [*command, f"--threads={len(os.sched_getaffinity(0))}"], env=env, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    seconds = time.perf_counter() - start
    epochs = [json.loads(line) for line in output.splitlines()]
    reached = [epoch["seconds"] for epoch in epochs if epoch["top1"] >= TARGET]
    found = {
        "seconds": seconds,
        "top1": epochs[-1]["top1"],
        "images_per_second": statistics.median(epoch["images_per_second"] for epoch in epochs),
        "parameters": epochs[-1]["parameters"],
        "seconds_to_target": reached[0] if reached else None,
        "epochs": epochs,
    }
    turns.write_json(done, found)
    return found


def arrays(folder: Path) -> Path:
    """The data set as an npz file, for torch."""
    import numpy as np

    from imgcls_jax.data import sources

    path = folder / "fashion_mnist.npz"
    if not path.exists():
        values: dict[str, np.ndarray] = {}
        for split in ("train", "test"):
            source = sources.open_source("fashion_mnist", split)
            assert isinstance(source, sources.ArraySource)
            values |= {f"{split}_images": source.images, f"{split}_labels": source.targets}
        np.savez(path, allow_pickle=False, **values)
    return path


def mean(values: Sequence[float], form: str) -> str:
    """Mean ± half of the 95% interval, Student's over the values; the mean alone of one."""
    from scipy import stats

    text = format(statistics.mean(values), form)
    if len(values) < 2:
        return text
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{text} ± {half:{form}}"


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A Markdown table: a line for each kind of run."""
    lines = ["| | seeds | test top-1 | by seed | seconds | img/s |", "| --- " * 6 + "|"]
    for name, runs in rows.items():
        top1, seconds = ([run[key] for run in runs] for key in ("top1", "seconds"))
        each = ", ".join(f"{100 * value:.2f}" for value in top1)
        rate = statistics.median(run["images_per_second"] for run in runs)
        cells = [name, str(len(runs)), mean([100 * value for value in top1], ".2f"), each, mean(seconds, ".0f")]
        lines.append(f"| {' | '.join(cells)} | {rate:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--torch_python", help="interpreter of an environment with torch; without it, ours alone")
    parser.add_argument("--torch_seeds", type=int, help="of torch, if fewer")
    parser.add_argument("--epochs", type=int, default=20, help="of torch")
    parser.add_argument("--ablations", type=int, metavar="EPOCHS", help="ours so long, whole and without each part")
    args = parser.parse_args()
    runs = args.output / f"ablations_{args.ablations}_epochs" if args.ablations else args.output
    runs.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(HERE.parent))
    kinds: dict[str, tuple[str, ...]] = {"configs/speedrun.py": ()}
    if args.ablations:
        kinds = {f"configs/speedrun.py, {args.ablations} epochs": (), **ABLATIONS}
        kinds = {name: (*flags, f"--config.total_epochs={args.ablations}.0") for name, flags in kinds.items()}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in kinds}
    peer = f"plain ResNet, torch, {args.epochs} epochs"
    for seed in range(args.seeds):
        for name, flags in kinds.items():
            folder = runs / f"{'-'.join(re.findall('[a-z0-9]+', name.lower()))}-{seed}"
            rows[name].append(whole_run(folder, seed, flags))
            print(f"seed {seed}, {name}: {rows[name][-1]}", flush=True)
        if args.torch_python and seed < (args.torch_seeds or args.seeds):
            run = torch_run(runs / f"torch{args.epochs}-{seed}", seed, args, arrays(runs))
            rows.setdefault(peer, []).append(run)
            said = {name: value for name, value in run.items() if name != "epochs"}
            print(f"seed {seed}, {peer}: {said}", flush=True)
        turns.write_json(runs / "speedrun.json", {**turns.machine(), "rows": rows})
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
