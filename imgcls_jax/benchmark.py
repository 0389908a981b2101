"""Measures how fast models train, evaluate and are fed here, and which share of the device's own ceilings they reach.

python -m imgcls_jax.benchmark --models=resnet50,vit_small_patch16_224 --modes=train,eval --batch_sizes=8,32
  [--dtypes=float32,bfloat16] [--image_sizes=224] [--sweep_batch] [--profile] [--output=runs/benchmark]
  [--config=configs/resnet.py:fashion_mnist] [--config.optimizer.name=sgd ...]
python -m imgcls_jax.benchmark --preset=readme [--minutes=9]
python -m imgcls_jax.benchmark --check [--baseline=benchmarks/baseline/MACHINE.json]

First the ceilings are measured: the fastest matrix product in bfloat16 and in float32, and a copy. Then each case, all
combinations of the lists, in a process of its own, so that a batch that does not fit costs a row and no more. Timed are
the very steps of `main`, `eval` and `probe` on random images, compiled without a cache, after a warm-up:

- train: the train step; eval: the eval step; features: the same without the classifier;
- input: the training batches alone, made on the host;
- run: a whole run, with the share of the bare step's images a second that it reaches as its ratio.

Columns: ms and p95 are median and 95th percentile of a step; GB is the most memory in use, of the fullest device, on a
CPU of the whole process; GFLOP/img are counted from the model (two for a multiply-accumulate, three times as many in
training), XLA's are its own count; MFU is the counted share of the matrix product in the same dtype, copy the share of
the copy that the bytes which XLA says are moved would be (above 100% where caches help); ratio is as MFU, but of a
product that takes turns with the step; wait is the share of a run that waited for data.

The folder --output gets benchmark.json and benchmark.csv, written anew after each row. --check measures the rows of an
earlier benchmark.json again, with its config, and fails (exit code 1) if a ratio has lost 15% or more, also when the
row is measured a second time: ratios and not times, so that a busy machine does as well. A baseline is written by
  python -m imgcls_jax.benchmark --preset=check --output=F && cp F/benchmark.json benchmarks/baseline/MACHINE.json
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from imgcls_jax import atomic, cli
from imgcls_jax import config as config_lib
from imgcls_jax.types import ConfigError, UserError, check_choice

BASELINES = Path(__file__).parents[1] / "benchmarks" / "baseline"
DTYPES = ("float32", "bfloat16")


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_list("models", [], "names of the zoo; default: --config's model, or resnet50", flag_values=values)
    flags.DEFINE_list("modes", ["train"], "train, eval, features, input, run", flag_values=values)
    flags.DEFINE_list("dtypes", [], "float32, bfloat16; default: --config's", flag_values=values)
    flags.DEFINE_list("batch_sizes", [], "images of a step, over all devices; default: --config's", flag_values=values)
    flags.DEFINE_list("image_sizes", [], "pixels; default: --config's, or the model's own", flag_values=values)
    flags.DEFINE_integer("num_classes", 0, "classes; 0: the model's own", lower_bound=0, flag_values=values)
    flags.DEFINE_string("preset", "", "readme or check: a list of cases in place of all of these", flag_values=values)
    flags.DEFINE_float("seconds", 5.0, "for the timed steps of a case", lower_bound=0.01, flag_values=values)
    flags.DEFINE_integer("rounds", 5, "in which step and product take turns", lower_bound=1, flag_values=values)
    flags.DEFINE_float("minutes", 0.0, "after which nothing more is measured; 0: no limit", flag_values=values)
    flags.DEFINE_boolean(
        "sweep_batch", False, "double each batch until it is slower or fits no more", flag_values=values
    )
    flags.DEFINE_boolean("profile", False, "write traces, print the ten costliest operations", flag_values=values)
    flags.DEFINE_string("output", "runs/benchmark", "folder for benchmark.json, .csv and traces", flag_values=values)
    flags.DEFINE_boolean("check", False, "compare ratios with a baseline", flag_values=values)
    flags.DEFINE_string("baseline", "", "default: this machine's in benchmarks/baseline", flag_values=values)
    return values


class Session:
    """Measures cases one after the other, says so, and keeps what was found in files."""

    def __init__(self, values: flags.FlagValues) -> None:
        from imgcls_jax import writers
        from imgcls_jax.benchmarking import baseline, worker

        self.values, self.output = values, Path(values.output)
        self.progress = writers.Progress()
        self.deadline = time.monotonic() + 60 * values.minutes if values.minutes else None
        self.rows: list[Any] = []
        self.output.mkdir(parents=True, exist_ok=True)
        self.progress.update("measuring the device's ceilings")
        found = worker.call({"case": None, "seconds": min(1.0, values.seconds)}, self.left())
        if "error" in found:
            raise UserError(f"The device could not be measured: {found['error']}.")
        self.environment, self.platform, self.ceilings = found["environment"], found["platform"], found["ceilings"]
        self.machine = baseline.machine(self.environment)
        sizes = self.ceilings["matmul_size"]
        products = [
            f"{rate / 1e12:.4g} TFLOP/s {name} ({sizes[name]})" for name, rate in self.ceilings["matmul"].items()
        ]
        self.progress.line(f"{self.machine}: {', '.join(products)}; copy {self.ceilings['copy'] / 1e9:.4g} GB/s")

    def left(self) -> float | None:
        """Seconds until --minutes are over; None: there is no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def measure(self, config: ConfigDict, case: Any, about: str) -> Any:
        """The row of a case; `about` is shown before it, such as "2/8"."""
        from imgcls_jax.benchmarking import rows, trace, worker

        self.progress.update(f"{about}  {case}")
        profile = str(self.output / f"trace-{case.slug}") if self.values.profile and case.mode != "input" else None
        job = {
            "case": dataclasses.asdict(case),
            "config": config.to_dict(),
            "ceilings": self.ceilings,
            "seconds": self.values.seconds,
            "rounds": self.values.rounds,
            "profile": profile,
        }
        found: dict[str, Any] = {"error": worker.OUT_OF_TIME} if self.left() == 0 else worker.call(job, self.left())
        row = rows.failed(case, found["error"]) if "error" in found else rows.Row(**found["row"])
        self.rows.append(row)
        self.write(config)
        rate = f"{row.images_per_second:,.1f} img/s" if row.images_per_second else row.error
        self.progress.line(f"{about}  {case}: {rate}" + (f", MFU {row.mfu:.1%}" if row.mfu else ""))
        if profile and not row.error:
            operations = [trace.Operation(**one) for one in found["operations"]]
            self.progress.line(f"{trace.table(operations)}\ntrace: {profile}")
        return row

    def write(self, config: ConfigDict) -> None:
        """benchmark.json and benchmark.csv with the rows so far, atomically."""
        from imgcls_jax.benchmarking import rows

        result = {
            "machine": self.machine,
            "environment": self.environment,
            "ceilings": self.ceilings,
            "seconds": self.values.seconds,
            "rounds": self.values.rounds,
            "config": changed(config),
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }
        for name, text in (("json", json.dumps(result, indent=1) + "\n"), ("csv", rows.to_csv(self.rows))):
            with atomic.replacing(self.output / f"benchmark.{name}") as path:
                path.write_text(text)


def changed(config: ConfigDict) -> dict[str, Any]:
    """The keys of a config whose values are not `config.base()`'s, as `config.from_dict` takes them."""
    before = dict(config_lib.leaves(config_lib.base()))
    found: dict[str, Any] = {}
    for key, value in config_lib.leaves(config):
        if value != before[key]:
            *groups, name = key.split(".")
            node = found
            for group in groups:
                node = node.setdefault(group, {})
            node[name] = value
    return found


def asked(values: flags.FlagValues, config: ConfigDict, *, recipe: bool) -> list[Any]:
    """The cases that the flags name; what they leave out is the config's with a recipe, else the model's own.

    Raises:
      ConfigError: for a flag whose value makes no sense.
    """
    from imgcls_jax import models
    from imgcls_jax.benchmarking import rows

    for mode in values.modes:
        check_choice("--modes", mode, rows.MODES)
    for dtype in values.dtypes:
        check_choice("--dtypes", dtype, DTYPES)
    found = []
    for name in values.models or [config.model.name if recipe else "resnet50"]:
        own = models.variant(name)
        size, channels = own.preprocessing.image_size, own.channels
        if recipe:
            size, channels = config.data.image_size, config.data.channels
        found += rows.product(
            model=[name],
            image_size=_numbers("image_sizes", values.image_sizes) or [size],
            dtype=values.dtypes or [config.model.dtype],
            mode=values.modes,
            batch_size=_numbers("batch_sizes", values.batch_sizes) or [config.batch_size if recipe else 8],
            channels=[channels],
            num_classes=[values.num_classes or own.num_classes],
        )
    return found


def _numbers(flag: str, texts: Sequence[str]) -> list[int]:
    if not all(text.isdecimal() and int(text) > 0 for text in texts):
        raise ConfigError(f"--{flag}={','.join(texts)}: write whole numbers above 0 with commas between them.")
    return [int(text) for text in texts]


def measured(session: Session, config: ConfigDict, cases: Sequence[Any]) -> None:
    """Measures all cases, each with its batch doubled as far as it pays where --sweep_batch asks for it."""
    from imgcls_jax.benchmarking import timing

    for number, case in enumerate(cases, 1):
        about = f"{number}/{len(cases)}"
        if not session.values.sweep_batch:
            session.measure(config, case, about)
            continue

        def rate(batch_size: int, case: Any = case, about: str = about) -> float | None:
            tried = dataclasses.replace(case, batch_size=batch_size)
            return session.measure(config, tried, about).images_per_second

        fits = [(found, size) for size, found in timing.doubled(rate, case.batch_size) if found]
        if fits:
            _, size = max(fits)
            session.progress.line(f"{about}  {case.model} {case.mode} {case.dtype}: fastest with batch {size}")


def check(session: Session, file: str) -> None:
    """Measures the rows of a baseline again; a row that lost much a second time, and the better one counts.

    Raises:
      UserError: a ratio has lost `baseline.LOSS` or more; or there is no baseline for this machine.
    """
    from imgcls_jax.benchmarking import baseline

    path = Path(file) if file else BASELINES / f"{session.machine}.json"
    before, config = baseline.load(path)
    for number, row in enumerate(before, 1):
        about = f"{number}/{len(before)}"
        again = session.measure(config, row.case, about)
        if any(change.failed for change in baseline.compared([row], [again])):
            session.measure(config, row.case, f"{about} again")
    changes = baseline.compared(before, session.rows)
    print(baseline.table(changes))
    baseline.verdict(changes)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = _flags()
    spec, rest = cli.take_config(argv)
    config = config_lib.load(spec) if spec else config_lib.base()
    cli.override(config, rest, values)
    from imgcls_jax.benchmarking import presets, rows

    if values.preset:
        check_choice("--preset", values.preset, presets.PRESETS)
    cases = asked(values, config, recipe=spec is not None)
    session = Session(values)
    if values.check:
        check(session, values.baseline)
        return 0
    measured(session, config, presets.PRESETS[values.preset](session.platform) if values.preset else cases)
    print(rows.table(session.rows))
    print(f"{session.output / 'benchmark.json'}, {session.output / 'benchmark.csv'}")
    wrong = [row for row in session.rows if row.error and not row.error.startswith(rows.OUT_OF_MEMORY)]
    if wrong:
        raise UserError(f"{wrong[0].case}: {wrong[0].error.rstrip('.')}.")
    return 0


if __name__ == "__main__":
    cli.program(main)
