"""Evaluates a run's checkpoint on a split: prints a table, writes W/eval/<split>.json and <split>.predictions.npz.

python -m imgcls_jax.eval --workdir=W [--split=test] [--step=N] [--ema]
    [--tta=flip|five_crop|ten_crop] [--average=STEP,STEP,...] [--ensemble=W2,W3]    files' names say so: test_flip.json
python -m imgcls_jax.eval --workdir=W --data=NAME[:split]     W/eval/<split>_NAME.json: another data set of the run's
                                      classes, matched by name, or of some of them: all that is then chosen from
python -m imgcls_jax.eval --workdir=W --split=validation --real_labels=real.json      ImageNet-ReaL: any of its labels
python -m imgcls_jax.eval --workdir=W --fit_temperature --split=validation    fits and writes W/temperature.json
python -m imgcls_jax.eval --workdir=W --compare=W2 [--split=test] [--ema]     two runs that were evaluated on a split
python -m imgcls_jax.eval --workdir=W --corruptions[=snow,fog] [--severities=1,3,5] [--baseline=W2]
                                                      W/eval/<split>_corruptions.json: common corruptions, mCE
python -m imgcls_jax.eval --workdir=W --ood=NAME[:split] [--neighbour=K]
                                                      W/eval/<split>_ood_NAME.json: telling another data set apart
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from imgcls_jax import cli
from imgcls_jax import config as config_lib
from imgcls_jax.types import ConfigError, PyTree, UserError

if TYPE_CHECKING:
    from imgcls_jax import build
    from imgcls_jax.evaluate import Stopwatch
    from imgcls_jax.metrics.examples import Examples
    from imgcls_jax.other_data import Other

USAGE = (
    "Usage: python -m imgcls_jax.eval --workdir=W [--split=test | --data=NAME[:split]] [--step=N] [--ema] "
    "[--fit_temperature | --compare=W2 | --corruptions[=NAME,...] | --ood=NAME]."
)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's work directory", flag_values=values)
    flags.DEFINE_string(
        "split", None, "split to evaluate, also a part, test[:10%]; data.eval_split by default", flag_values=values
    )
    flags.DEFINE_integer("step", None, "checkpoint to evaluate; the newest by default", flag_values=values)
    flags.DEFINE_boolean("ema", False, "evaluate the averaged weights", flag_values=values)
    flags.DEFINE_boolean(
        "fit_temperature", False, "fit the temperature that calibrates, on a split held out for it", flag_values=values
    )
    flags.DEFINE_string("compare", None, "another run's work directory: paired differences", flag_values=values)
    text: flags.ArgumentParser[str] = flags.ArgumentParser()
    flags.DEFINE_flag(  # boolean: it may stand without a value
        flags.Flag(text, None, "corruptions", None, "corrupt the images: all ways, or those named", boolean=True),
        flag_values=values,
    )
    flags.DEFINE_list("severities", ["1", "2", "3", "4", "5"], "of the corruptions", flag_values=values)
    flags.DEFINE_string("baseline", None, "another run's work directory: mCE relative to it", flag_values=values)
    flags.DEFINE_string("ood", None, "another data set, NAME or NAME:split, to tell apart", flag_values=values)
    flags.DEFINE_integer("neighbour", None, "--ood: which nearest training example", lower_bound=1, flag_values=values)
    flags.DEFINE_string("data", None, "another data set of these classes, NAME or NAME:split", flag_values=values)
    flags.DEFINE_string("real_labels", None, "real.json, the labels of ImageNet-ReaL", flag_values=values)
    flags.DEFINE_enum(
        "tta",
        None,
        ["flip", "flip_shift", "five_crop", "ten_crop"],
        "mean over the image and its mirror image, those and both moved by a pixel, corners and centre, or those and "
        "their mirror images; default: eval.tta",
        flag_values=values,
    )
    flags.DEFINE_list("average", [], "steps of checkpoints whose weights are averaged", flag_values=values)
    flags.DEFINE_list("ensemble", [], "other runs, whose probabilities are averaged with W's", flag_values=values)
    rest = cli.parse(values, ["eval", *argv])
    if rest or values.workdir is None:
        raise ConfigError(USAGE)
    _check(values)
    workdir = Path(values.workdir)
    config = config_lib.read(workdir / "config.json")
    if values.compare is not None:
        return compare_runs(config, workdir, values)

    from imgcls_jax import platform

    platform.initialize()
    if values.fit_temperature:
        return fit_temperature(config, workdir, values.split, values.step, ema=values.ema)
    if values.corruptions is not None:
        return corrupt_run(config, workdir, values)
    if values.ood is not None:
        return reject_run(config, workdir, values)
    return evaluate_run(config, workdir, values)


def _check(values: flags.FlagValues) -> None:
    """Raises ConfigError for flags that contradict each other."""
    if values.compare is not None and (values.fit_temperature or values.step is not None):
        raise ConfigError(
            "--compare reads what both runs' evaluations left; it goes with --data, --real_labels, --split and --ema "
            "only."
        )
    if values.fit_temperature and values.split is None:
        raise ConfigError(
            "--fit_temperature needs --split: name one that was neither trained on nor is reported, "
            "such as --split=validation."
        )
    chosen = [name for name in ("compare", "fit_temperature", "corruptions", "ood") if values[name].value]
    if len(chosen) > 1:
        raise ConfigError(f"--{chosen[0]} and --{chosen[1]} are two evaluations; run one after the other.")
    if values.corruptions is None and (values.baseline is not None or values["severities"].present):
        raise ConfigError("--severities and --baseline go with --corruptions.")
    if values.neighbour is not None and values.ood is None:
        raise ConfigError("--neighbour goes with --ood.")
    if values.data is not None and values.split is not None:
        raise ConfigError(
            f"--split is of the run's own data set; name the other's with it: --data={values.data}:SPLIT."
        )
    others = [name for name in ("data", "real_labels") if values[name].value is not None]
    if others and [name for name in chosen if name != "compare"]:
        raise ConfigError(f"--{others[0]} goes with a plain evaluation or --compare; leave out --{chosen[0]}.")
    combined = [name for name in ("tta", "average", "ensemble") if values[name].value]
    if chosen and combined:
        raise ConfigError(f"--{combined[0]} goes with a plain evaluation; leave out --{chosen[0]}.")
    if values.average and (values.ensemble or values.step is not None):
        raise ConfigError("--average names the checkpoints of one run; leave out --step and --ensemble.")
    if values.ensemble and values.step is not None:
        raise ConfigError("--ensemble takes the newest checkpoint of each run; leave out --step.")
    if not all(step.isdecimal() for step in values.average):
        raise ConfigError(f"--average={','.join(values.average)} is not a list of steps, such as 800,900,1000.")


def restored(
    config: config_lib.ConfigDict,
    workdir: Path,
    split: str | None,
    step: int | None,
    *,
    ema: bool,
    average: Sequence[int] = (),
) -> tuple[build.Run, str, int, dict[str, PyTree]]:
    """One checkpoint, or the average of several, and a split of the data set: (run, split, step, variables)."""
    from imgcls_jax import build, workdirs
    from imgcls_jax.data import slices

    run = build.build(config)
    split = split or run.eval_split
    slices.check("--split", split, run.spec)
    if average:
        return run, split, max(average), workdirs.restore_average(run.abstract_state, workdir, average, ema=ema)
    step, variables = workdirs.restore_variables(run.abstract_state, workdir, step, ema=ema)
    return run, split, step, variables


def examples(
    config: config_lib.ConfigDict,
    workdir: Path,
    split: str | None,
    step: int | None,
    *,
    ema: bool,
    average: Sequence[int] = (),
    tta: str | None = None,
    other: Other | None = None,
    stopwatch: Stopwatch | None = None,
) -> tuple[build.Run, str, int, Examples]:
    """Restores one checkpoint of a run and asks it about a split: (run, split, step, what it says of each example).

    With `other`, about that in place of a split; the run is then as `other_data.open_other` gives it.
    """
    import jax

    from imgcls_jax import build, other_data, train, writers
    from imgcls_jax.augment import host

    run, split, step, variables = restored(config, workdir, split, step, ema=ema, average=average)
    classes, transforms = None, []
    if other is not None:
        run, classes = other_data.open_other(run, other)
        split = other.split
    if tta is not None or other is not None:
        run = build.with_eval_step(run, tta=tta, classes=classes)
    if other is not None:  # where the run's evaluation leaves images of another size
        transforms = [host.ResizeCentreCrop(run.config.data.image_size, crop_pct=1.0)]
    progress = writers.Progress(enabled=jax.process_index() == 0)
    found = train.evaluate_split(
        run, variables, split, progress, keep_logits=True, transforms=transforms, stopwatch=stopwatch
    )
    progress.line("")
    return run, split, step, found


def other_of(config: config_lib.ConfigDict, values: flags.FlagValues) -> Other | None:
    """What --data and --real_labels ask about; None without them."""
    from imgcls_jax import build, other_data

    if values.data is None and values.real_labels is None:
        return None
    real_labels = None if values.real_labels is None else Path(values.real_labels)
    if values.data is None:
        return other_data.Other(config.data.name, values.split or build.eval_split(config), real_labels)
    return other_data.Other(*other_data.data_and_split("--data", values.data, config.data.data_dir), real_labels)


def evaluate_run(config: config_lib.ConfigDict, workdir: Path, values: flags.FlagValues) -> int:
    """Evaluates a checkpoint of a run, or what is made of several, on a split; prints and writes it. Returns 0."""
    import jax

    from imgcls_jax import evaluate, writers
    from imgcls_jax.metrics import anyof

    average, other = sorted({int(step) for step in values.average}), other_of(config, values)
    stopwatch = evaluate.Stopwatch()
    ask = partial(examples, ema=values.ema, tta=values.tta, other=other)
    run, split, step, found = ask(config, workdir, values.split, values.step, average=average, stopwatch=stopwatch)
    members = [(config, run)]
    if values.ensemble:
        configs = [(config_lib.read(Path(path) / "config.json"), Path(path)) for path in values.ensemble]
        answers = [(c, ask(c, path, None if other else split, None)) for c, path in configs]
        members += [(c, answer[0]) for c, answer in answers]
        found = evaluate.ensemble([found, *(answer[3] for _, answer in answers)])
    costs = cost(members, values.tta, None if values.ensemble else stopwatch.images_per_second)
    if jax.process_index():
        return 0
    how: dict[str, Any] = {name: values[name].value for name in ("tta", "average", "ensemble") if values[name].value}
    fitted = evaluate.read_temperature(workdir)
    usable = fitted is not None and (fitted.step, fitted.ema) == (step, values.ema) and not how
    temperature = fitted.temperature if fitted is not None and usable else None
    about: dict[str, Any] = {}
    if other is not None:
        about = {"data": other.name, "split": split, "classes": run.spec.num_classes, "of_classes": _known(run)}
    if run.spec.task == "any_of":
        asked, found = len(found), anyof.labelled(found)
        about["num_without_labels"] = asked - len(found)
    result = evaluate.report(found, topk=config.eval.topk, temperature=temperature) | about
    result |= {"step": step, "ema": values.ema, **evaluate.shown(config.eval.tta), **how}
    result["cost"] = costs
    name = evaluate.file_name(other.stem if other else split, ema=values.ema)
    name += "".join(f"_{values.tta if key == 'tta' else key}" for key in how)
    path = evaluate.write(workdir, name, found, result, data=run.spec.name, split=split)
    print(f"{run.spec.name} {split}, {config.model.name} at step {step}{' (EMA)' if values.ema else ''}")
    for key, value in how.items():
        print(f"  {key}: {value if isinstance(value, str) else ', '.join(value)}")
    print(writers.table([*_about_rows(about), *evaluate.summary(result), *_cost_rows(costs)]))
    for note in result["notes"]:
        print(f"  {note}")
    if fitted is not None and not usable:
        of = f"step {fitted.step}{' (EMA)' if fitted.ema else ''}"
        print(f"  temperature.json is of {of} and was not used; fit again with --fit_temperature")
    print(f"  written to {path}")
    return 0


def cost(
    members: Sequence[tuple[config_lib.ConfigDict, build.Run]], tta: str | None, images_per_second: float | None
) -> dict[str, Any]:
    """What an evaluation cost, of one model or of several together.

    Args:
      members: (config, run) of each model.
      tta: what each was shown of an image; None: what its config says.
      images_per_second: as `evaluate.Stopwatch` measured it; None: it was not.

    Returns:
      parameters; gmacs: 1e9 multiply-accumulates an image, over all models and views (`models.cost`);
      images_per_second; peak_memory_bytes and peak_memory_of (`platform.peak_memory`).
    """
    from imgcls_jax import build, platform
    from imgcls_jax.augment import views
    from imgcls_jax.models import cost

    counts = [cost.count(run.model, build.image_shape(config)) for config, run in members]
    shown = [tta or config.eval.tta for config, _ in members]
    macs = sum(macs * views.COUNTS.get(name, 1) for (_, macs), name in zip(counts, shown, strict=True))
    peak, peak_of = platform.peak_memory()
    return {
        "parameters": sum(parameters for parameters, _ in counts),
        "gmacs": macs / 1e9,
        "images_per_second": images_per_second,
        "peak_memory_bytes": peak,
        "peak_memory_of": peak_of,
    }


def _cost_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    speed = found["images_per_second"]
    where = {"device": "on the fullest device", "process": "of the process"}[found["peak_memory_of"]]
    return [
        ("parameters", f"{found['parameters']:,}"),
        ("GMACs", f"{found['gmacs']:.4g} an image"),
        *([("images / s", f"{speed:,.0f}, reading included")] if speed is not None else []),
        ("peak memory", f"{found['peak_memory_bytes'] / 2**20:,.0f} MiB {where}"),
    ]


def _known(run: build.Run) -> int:
    """How many classes the model knows."""
    return int(run.model.num_classes)


def _about_rows(about: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if about.get("classes") != about.get("of_classes"):
        rows.append(("classes", f"{about['classes']:,} of the {about['of_classes']:,} that the model knows"))
    if about.get("num_without_labels"):
        rows.append(("without label", f"{about['num_without_labels']:,} images, which count in nothing"))
    return rows


def fit_temperature(config: config_lib.ConfigDict, workdir: Path, split: str, step: int | None, *, ema: bool) -> int:
    """Fits the temperature of one checkpoint on a split, prints and writes it. Returns 0."""
    import jax

    from imgcls_jax import evaluate, writers

    run, split, step, found = examples(config, workdir, split, step, ema=ema)
    fitted = evaluate.fit_temperature(found, split=split, step=step, ema=ema)
    if jax.process_index():
        return 0
    path = evaluate.write_temperature(workdir, fitted)
    rows = [("temperature", f"{fitted.temperature:.4f}")]
    rows += [("nll", f"{fitted.nll_before:.4f} before, {fitted.nll_after:.4f} after")]
    rows += [("ece", f"{fitted.ece_before:.4f} before, {fitted.ece_after:.4f} after")]
    print(f"Fitted on {run.spec.name} {split}, {config.model.name} at step {step}{' (EMA)' if ema else ''}")
    print(writers.table(rows))
    print(f"  written to {path}")
    return 0


def corrupt_run(config: config_lib.ConfigDict, workdir: Path, values: flags.FlagValues) -> int:
    """Evaluates a run on corrupted images (the flags --corruptions and after), prints and writes it. Returns 0."""
    import jax

    from imgcls_jax import evaluate, robustness, writers

    names = robustness.corruption_names(values.corruptions)
    levels = robustness.severities(values.severities)
    run, split, step, variables = restored(config, workdir, values.split, values.step, ema=values.ema)
    name = evaluate.file_name(split, ema=values.ema)
    baseline = None if values.baseline is None else robustness.read_corrupted(Path(values.baseline), name)
    progress = writers.Progress(enabled=jax.process_index() == 0)
    found = robustness.corrupted(run, variables, split, names, levels, progress)
    if jax.process_index():
        return 0
    result = {"data": run.spec.name, "split": split, "step": step, "ema": values.ema, **found}
    if baseline is not None:
        result |= robustness.against(result, *baseline)
    path = evaluate.write_json(workdir / "eval" / f"{name}_corruptions.json", result)
    print(f"{run.spec.name} {split} corrupted, {config.model.name} at step {step}{' (EMA)' if values.ema else ''}")
    print(robustness.corruption_table(result))
    print(f"  written to {path}")
    return 0


def reject_run(config: config_lib.ConfigDict, workdir: Path, values: flags.FlagValues) -> int:
    """Tells a run's data set from another by the model's scores (the flag --ood), prints and writes it. Returns 0."""
    import jax

    from imgcls_jax import evaluate, other_data, robustness, train, writers

    other, other_split = other_data.data_and_split("--ood", values.ood, config.data.data_dir)
    run, split, step, variables = restored(config, workdir, values.split, values.step, ema=values.ema)
    progress = writers.Progress(enabled=jax.process_index() == 0)
    inside = train.evaluate_split(run, variables, split, progress, keep_logits=True)
    outside = robustness.foreign(run, variables, other, other_split, progress)
    near, notes = None, []
    try:
        near = robustness.neighbours(run, variables, split, other, other_split, values.neighbour, progress)
    except ConfigError:
        raise
    except UserError as error:
        notes.append(f"knn is left out: {error}")
    progress.line("")
    if jax.process_index():
        return 0
    head = {"data": run.spec.name, "split": split, "step": step, "ema": values.ema}
    result = {**head, "other_data": other, "other_split": other_split, **robustness.rejection(inside, outside, near)}
    result["notes"] = notes
    name = evaluate.file_name(split, ema=values.ema)
    other_name = evaluate.file_name(f"{other}_{other_split}", ema=False)
    path = evaluate.write_json(workdir / "eval" / f"{name}_ood_{other_name}.json", result)
    print(f"{run.spec.name} {split} against {other} {other_split}, {config.model.name} at step {step}")
    print(robustness.rejection_table(result))
    print(f"  written to {path}")
    return 0


def compare_runs(config: config_lib.ConfigDict, workdir: Path, values: flags.FlagValues) -> int:
    """Prints the paired differences of two runs that were evaluated on the same split. Returns 0."""
    from imgcls_jax import build, evaluate, writers

    asked, other = other_of(config, values), Path(values.compare)
    name = evaluate.file_name(asked.stem if asked else values.split or build.eval_split(config), ema=values.ema)
    found = evaluate.compare(*(evaluate.read_predictions(path, name) for path in (workdir, other)))
    first, second = found["accuracy"]
    rows = [("examples", f"{found['num_examples']:,}")]
    rows += [("accuracy", f"{first:.4f} and {second:.4f}")]
    for key in ("accuracy_difference", "nll_difference"):
        ends = found[f"{key}_ci95"]
        rows += [(key, f"{found[key]:+.4f}" + (f"  (95% interval {ends[0]:+.4f} to {ends[1]:+.4f})" if ends else ""))]
    rows += [("only one right", f"{found['only_first_correct']:,} and {found['only_second_correct']:,}")]
    rows += [("McNemar p", f"{found['p_mid']:.4g} mid-p, {found['p_exact']:.4g} exact")]
    print(f"{name}: {other} minus {workdir}")
    print(writers.table(rows))
    return 0


if __name__ == "__main__":
    cli.program(main)
