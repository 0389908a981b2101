"""Writes a run's model for other programs.

python -m imgcls_jax.export --workdir=W --format=safetensors [--output=FOLDER] [--step=N] [--ema]

safetensors: FOLDER/model.safetensors, the tensors under timm's names, and FOLDER/config.json, which together are what
`timm.create_model("local-dir:FOLDER", pretrained=True)` loads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict

from imgcls_jax import atomic, cli
from imgcls_jax import config as config_lib
from imgcls_jax.types import ConfigError, PyTree, Spec, check_choice

FORMATS = ("safetensors",)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code; raises UserError."""
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "the run's work directory", flag_values=values)
    flags.DEFINE_string("format", "safetensors", f"one of {', '.join(FORMATS)}", flag_values=values)
    flags.DEFINE_string("output", None, "folder to write to; W/export by default", flag_values=values)
    flags.DEFINE_integer("step", None, "checkpoint to export; the newest by default", flag_values=values)
    flags.DEFINE_boolean("ema", False, "export the averaged weights", flag_values=values)
    rest = cli.parse(values, ["export", *argv])
    if rest or values.workdir is None:
        raise ConfigError("Usage: python -m imgcls_jax.export --workdir=W --format=safetensors [--output=FOLDER].")
    check_choice("--format", values.format, FORMATS)
    workdir = Path(values.workdir)
    config = config_lib.read(workdir / "config.json")

    from imgcls_jax import build, platform, workdirs

    platform.initialize()
    run = build.build(config)
    step, variables = workdirs.restore_variables(run.abstract_state, workdir, values.step, ema=values.ema)
    folder = Path(values.output) if values.output else workdir / "export"
    write_safetensors(folder, config, run.model, run.spec, variables)
    print(f"{config.model.name} of step {step}{' (EMA)' if values.ema else ''} written to {folder}")
    return 0


def write_safetensors(
    folder: Path, config: ConfigDict, model: nn.Module, spec: Spec, variables: dict[str, PyTree]
) -> None:
    """Writes model.safetensors and config.json, each under a temporary name first."""
    from safetensors.numpy import save

    from imgcls_jax import pretrained

    tensors = pretrained.to_state_dict(config.model.name, variables)
    tensors |= _fixed_positions(config, model)
    contents = {
        "model.safetensors": save(tensors, metadata={"format": "pt"}),
        "config.json": (json.dumps(model_card(config, model, spec), indent=2) + "\n").encode(),
    }
    for name, data in contents.items():
        with atomic.replacing(folder / name) as path:
            path.write_bytes(data)


def model_card(config: ConfigDict, model: nn.Module, spec: Spec) -> dict[str, Any]:
    """What timm's config.json says of a model: architecture, arguments, and how to preprocess an image for it."""
    from imgcls_jax import models
    from imgcls_jax.pretrained.files import preprocessing_of_run

    channels = config.data.channels
    entry, p = models.variant(config.model.name), preprocessing_of_run(config)
    arguments = {"in_chans": channels} if channels != entry.channels else {}
    return {
        "architecture": config.model.name,
        "num_classes": spec.num_classes,
        "label_names": list(spec.class_names),
        "model_args": {**arguments, **_timm_arguments(config, model)},
        "pretrained_cfg": {
            "num_classes": spec.num_classes,
            "input_size": [channels, p.image_size, p.image_size],
            "mean": list(p.mean),
            "std": list(p.std),
            "crop_pct": p.crop_pct,
            "interpolation": "bicubic" if p.interpolation == "area" else p.interpolation,  # timm knows Pillow's only
            "first_conv": entry.layout.stem,
            "classifier": entry.layout.heads[0] if len(entry.layout.heads) == 1 else list(entry.layout.heads),
        },
    }


def _timm_arguments(config: ConfigDict, model: nn.Module) -> dict[str, Any]:
    """The arguments with which timm builds a vision transformer as this one was built."""
    from imgcls_jax.models.vit import ViT

    if not isinstance(model, ViT):
        return {}
    arguments = {
        "img_size": config.data.image_size,
        "patch_size": model.patch_size,
        "embed_dim": model.width,
        "depth": model.depth,
        "num_heads": model.num_heads,
        "class_token": model.pool == "cls",
        "global_pool": {"cls": "token", "gap": "avg", "map": "map"}[model.pool],
        "fc_norm": model.fc_norm,
    }
    if model.mlp_dim:
        arguments["mlp_ratio"] = model.mlp_dim / model.width
    return arguments


def _fixed_positions(config: ConfigDict, model: nn.Module) -> dict[str, np.ndarray]:
    """Sine-cosine positions as the table of parameters that timm keeps them in."""
    from imgcls_jax.models.vit import ViT, sincos2d

    if not isinstance(model, ViT) or model.pos_embed != "sincos2d":
        return {}
    side = config.data.image_size // model.patch_size
    positions = sincos2d(side, side, model.width)
    prefix = 0 if model.no_embed_class else model.prefix_tokens
    return {"pos_embed": np.pad(positions, ((0, 0), (prefix, 0), (0, 0)))}


if __name__ == "__main__":
    cli.program(main)
