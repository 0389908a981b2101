"""Fine-tunes weights in two runs, first the new classifier alone, then the whole model, and compares them.

python -m imgcls_jax.finetune --config=configs/finetune.py:folder:PATH --config.init.from=WEIGHTS [--workdir=W]

W/probe trains the classifier on the body as it is, W/full starts from what that found and trains as the config says: a
classifier that fits does not pull the body out of shape (arXiv:2202.10054). Both take as many steps as the config says.
W/report.html compares them, and so does the table at the end. The same command again continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from imgcls_jax import cli
from imgcls_jax.types import ConfigError


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = flags.FlagValues()
    flags.DEFINE_float("probe_lr", None, "the probe's learning rate; optimizer.lr by default", flag_values=values)
    config, workdir = cli.train_flags(argv, usage=__doc__ or "", values=values)
    if not config.init["from"]:
        raise ConfigError("--config.init.from is missing: name the weights to start from, such as hf:timm/NAME.")
    probe, full = stages(config, workdir, lr=values.probe_lr or config.optimizer.lr)
    # Imported after the flags are read: a typing error must not wait for jax.
    import jax

    from imgcls_jax import platform, train

    platform.initialize()
    for stage, name in ((probe, "probe"), (full, "full")):
        if code := train.train(stage, workdir / name):
            return code
    if jax.process_index() == 0:
        _compare(full, workdir)
    return 0


def stages(config: ConfigDict, workdir: Path, *, lr: float) -> tuple[ConfigDict, ConfigDict]:
    """The configs of W/probe, with learning rate `lr`, and of W/full, which starts from it.

    The probe sees each image as evaluation does, without augmentation or dropout, so the body runs once over them all;
    where the model has several classifiers, or the recipe another objective or other data mixed in, at every step.
    """
    from imgcls_jax import models

    probe, full = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    full.init["from"] = str(workdir / "probe")
    variant = models.variant(config.model.name)
    once = len(variant.layout.heads) == 1 and config.objective.name == "supervised" and not config.data.mix
    probe.optimizer.update(lr=lr, freeze=("body",), unfreeze=(), lr_multipliers=(), layer_decay=1.0)
    probe.optimizer.cache_features = once
    if once:
        probe.augment.update(host_train=(), device=())
        for name in ("dropout", "drop_path"):
            if name in variant.architecture.__dataclass_fields__:
                probe.model[name] = 0.0
    return probe, full


def table(results: Mapping[str, Mapping[str, Any]], comparison: Mapping[str, Any], names: Sequence[str]) -> str:
    """Markdown: the metrics `names` of each run with their 95% intervals, and how the two differ.

    Args:
      results: what `evaluate.report` found, by run; the second is compared with the first.
      comparison: what `evaluate.compare` says of the two.
      names: of the metrics.
    """
    from imgcls_jax import evaluate

    lines = [f"| | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    for run, result in results.items():
        cells = [_cell(*evaluate.values(dict(result))[name]) for name in names]
        lines.append(f"| {run} | {' | '.join(cells)} |")
    first, second = results
    interval = comparison["accuracy_difference_ci95"]
    lines += [
        "",
        f"{second} minus {first}: {comparison['accuracy_difference']:+.4f} of {comparison['num_examples']:,} right "
        f"({interval[0]:+.4f} to {interval[1]:+.4f}), McNemar p {comparison['p_mid']:.3g}",
    ]
    return "\n".join(lines)


def _cell(value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def _compare(config: ConfigDict, workdir: Path) -> None:
    """Prints the table and writes W/report.html."""
    from imgcls_jax import build, evaluate, report
    from imgcls_jax.report import recorded

    paths = [workdir / "probe", workdir / "full"]
    name = evaluate.file_name(build.eval_split(config), ema=False)
    results = {run.name: run.evaluations[name] for run in recorded.read(paths)}
    comparison = evaluate.compare(*(evaluate.read_predictions(path, name) for path in paths))
    names = evaluate.headlines(results["full"]["task"], config.eval.topk)
    print(table(results, comparison, [name for name in names if name in evaluate.values(results["full"])]))
    report.write(paths, workdir / "report.html")
    print(f"Wrote {workdir / 'report.html'}.")


if __name__ == "__main__":
    cli.program(main)
