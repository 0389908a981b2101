"""Self-training: a teacher labels images that have no label, a student learns from them, and is the next teacher.

python -m imgcls_jax.self_train --config=configs/noisy_student.py:DATA --workdir=W
    [--rounds=2] [--unlabelled=train[1000:] | --unlabelled=files:FOLDER] [--labels=soft|hard] [--min_confidence=0.3]
    [--per_class=5900] [--config.KEY=VALUE ...] [--student.KEY=VALUE ...]

This is noisy student (arXiv:1911.04252). Round 0 trains the teacher on data.train_split. Each round after it trains a
student, from scratch and with noise, on the same records and on the unlabelled ones, labelled by the round before. A
round is a work directory, W/round0, W/round1, ..., of an ordinary run. The labels are in the teacher's, as
pseudo_labels_*.npz. At the end there is a table, and W/self_train.json. The same command continues after a kill; with
more --rounds it goes on.

--config.KEY=VALUE is for all rounds, --student.KEY=VALUE for the students; what their recipe changes is in the config
file. Any config file will do. Pseudo-labels as in Lee 2013, hard ones, once, and no noise:
    --config=configs/resnet.py:DATA --config.data.train_split=train[:1000] --unlabelled=train[1000:] --labels=hard
    --rounds=1
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from imgcls_jax import cli
from imgcls_jax import config as config_lib
from imgcls_jax.preemption import EXIT_CODE
from imgcls_jax.types import ConfigError, PyTree, UserError, check_choice

if TYPE_CHECKING:
    from imgcls_jax.build import Run
    from imgcls_jax.data.pseudo import PseudoLabels
    from imgcls_jax.data.sources import Source
    from imgcls_jax.state import TrainState
    from imgcls_jax.writers import Progress

LABELS = ("soft", "hard")

MAX_BYTES = 2**34  # of the probabilities of one round: 8.6 million images of 1,000 classes

# The config of the student of a round (1, 2, ...), made of a copy of the teacher's.
Student = Callable[[ConfigDict, int], ConfigDict]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a self-training does, beside the configs of its rounds.

    Attributes:
      unlabelled: a split of the data set, or "files:PATH".
      rounds: students, one after the other.
      labels: "soft": all probabilities of the teacher; "hard": its likeliest class.
      min_confidence: the least probability of the likeliest class.
      per_class: pseudo-labelled images of each class; 0: as many as are confident.

    Raises:
      ConfigError: for values that make no sense.
    """

    unlabelled: str = ""
    rounds: int = 2
    labels: str = "soft"
    min_confidence: float = 0.0
    per_class: int = 0

    def __post_init__(self) -> None:
        if not self.unlabelled:
            raise ConfigError("--unlabelled is missing; name a split, such as train[1000:], or files:FOLDER.")
        check_choice("--labels", self.labels, LABELS)
        if not 0 <= self.min_confidence < 1:
            raise ConfigError(f"--min_confidence={self.min_confidence:g} must be at least 0 and below 1.")


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = _flags()
    overrides = [arg for arg in argv if arg.lstrip("-").startswith(("student.", "nostudent."))]
    rest = [arg for arg in argv if arg not in overrides]
    config, workdir = cli.train_flags(rest, __doc__ or "", values)
    spec = cli.take_config(rest)[0]
    assert spec is not None  # or train_flags had raised
    recipe = config_lib.function(spec, "get_self_training")
    chosen = {field.name: values[field.name].value for field in dataclasses.fields(Plan)}
    plan = Plan(**{**(recipe() if recipe else {}), **{k: v for k, v in chosen.items() if v is not None}})
    student = students(config_lib.function(spec, "get_student"), overrides)

    signal.signal(signal.SIGTERM, _stop)  # while a round trains it saves first; everything else is done again
    import jax

    from imgcls_jax import platform

    platform.initialize()
    if jax.process_count() > 1:
        raise ConfigError("imgcls_jax.self_train runs in one process; start it on one host.")
    return self_train(plan, config, student, workdir)


def _flags() -> flags.FlagValues:
    values, recipe = flags.FlagValues(), "; by default the recipe's"
    flags.DEFINE_string("unlabelled", None, "split, or files:FOLDER, without labels" + recipe, flag_values=values)
    flags.DEFINE_integer("rounds", None, "students, one after the other" + recipe, lower_bound=1, flag_values=values)
    flags.DEFINE_string("labels", None, "soft (probabilities) | hard (classes)" + recipe, flag_values=values)
    flags.DEFINE_float("min_confidence", None, "least probability of a pseudo-label" + recipe, flag_values=values)
    flags.DEFINE_integer(
        "per_class", None, "pseudo-labelled images of each class; 0: no balance" + recipe, 0, flag_values=values
    )
    return values


def _stop(number: int, frame: FrameType | None) -> None:
    print("Stopped by a signal; finished rounds are kept. The same command continues.", file=sys.stderr)
    raise SystemExit(EXIT_CODE)


def students(change: Callable[..., None] | None, overrides: Sequence[str]) -> Student:
    """What makes the students' configs of the teacher's.

    Args:
      change: of the recipe: (config, round) -> None, changes the config; None: it has no such function.
      overrides: flags --student.KEY=VALUE.
    """
    renamed = [arg.replace("student.", "config.", 1) for arg in overrides]

    def student(teacher: ConfigDict, number: int) -> ConfigDict:
        config = teacher.copy_and_resolve_references()
        config.seed = teacher.seed + number  # or a student of the same size would begin as its teacher did
        if change is not None:
            change(config, number)
        try:
            cli.override(config, renamed, flags.FlagValues())
        except ConfigError as error:
            raise ConfigError(str(error).replace("--config.", "--student.")) from error
        return config

    return student


def self_train(plan: Plan, config: ConfigDict, student: Student, workdir: Path) -> int:
    """Trains the teacher and the students, from wherever they stand. Returns the exit code: 0, or 143 when stopped.

    Args:
      plan: what to do.
      config: the teacher's, locked.
      student: the students' configs.
      workdir: new, or of a self-training of this plan and these configs.

    Raises:
      UserError: as training does, or no unlabelled image can be labelled.
    """
    from imgcls_jax import evaluate, train, writers

    check(plan, config, student)
    claim(plan, workdir)
    progress = writers.Progress()
    labels: PseudoLabels | None = None
    rounds: list[dict[str, Any]] = []
    for number in range(plan.rounds + 1):
        folder = workdir / f"round{number}"
        mine = config
        if labels is not None:
            mine = student(config, number)
            mine.data.pseudo_labels = str(workdir / f"round{number - 1}" / labels.file_name())
        progress.line(f"Round {number} of {plan.rounds}: {'student' if number else 'teacher'}, in {folder}")
        code = train.train(mine, folder, at_end=_report_once)
        if code:
            return code
        found = labels_of(plan, folder, progress)
        rounds.append(outcome(number, folder, learned=labels, said=found))
        labels = found
    path = evaluate.write_json(workdir / "self_train.json", {**dataclasses.asdict(plan), "results": rounds})
    progress.line(f"Self-training on {config.data.name}; unlabelled: {plan.unlabelled}\n{table(rounds)}")
    progress.line(f"  written to {path}")
    return 0


def _report_once(run: Run, folder: Path, state: TrainState) -> None:
    """As training does at its end; a round that was finished before has its report."""
    from imgcls_jax import report

    if not (folder / "report.html").exists():
        report.write_at_end(run, folder, state)


def check(plan: Plan, config: ConfigDict, student: Student) -> None:
    """Raises ConfigError or UserError for what would only be found when the teacher is trained."""
    from imgcls_jax import build
    from imgcls_jax.data import inputs, slices

    if config.data.pseudo_labels:
        raise ConfigError("data.pseudo_labels is set by imgcls_jax.self_train; leave it empty.")
    run = build.build(config)
    if run.spec.task != "multiclass":
        raise ConfigError(f"Self-training is for one label an image, but {run.spec.name} has several.")
    if not plan.unlabelled.startswith(inputs.FILES):
        slices.check("--unlabelled", plan.unlabelled, run.spec)
    inputs.open_unlabelled(plan.unlabelled, run.spec, run.open_split)
    for number in range(1, plan.rounds + 1):
        build.build(student(config, number))


def claim(plan: Plan, workdir: Path) -> None:
    """Makes the work directory this plan's, or refuses; only the number of rounds may change.

    Raises:
      ConfigError: if it belongs to another plan, naming what differs.
    """
    from imgcls_jax import evaluate

    path, mine = workdir / "plan.json", dataclasses.asdict(plan)
    del mine["rounds"]
    if path.exists():
        theirs = json.loads(path.read_text())
        changed = [f"{key}: {theirs.get(key)} -> {value}" for key, value in mine.items() if theirs.get(key) != value]
        if changed:
            raise ConfigError(
                f"{workdir} holds a self-training with another plan ({'; '.join(changed)}); use another --workdir, or "
                "the flags it was started with."
            )
    evaluate.write_json(path, mine)


def labels_of(plan: Plan, folder: Path, progress: Progress) -> PseudoLabels:
    """What the model of a finished round says of the unlabelled records: read if it was asked before, else asked.

    The averaged weights are asked if the round kept an average, in evaluation mode.
    """
    from imgcls_jax import build, workdirs
    from imgcls_jax.data import inputs, pseudo

    for path in sorted(folder.glob("pseudo_labels_*.npz")):
        return pseudo.read(path)
    config = config_lib.read(folder / "config.json")
    run = build.build(config)
    source = inputs.open_unlabelled(plan.unlabelled, run.spec, run.open_split)
    ema = config.optimizer.ema_decay > 0 or config.optimizer.swa_start > 0
    _, variables = workdirs.restore_variables(run.abstract_state, folder, run.total_steps, ema=ema)
    labels = ask(run, variables, source, plan, progress)
    labels.write(folder)
    return labels


def ask(run: Run, variables: dict[str, PyTree], source: Source, plan: Plan, progress: Progress) -> PseudoLabels:
    """Pseudo-labels for the records of a source, chosen as the plan says.

    Raises:
      UserError: an output is not finite, nothing is confident enough, or the probabilities do not fit in MAX_BYTES.
    """
    from imgcls_jax.data import pseudo

    total, k, soft = len(source), run.spec.num_classes, plan.labels == "soft"
    if soft and 2 * total * k > MAX_BYTES:
        raise UserError(
            f"The probabilities of {total:,} images and {k:,} classes take {2 * total * k / 2**30:,.0f} GB, more than "
            f"{MAX_BYTES / 2**30:.0f}: pass --labels=hard, or name a part of the split in --unlabelled."
        )
    predicted, confidence = np.full(total, -1, np.int32), np.zeros(total, np.float32)
    kept = np.zeros((total, k) if soft else 0, np.float16)
    for index, values in probabilities(run, variables, source, progress):
        if not np.isfinite(values).all():
            raise UserError(
                f"{run.config.model.name} gives outputs that are not finite for {plan.unlabelled}: lower optimizer.lr."
            )
        predicted[index], confidence[index] = values.argmax(axis=1), values.max(axis=1)
        if soft:
            kept[index] = values
    count = pseudo.choose(
        predicted,
        confidence,
        num_classes=k,
        min_confidence=plan.min_confidence,
        per_class=plan.per_class,
        seed=run.config.seed,
    )
    if not count.any():
        raise UserError(
            f"No image of {plan.unlabelled} has a confidence of {plan.min_confidence:g}; the highest is "
            f"{confidence.max():.3f}: lower --min_confidence."
        )
    return pseudo.PseudoLabels(
        unlabelled=plan.unlabelled,
        records=pseudo.fingerprint(source),
        class_names=run.spec.class_names,
        predicted=predicted,
        confidence=confidence,
        count=count,
        soft=kept[count > 0] if soft else None,
    )


def probabilities(
    run: Run, variables: dict[str, PyTree], source: Source, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(index [b], probabilities [b,K] float32) of the records of a source that can be read, a batch at a time."""
    import jax
    import jax.numpy as jnp

    from imgcls_jax import build, dispatch

    c = run.config
    size, softmax = c.eval.batch_size, jax.jit(lambda logits: jax.nn.softmax(logits.astype(jnp.float32)))
    batches = build.read_once(run, source, batch_size=size, on_error=c.data.on_error)
    try:
        asked = ((b, run.eval_step(variables, build.put(run, size, b))["logits"]) for b in batches)
        late = dispatch.one_late((batch, softmax(logits)) for batch, logits in asked)
        for done, (batch, values) in enumerate(late, 1):
            mask = batch["mask"]
            yield batch["index"][mask], np.asarray(values)[mask]
            progress.update(f"labelling: {done}/{-(-len(source) // size)} batches", force=False)
    finally:
        batches.close()


def outcome(number: int, folder: Path, *, learned: PseudoLabels | None, said: PseudoLabels) -> dict[str, Any]:
    """A line of the table, and an entry of W/self_train.json.

    Args:
      number: of the round.
      folder: its work directory.
      learned: the pseudo-labels that it was trained on; None: it is the teacher.
      said: what it says of the unlabelled records itself.

    Returns:
      round; workdir, its name; model; ema: whether the numbers are of averaged weights; top1, top1_ci95 and
      num_examples, of the evaluation split; pseudo_labels: unlabelled records that it was trained on;
      pseudo_labels_taken: with duplicates; mean_confidence of those records; agreement: share of all unlabelled records
      that can be read of which it says the class that its teacher said. The last four are null for the teacher.
    """
    from imgcls_jax import build, evaluate

    config = config_lib.read(folder / "config.json")
    ema = config.optimizer.ema_decay > 0 or config.optimizer.swa_start > 0
    split = build.eval_split(config)
    result = json.loads((folder / "eval" / f"{evaluate.file_name(split, ema=ema)}.json").read_text())
    row: dict[str, Any] = {"round": number, "workdir": folder.name, "model": config.model.name, "ema": ema}
    row |= {key: result[key] for key in ("top1", "top1_ci95", "num_examples")}
    row |= dict.fromkeys(("pseudo_labels", "pseudo_labels_taken", "mean_confidence", "agreement"))
    if learned is not None:
        taken = learned.count > 0
        both = (learned.predicted >= 0) & (said.predicted >= 0)
        row["pseudo_labels"] = int(taken.sum())
        row["pseudo_labels_taken"] = int(learned.count.sum())
        row["mean_confidence"] = float(learned.confidence[taken].mean(dtype=np.float64))
        row["agreement"] = float((learned.predicted == said.predicted)[both].mean())
    return row


def table(rounds: Sequence[dict[str, Any]]) -> str:
    """A line for each round: test top-1 with its interval, and what it was trained on."""
    lines = [["round", "model", "top-1  (95% interval)", "pseudo-labels", "with duplicates", "confidence", "agreement"]]
    for row in rounds:
        interval = row["top1_ci95"]
        cells = [str(row["round"]), row["model"] + (" (EMA)" if row["ema"] else "")]
        cells.append(f"{row['top1']:.4f}  ({interval[0]:.4f} to {interval[1]:.4f})")
        for key, form in (
            ("pseudo_labels", ",d"),
            ("pseudo_labels_taken", ",d"),
            ("mean_confidence", ".4f"),
            ("agreement", ".4f"),
        ):
            cells.append("-" if row[key] is None else format(row[key], form))
        lines.append(cells)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  " + "  ".join(map(str.rjust, line, widths)) for line in lines)


if __name__ == "__main__":
    cli.program(main)
