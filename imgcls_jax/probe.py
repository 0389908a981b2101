"""Probes a representation: k-NN and a linear classifier on features that are held fixed, one row of a table for each.

python -m imgcls_jax.probe --workdir=W [--step=N] [--ema]                            the model of a run
python -m imgcls_jax.probe --workdir=W --features=model,pixels,hog,sift_bow          and what came before deep learning
python -m imgcls_jax.probe --workdir=W --shots=1,5,10 [--seeds=5]                    few examples of each class
python -m imgcls_jax.probe --config=configs/resnet.py:DATA --config.init.from=SOURCE [--workdir=W]   weights of others
Besides: [--method=knn,linear] [--train_split=train] [--split=test] [--k=20] [--temperature=0.07]

Each row is written to W/eval/probe_<features>_<method>_<train split>[_<n>shot]_<split>[_ema].json.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from imgcls_jax import atomic, cli
from imgcls_jax import config as config_lib
from imgcls_jax.types import ConfigError, Spec, check_choice

if TYPE_CHECKING:
    from imgcls_jax.build import Run
    from imgcls_jax.representation.features import Describe, Features, Step
    from imgcls_jax.types import PyTree

FEATURES = ("model", "pixels", "hog", "sift_bow")
METHODS = ("knn", "linear")

USAGE = "Usage: python -m imgcls_jax.probe (--workdir=W [--step=N] [--ema] | --config=FILE[:ARG] [--workdir=W]) ..."


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
      features: of FEATURES.
      methods: of METHODS.
      train_split: what the classifiers learn from; "": the run's.
      split: what they are asked about; "": the run's.
      shots: examples of each class, a row for each number; empty: all examples.
      seeds: draws of each number of shots.
      k: neighbours.
      temperature: of their weights.
      step: of the checkpoint; None: the newest.
      ema: whether the averaged weights.
    """

    features: tuple[str, ...]
    methods: tuple[str, ...]
    train_split: str
    split: str
    shots: tuple[int, ...]
    seeds: int
    k: int
    temperature: float
    step: int | None
    ema: bool


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = _flags()
    from_config = any(arg.lstrip("-").partition("=")[0] == "config" for arg in argv)
    if from_config:
        config, workdir = cli.train_flags(argv, __doc__ or "", values)
    else:
        flags.DEFINE_string("workdir", None, "the run's work directory", flag_values=values)
        if cli.parse(values, ["probe", *argv]) or values.workdir is None:
            raise ConfigError(USAGE)
        workdir = Path(values.workdir)
        config = config_lib.read(workdir / "config.json")
    plan = _plan(values)

    from imgcls_jax import platform

    platform.initialize()
    if from_config:
        return _probe_weights(config, workdir, plan)
    return _probe_run(config, workdir, plan)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_list("features", ["model"], f"of {', '.join(FEATURES)}", flag_values=values)
    flags.DEFINE_list("method", list(METHODS), f"of {', '.join(METHODS)}", flag_values=values)
    flags.DEFINE_string("train_split", "", "what to learn from; data.train_split by default", flag_values=values)
    flags.DEFINE_string("split", "", "what to be asked about; data.eval_split by default", flag_values=values)
    flags.DEFINE_list("shots", [], "numbers of examples of each class; all by default", flag_values=values)
    flags.DEFINE_integer("seeds", 5, "draws of each number of shots", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("k", 20, "nearest neighbours", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", 0.07, "a neighbour weighs exp(cosine / temperature)", flag_values=values)
    flags.DEFINE_integer("step", None, "checkpoint to probe; the newest by default", flag_values=values)
    flags.DEFINE_boolean("ema", False, "probe the averaged weights", flag_values=values)
    return values


def _plan(values: flags.FlagValues) -> Plan:
    for name, choices in (("features", FEATURES), ("method", METHODS)):
        chosen = getattr(values, name)
        if not chosen:
            raise ConfigError(f"--{name} is empty; choices: {', '.join(choices)}.")
        for value in chosen:
            check_choice(f"--{name}", value, choices)
    if not values.temperature > 0:
        raise ConfigError(f"--temperature={values.temperature:g} must be above 0.")
    if any(not shot.isdecimal() or int(shot) < 1 for shot in values.shots):
        raise ConfigError(f"--shots={','.join(values.shots)} must be whole numbers of at least 1, such as 1,5,10.")
    return Plan(
        features=tuple(values.features),
        methods=tuple(values.method),
        train_split=values.train_split,
        split=values.split,
        shots=tuple(map(int, values.shots)),
        seeds=values.seeds,
        k=values.k,
        temperature=values.temperature,
        step=values.step,
        ema=values.ema,
    )


def _probe_run(config: config_lib.ConfigDict, workdir: Path, plan: Plan) -> int:
    """Probes a checkpoint of a run."""
    from imgcls_jax import build, workdirs

    run = build.build(config)
    step, variables = None, None
    if "model" in plan.features:
        step, variables = workdirs.restore_variables(run.abstract_state, workdir, plan.step, ema=plan.ema)
    return probe(run, workdir, dataclasses.replace(plan, step=step), variables)


def _probe_weights(config: config_lib.ConfigDict, workdir: Path, plan: Plan) -> int:
    """Probes what a run of a config would start from."""
    from imgcls_jax import build, workdirs

    if plan.step is not None or plan.ema:
        raise ConfigError("--step and --ema are of a run's checkpoints; leave out --config to probe those.")
    if (workdir / "checkpoints").exists():
        raise ConfigError(f"{workdir} holds a run: leave out --config to probe it, or pass another --workdir.")
    source = config.init["from"]
    if "model" in plan.features and not source:
        raise ConfigError(
            "A model of random weights has nothing to probe: pass --config.init.from=SOURCE, the --workdir of a run "
            "without --config, or --features without model."
        )
    config, weights = workdirs.starting_point(config, workdir)
    run = build.build(config)
    variables = build.first_state(run, weights)[0].variables() if "model" in plan.features else None
    workdirs.claim(config, workdir)
    return probe(run, workdir, plan, variables)


def probe(run: Run, workdir: Path, plan: Plan, variables: dict[str, PyTree] | None) -> int:
    """Makes the features, asks the classifiers, writes and prints a row for each. Returns 0.

    Args:
      run: names data and model.
      workdir: W.
      plan: what is asked for; its step is that of `variables`.
      variables: of the model; None: its features are not asked for.

    Raises:
      ConfigError: the data set has several labels an image, or the splits share records.
    """
    import jax

    from imgcls_jax import writers

    if run.spec.task == "multilabel":
        raise ConfigError(f"Probes are for one label an image, but {run.spec.name} has several.")
    plan = dataclasses.replace(
        plan, train_split=plan.train_split or run.config.data.train_split, split=plan.split or run.eval_split
    )
    _check_splits(plan, run.spec)
    progress = writers.Progress(enabled=jax.process_index() == 0)
    rows = []
    for kind in plan.features:
        progress.line(f"{kind}: features of {plan.train_split} and {plan.split}")
        train, test = extract(run, kind, plan, variables)
        if jax.process_index():
            continue  # the classifiers are the first process's
        for name, result in results(run.spec, kind, plan, train, test):
            if kind == "model":
                result = {"model": run.config.model.name, "step": plan.step, "ema": plan.ema, **result}
            _write(workdir / "eval" / f"{name}.json", {"data": run.spec.name, **result})
            rows.append(_row(result))
            progress.line(f"{rows[-1][0]}: {rows[-1][1]}")
    if rows:
        print(f"{run.spec.name}, {run.config.model.name}, learned from {plan.train_split}, asked about {plan.split}")
        print(writers.table(rows))
        print(f"  written to {workdir / 'eval'}/probe_*.json")
    return 0


def _check_splits(plan: Plan, spec: Spec) -> None:
    """Raises ConfigError for a split that is not there, and for records that are learned from and asked about."""
    from imgcls_jax.data import slices

    slices.check("--train_split", plan.train_split, spec)
    slices.check("--split", plan.split, spec)
    for a in slices.parse(plan.train_split, spec):
        for b in slices.parse(plan.split, spec):
            if a.split == b.split and a.start < b.stop and b.start < a.stop:
                raise ConfigError(
                    f"--train_split={plan.train_split} and --split={plan.split} share records, which a classifier "
                    "would only have to remember; take parts that do not overlap, such as train[:90%] and train[90%:]."
                )


def extract(run: Run, kind: str, plan: Plan, variables: dict[str, PyTree] | None) -> tuple[Features, Features]:
    """The features of one kind of both splits."""
    from imgcls_jax.representation import descriptors, features

    step: Step
    describe: Describe
    if kind == "model":
        assert variables is not None
        step, describe = features.model_step(run, variables), lambda values: values
    else:
        step = features.image_step(run)
        if kind == "sift_bow":
            describe = features.visual_words(run, plan.train_split)
        else:
            describe = {"pixels": descriptors.pixels, "hog": descriptors.hog}[kind]
    return features.extract(run, plan.train_split, step, describe), features.extract(run, plan.split, step, describe)


def results(spec: Spec, kind: str, plan: Plan, train: Features, test: Features) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the file, what it holds) of each method and number of shots."""
    from imgcls_jax import evaluate
    from imgcls_jax.representation import fewshot

    train_name, test_name = (
        evaluate.file_name(plan.train_split, ema=False),
        evaluate.file_name(plan.split, ema=plan.ema and kind == "model"),
    )
    for method in plan.methods:
        for shots in plan.shots or (0,):
            common: dict[str, Any] = {
                "features": kind,
                "method": method,
                "train_split": plan.train_split,
                "split": plan.split,
            }
            common |= {"num_features": train.values.shape[1], "num_examples": len(test.labels)}
            started = time.perf_counter()
            if not shots:
                found = _classify(method, spec, plan, train, test, np.arange(len(train.labels)))
                name = f"probe_{kind}_{method}_{train_name}_{test_name}"
            else:
                draws = [
                    _classify(method, spec, plan, train, test, fewshot.draw(train.labels, spec.num_classes, shots, s))
                    for s in range(plan.seeds)
                ]
                mean, interval = fewshot.mean_interval([draw["top1"] for draw in draws])
                found = {"shots": shots, "seeds": plan.seeds, "top1": mean, "top1_ci95": interval, "draws": draws}
                name = f"probe_{kind}_{method}_{train_name}_{shots}shot_{test_name}"
            yield name, {**common, **found, "seconds": round(time.perf_counter() - started, 2)}


def _classify(
    method: str, spec: Spec, plan: Plan, train: Features, test: Features, chosen: np.ndarray
) -> dict[str, Any]:
    """Learns from the chosen training examples: top1 of the test examples with its interval, and how it was learned."""
    from imgcls_jax.metrics import intervals
    from imgcls_jax.representation import knn, logistic

    values, labels, k = train.values[chosen], train.labels[chosen], spec.num_classes
    how: dict[str, Any]
    if method == "knn":
        predicted = knn.predict(values, labels, test.values, k, k=plan.k, temperature=plan.temperature)
        how = {"k": min(plan.k, len(values)), "temperature": plan.temperature}
    else:
        linear, choice = logistic.fit(values, labels, k)
        predicted = linear.predict(test.values)
        how = {"l2": choice.l2, "converged": linear.converged, "held_out": choice.held_out}
        how["sweep"] = [{"l2": l2, "held_out_top1": accuracy} for l2, accuracy in choice.sweep]
    correct = int((predicted == test.labels).sum())
    interval = intervals.share_interval(correct, len(predicted))
    return {"num_train": len(values), "top1": correct / len(predicted), "top1_ci95": interval, **how}


def _row(result: dict[str, Any]) -> tuple[str, str]:
    shots = f" {result['shots']}-shot" if "shots" in result else ""
    ends = result["top1_ci95"]
    text = f"{result['top1']:.4f}" + (f"  (95% interval {ends[0]:.4f} to {ends[1]:.4f})" if ends else "")
    if "shots" in result:
        text += f", mean of {result['seeds']} draws"
    if "l2" in result:
        text += f", L2 {result['l2']:g}" + ("" if result["converged"] else ", stopped before it converged")
    return f"{result['features']} {result['method']}{shots}", text


def _write(path: Path, result: dict[str, Any]) -> None:
    from imgcls_jax import evaluate

    with atomic.replacing(path) as temporary:
        temporary.write_text(evaluate.to_json(result))


if __name__ == "__main__":
    cli.program(main)
