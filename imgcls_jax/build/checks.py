"""Values of a config that contradict each other or make no sense."""

from __future__ import annotations

from collections.abc import Sequence

from jax.sharding import Mesh
from ml_collections import ConfigDict

from imgcls_jax import augment, distill, evaluate, losses, models, optim, sharding
from imgcls_jax.augment import device, views
from imgcls_jax.build.learning import DTYPES
from imgcls_jax.data import inputs, pipeline, slices, sources
from imgcls_jax.types import ConfigError, Spec, check_choice


def check(config: ConfigDict, mesh: Mesh, spec: Spec) -> None:
    """Raises ConfigError for values that contradict each other."""
    sharding.check_batch(mesh, "batch_size", config.batch_size)
    sharding.check_batch(mesh, "eval.batch_size", config.eval.batch_size)
    if config.optimizer.accumulate_steps < 1 or config.batch_size % config.optimizer.accumulate_steps:
        raise ConfigError(
            f"optimizer.accumulate_steps={config.optimizer.accumulate_steps} does not divide "
            f"batch_size={config.batch_size}; choose a divisor."
        )
    sharding.check_batch(mesh, "batch_size / accumulate_steps", config.batch_size // config.optimizer.accumulate_steps)
    slices.check("data.train_split", config.data.train_split, spec)
    check_choice("data.on_error", config.data.on_error, pipeline.ON_ERROR)
    if config.data.eval_split:
        slices.check("data.eval_split", config.data.eval_split, spec)
    if config.data.unlabelled and not config.data.unlabelled.startswith(inputs.FILES):
        slices.check("data.unlabelled", config.data.unlabelled, spec)
    sources.check_mix(config.data.mix)
    for key in ("mean", "std"):
        if len(config.data[key]) not in (1, config.data.channels):
            raise ConfigError(
                f"data.{key} has {len(config.data[key])} entries but data.channels={config.data.channels}; give one "
                "for all or one for each channel."
            )
    _loss(config, spec)
    if spec.task == "multilabel" and config.data.pseudo_labels:
        raise ConfigError(f"data.pseudo_labels are for one label an image, but {spec.name} has several.")
    if not 0.01 <= config.data.pseudo_ratio <= 100:
        raise ConfigError(f"data.pseudo_ratio={config.data.pseudo_ratio:g} must be at least 0.01 and at most 100.")
    if spec.task == "multilabel" and config.objective.name in ("fixmatch", "mean_teacher", "supcon"):
        raise ConfigError(
            f"objective.name='{config.objective.name}' is for one label an image, but {spec.name} has several."
        )
    if config.objective.name == "supcon":
        _supcon(config)
    _metrics(config, spec)
    check_optimizer(config)
    _distillation(config, spec)
    at_least_one = {
        "optimizer.swa_every": config.optimizer.swa_every,
        "data.unlabelled_ratio": config.data.unlabelled_ratio,
        "data.repeats": config.data.repeats,
        "log_every_steps": config.log_every_steps,
        "eval.batch_size": config.eval.batch_size,
        "data.image_size": config.data.image_size,
    }
    if config.data.max_megapixels <= 0:
        raise ConfigError(f"data.max_megapixels={config.data.max_megapixels:g} must be above 0.")
    for key, value in at_least_one.items():
        if value < 1:
            raise ConfigError(f"{key}={value} must be at least 1.")


def check_optimizer(config: ConfigDict) -> None:
    """Raises ConfigError for values of the group `optimizer` that contradict each other."""
    o = config.optimizer
    check_choice("optimizer.name", o.name, optim.OPTIMIZERS)
    check_choice("optimizer.decay", o.decay, optim.DECAYS)
    if o.sam_rho < 0 or o.lookahead_steps < 0:
        raise ConfigError(
            f"optimizer.sam_rho={o.sam_rho:g} and lookahead_steps={o.lookahead_steps} must be at least 0."
        )
    if not 0 < o.lookahead_step_size <= 1:
        raise ConfigError(f"optimizer.lookahead_step_size={o.lookahead_step_size:g} must be above 0 and at most 1.")
    if not 0 <= o.ema_decay < 1 or not 0 <= o.swa_start < 1:
        raise ConfigError(
            f"optimizer.ema_decay={o.ema_decay:g} and swa_start={o.swa_start:g} must be at least 0 and below 1."
        )
    if o.ema_decay and o.swa_start:
        raise ConfigError("optimizer.ema_decay and swa_start: a run keeps one average; set one of them to 0.")
    if o.ema_warmup and not o.ema_decay:
        raise ConfigError("optimizer.ema_warmup is of the moving average: set optimizer.ema_decay.")
    if o.schedule_free:
        _schedule_free(config)


def _schedule_free(config: ConfigDict) -> None:
    o = config.optimizer
    between = "momentum" if o.name == "sgd" else "b1"
    if o.name not in optim.SCHEDULE_FREE:
        raise ConfigError(
            f"optimizer.schedule_free is for {', '.join(optim.SCHEDULE_FREE)}, not for optimizer.name='{o.name}'."
        )
    if config.schedule.name != "constant":
        raise ConfigError(
            f"optimizer.schedule_free takes the place of schedule.name='{config.schedule.name}': set "
            "schedule.name='constant' (a warm-up may stay)."
        )
    if o.lookahead_steps:
        raise ConfigError("optimizer.schedule_free and lookahead_steps each choose the result: set one of them.")
    if o.freeze or o.unfreeze:
        raise ConfigError(
            "optimizer.schedule_free computes every parameter anew at each step, so none stays frozen: "
            "leave optimizer.freeze and unfreeze empty."
        )
    if not 0 < o[between] < 1:
        raise ConfigError(f"optimizer.schedule_free needs optimizer.{between}={o[between]:g} above 0 and below 1.")


def check_views(config: ConfigDict, views: Sequence[str]) -> None:
    """Raises ConfigError where an objective needs unlabelled images that the config does not name, or the reverse."""
    name, unlabelled = config.objective.name, config.data.unlabelled
    if views and not unlabelled:
        raise ConfigError(
            f"objective.name='{name}' learns from unlabelled images too: name their split in data.unlabelled."
        )
    if views and config.optimizer.ema_decay == 0 and name == "mean_teacher":
        raise ConfigError("objective.name='mean_teacher' learns from averaged weights: set optimizer.ema_decay.")
    if unlabelled and not views:
        raise ConfigError(f"data.unlabelled='{unlabelled}' is of no use to objective.name='{name}': leave it empty.")


def _distillation(config: ConfigDict, spec: Spec) -> None:
    """Raises ConfigError for a teacher without a pupil, a pupil without a teacher, and values out of range."""
    o, t = config.objective, config.teacher
    check_choice("objective.target", o.target, distill.TARGETS)
    check_choice("teacher.dtype", t.dtype, ("auto", *DTYPES))
    if t.name:
        check_choice("teacher.name", t.name, models.MODELS)
    if not 0 <= o.alpha <= 1:
        raise ConfigError(f"objective.alpha={o.alpha:g} must be in 0 to 1.")
    if o.temperature <= 0 or o.feature_weight < 0:
        raise ConfigError(
            f"objective.temperature={o.temperature:g} must be above 0, objective.feature_weight={o.feature_weight:g} "
            "at least 0."
        )
    if len(t.steps) not in (0, len(t["from"])):
        raise ConfigError(f"teacher.steps={t.steps} must have an entry for each of teacher.from, or none.")
    if t.features < 0:
        raise ConfigError(f"teacher.features={t.features} must be at least 0.")
    if o.name != "distill":
        if t["from"]:
            raise ConfigError(f"teacher.from is of no use to objective.name='{o.name}': leave it empty.")
        return
    if not t["from"]:
        raise ConfigError(
            "objective.name='distill' needs a teacher: --config.teacher.from=W, the work directory of a run, or a file "
            "of weights and --config.teacher.name=MODEL."
        )
    if o.feature_weight and len(t["from"]) > 1:
        raise ConfigError("objective.feature_weight is for one teacher's features, but teacher.from names several.")
    if spec.task == "multilabel":
        raise ConfigError(f"objective.name='distill' is for one label an image, but {spec.name} has several.")


def _loss(config: ConfigDict, spec: Spec) -> None:
    """Raises ConfigError for a loss that the data cannot have, values out of range, or two corrections of one thing."""
    c = config.loss
    check_choice("loss.name", c.name, losses.LOSSES)
    check_choice("loss.class_weights", c.class_weights, ("none", *losses.CLASS_WEIGHTS))
    if spec.task == "multilabel" and c.name not in losses.SIGMOID:
        raise ConfigError(
            f"loss.name='{c.name}' is for one label an image, but {spec.name} has several: set loss.name to one of "
            f"{', '.join(losses.SIGMOID)}."
        )
    if c.logit_adjustment and c.name not in losses.SOFTMAX:
        raise ConfigError(
            f"loss.logit_adjustment={c.logit_adjustment:g} is for losses through a softmax ({', '.join(losses.SOFTMAX)}"
            f"), not for '{c.name}': set it to 0."
        )
    corrections = {
        f"loss.class_weights='{c.class_weights}'": c.class_weights != "none",
        "data.sampling='balanced'": config.data.sampling == "balanced",
        f"loss.logit_adjustment={c.logit_adjustment:g}": bool(c.logit_adjustment),
    }
    on = [text for text, is_on in corrections.items() if is_on]
    if len(on) > 1:
        raise ConfigError(f"{' and '.join(on)} correct the same imbalance: keep one of them.")
    ranges = {
        "label_smoothing": (0 <= c.label_smoothing <= 1, "in 0 to 1"),
        "target_threshold": (c.target_threshold is None or 0 <= c.target_threshold < 1, "at least 0 and below 1"),
        "focal_gamma": (c.focal_gamma >= 0, "at least 0"),
        "focal_alpha": (c.focal_alpha is None or 0 <= c.focal_alpha <= 1, "in 0 to 1"),
        "asymmetric_gamma_positive": (c.asymmetric_gamma_positive >= 0, "at least 0"),
        "asymmetric_gamma_negative": (c.asymmetric_gamma_negative >= 0, "at least 0"),
        "asymmetric_clip": (0 <= c.asymmetric_clip < 1, "at least 0 and below 1"),
        "poly_epsilon": (c.poly_epsilon >= -1, "at least -1"),
        "squared_weight": (c.squared_weight > 0, "above 0"),
        "squared_height": (c.squared_height > 0, "above 0"),
        "effective_beta": (0 <= c.effective_beta < 1, "at least 0 and below 1"),
        "logit_adjustment": (c.logit_adjustment >= 0, "at least 0"),
    }
    for key, (good, must_be) in ranges.items():
        if not good:
            raise ConfigError(f"loss.{key}={c[key]} must be {must_be}.")


def _supcon(config: ConfigDict) -> None:
    """Raises ConfigError for batches that do not hold the views of each image, of one class each."""
    o, d = config.objective, config.data
    if d.repeats < 2 or config.batch_size % d.repeats:
        raise ConfigError(
            f"objective.name='supcon' compares views of an image in a batch: data.repeats={d.repeats} must be at least "
            f"2 and divide batch_size={config.batch_size}."
        )
    if config.optimizer.accumulate_steps > 1:
        raise ConfigError(
            "objective.name='supcon' compares all images of a step with each other: set optimizer.accumulate_steps=1."
        )
    calls = config.augment.device
    ops = augment.parse("augment.device", calls, device.DEVICE)
    mixing = [call for call, op in zip(calls, ops, strict=True) if hasattr(op, "roll")]
    if mixing:
        raise ConfigError(
            f"objective.name='supcon' needs one class an image: take {', '.join(mixing)} out of augment.device."
        )
    if o.supcon_temperature <= 0 or o.projection_dim < 1:
        raise ConfigError(
            f"objective.supcon_temperature={o.supcon_temperature} must be above 0 and "
            f"objective.projection_dim={o.projection_dim} at least 1."
        )


def _metrics(config: ConfigDict, spec: Spec) -> None:
    """Raises ConfigError for a top-k or a best metric that cannot be."""
    if any(not isinstance(k, int) or k < 1 for k in config.eval.topk):
        raise ConfigError(f"eval.topk={config.eval.topk} must be whole numbers of at least 1, such as (1, 5).")
    check_choice("eval.tta", config.eval.tta, ("", *(name for name in views.VIEWS if name not in views.CROPS)))
    if config.checkpoint.best_metric:
        larger_is_better = [m for m in evaluate.headlines(spec.task, config.eval.topk) if m not in ("nll", "ece")]
        averages = config.optimizer.ema_decay or config.optimizer.swa_start
        averaged = [f"ema_{name}" for name in larger_is_better] if averages else []
        check_choice("checkpoint.best_metric", config.checkpoint.best_metric, larger_is_better + averaged)
