"""Says what is in images: one record an image, in the order of the inputs.

python -m imgcls_jax.predict --workdir=W INPUT... [--step=N] [--ema] [--top_k=5] [--threshold=0.5]
    [--output=preds.jsonl|.csv|.parquet] [--recursive] [--organise=DIR [--link]] [--batch_size=64]

INPUT is a file, a folder, a pattern such as 'photos/*.jpg', or - for a list of files on standard input, separated by
line breaks or, if there are any, NUL characters. Without --output the records go to standard output, as JSONL.

A record has path, and classes and probabilities, the most likely first: the top k, or where an image may have several
labels all that reach the threshold. Probabilities are calibrated if W/temperature.json is of the checkpoint. With
--threshold, an image whose best probability is below it has rejected: "none of these". One that cannot be read has
error: the reason, in place of classes and probabilities.

OUTPUT appears when it is complete. Until then OUTPUT.partial holds what is done, and the same command continues it.

Exit codes: 0 all images are predicted; 3 all are done but some have an error; 1 another error; 2 bad command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from imgcls_jax import cli, predictions, writers
from imgcls_jax import config as config_lib
from imgcls_jax.judge import REJECTED, Judge
from imgcls_jax.organise import Organiser
from imgcls_jax.predictions import Record
from imgcls_jax.types import ConfigError

if TYPE_CHECKING:
    from imgcls_jax import build


def predict(
    run: build.Run, variables: Mapping[str, Any], judge: Judge, files: Sequence[str], batch_size: int
) -> Iterator[list[Record]]:
    """Records of image files, in their order, a batch at a time; reading is ahead of the model, in threads."""
    from imgcls_jax import inference

    score = judge.score()
    ask = lambda batch: score(run.eval_step(variables, batch)["logits"])  # noqa: E731
    for answers in inference.answers(run, files, ask, batch_size):
        yield [
            judge.record(answer.path, *answer.values)
            if answer.error is None
            else {"path": answer.path, "error": answer.error}
            for answer in answers
        ]


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = _flags()
    inputs = cli.parse(values, ["predict", *argv])
    if values.workdir is None or not inputs:
        raise ConfigError(
            "Usage: python -m imgcls_jax.predict --workdir=W INPUT... [--output=preds.jsonl]; see --help."
        )
    _check(values)
    from imgcls_jax.data.inputs import STDIN, image_files

    workdir = Path(values.workdir)
    config = config_lib.read(workdir / "config.json")
    if values.organise:
        _check_organise(Path(values.organise), inputs, recursive=values.recursive)
    listed = sys.stdin.buffer.read() if STDIN in inputs else b""
    files = image_files(inputs, recursive=values.recursive, listed=listed)

    from imgcls_jax import build, evaluate, inference, platform, workdirs

    platform.initialize()
    progress = writers.Progress()
    run = build.build(config)
    batch_size = inference.batch_size(run, len(files), values.batch_size)
    step, variables = workdirs.restore_variables(run.abstract_state, workdir, values.step, ema=values.ema)
    temperature = evaluate.temperature_of(workdir, step, progress, ema=values.ema)
    judge = _judge(run, values.top_k, temperature, values.threshold)
    work = Work(files, judge, progress, _organiser(values, judge))
    continued = lambda rest: predict(run, variables, judge, rest, batch_size)  # noqa: E731
    if values.output is None:
        return work.to_stdout(continued)
    job = {
        "config": hashlib.sha256((workdir / "config.json").read_bytes()).hexdigest(),
        "step": step,
        "ema": values.ema,
        "list of images": hashlib.sha256(b"\0".join(map(os.fsencode, files))).hexdigest(),
        "batch_size": batch_size,
        **{name: getattr(judge, name) for name in ("top_k", "temperature", "threshold")},
    }
    return work.to_file(continued, Path(values.output), job)


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # flags may stand after inputs
    flags.DEFINE_string("workdir", None, "the run's work directory", flag_values=values)
    flags.DEFINE_integer("step", None, "checkpoint to use; the newest by default", flag_values=values)
    flags.DEFINE_boolean("ema", False, "use the averaged weights", flag_values=values)
    flags.DEFINE_integer("top_k", None, "classes in a record; 5 by default", flag_values=values)
    flags.DEFINE_string(
        "output", None, "file to write, .jsonl, .csv or .parquet; standard output by default", flag_values=values
    )
    flags.DEFINE_float(
        "threshold",
        None,
        "least probability of the best class, else it is rejected; with several labels, of each (0.5 by default)",
        flag_values=values,
    )
    flags.DEFINE_string(
        "organise", None, "folder to copy images into, DIR/CLASS/NAME, rejected ones DIR/_rejected", flag_values=values
    )
    flags.DEFINE_boolean("link", False, "with --organise: symbolic links in place of copies", flag_values=values)
    flags.DEFINE_integer("batch_size", None, "images at a time; at most eval.batch_size by default", flag_values=values)
    flags.DEFINE_boolean("recursive", False, "read the folders within a folder too", flag_values=values)
    return values


def _check(values: flags.FlagValues) -> None:
    """Raises ConfigError for flags that make no sense, before anything is read."""
    if values.top_k is not None and values.top_k < 1:
        raise ConfigError(f"--top_k={values.top_k} must be at least 1.")
    if values.threshold is not None and not 0 <= values.threshold <= 1:
        raise ConfigError(f"--threshold={values.threshold:g} is a probability: it must be from 0 to 1.")
    if values.link and not values.organise:
        raise ConfigError("--link says how --organise=DIR fills its folders; give both.")
    if values.output is not None:
        predictions.check_output(Path(values.output))


def _check_organise(folder: Path, inputs: Sequence[str], *, recursive: bool) -> None:
    """Raises ConfigError if the images that are placed would be inputs of the next run."""
    for name in inputs:
        if recursive and os.path.isdir(name) and folder.resolve().is_relative_to(Path(name).resolve()):
            raise ConfigError(
                f"--organise={folder} lies in {name}, which is read with --recursive; name another folder."
            )


def _judge(run: build.Run, top_k: int | None, temperature: float, threshold: float | None) -> Judge:
    spec = run.spec
    if spec.task != "multilabel":
        return Judge(spec.task, spec.class_names, min(top_k or 5, spec.num_classes), temperature, threshold)
    if top_k is not None:
        raise ConfigError("--top_k is for one label an image; of several, all that reach --threshold are given.")
    return Judge(spec.task, spec.class_names, spec.num_classes, 1.0, 0.5 if threshold is None else threshold)


def _organiser(values: flags.FlagValues, judge: Judge) -> Organiser | None:
    return Organiser(Path(values.organise), judge.class_names, link=values.link) if values.organise else None


class Work:
    """All images of a command: their records to where they belong, counted, and how far it is on standard error."""

    def __init__(
        self, files: Sequence[str], judge: Judge, progress: writers.Progress, organiser: Organiser | None
    ) -> None:
        self._files, self._judge, self._progress, self._organiser = files, judge, progress, organiser
        self._done = self._rejected = self._failed = 0
        self._pace = writers.Pace(progress, len(files))

    def to_stdout(self, predict_rest: Callable[[Sequence[str]], Iterator[list[Record]]]) -> int:
        """Prints the records. Returns the exit code."""
        with cli.whole_output():
            for records in predict_rest(self._files):
                sys.stdout.write("".join(json.dumps(record) + "\n" for record in records))
                sys.stdout.flush()
                self._take(records)
        return self._end("")

    def to_file(
        self,
        predict_rest: Callable[[Sequence[str]], Iterator[list[Record]]],
        output: Path,
        job: Mapping[str, Any],
    ) -> int:
        """Writes the records to a file, from where a run that was killed has come to. Returns the exit code."""
        total = len(self._files)
        partial = predictions.Partial(output, job, batch_size=job["batch_size"], num_images=total)
        try:
            if partial.done:
                self._progress.line(f"{partial.path} has {partial.done:,} of {total:,} images; it is continued.")
                for record in partial.records():
                    self._count(record)
            if partial.done < total:
                for records in predict_rest(self._files[partial.done :]):
                    partial.add(records)
                    self._take(records)
            partial.finish(output, predictions.columns(task=self._judge.task, top_k=self._judge.top_k))
        finally:
            partial.close()
        return self._end(f"; written to {output}")

    def _take(self, records: Sequence[Record]) -> None:
        for record in records:
            self._count(record)
        self._pace.update(self._done)

    def _count(self, record: Record) -> None:
        self._done += 1
        if "error" in record:
            self._failed += 1
            return
        answer = self._judge.answer(record)
        self._rejected += not answer
        if self._organiser is not None:
            try:
                self._organiser.place(record["path"], answer)
            except FileNotFoundError:  # it was there when it was predicted
                self._failed += 1
                self._progress.line(f"{record['path']!r} is gone and was not placed.")

    def _end(self, where: str) -> int:
        counts = f"{self._done:,} images, {self._failed:,} with an error"
        if self._judge.threshold is not None:
            counts += f", {self._rejected:,} {REJECTED}"
        self._progress.line(counts + where)
        return cli.SOME_FAILED if self._failed else 0


if __name__ == "__main__":
    cli.program(main)
