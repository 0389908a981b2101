"""The models: an architecture is a file, a variant an entry of its VARIANTS. Names are timm's where it has them."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import linen as nn

from imgcls_jax.models import (
    airbench,
    alexnet,
    convnext,
    densenet,
    efficientnet,
    googlenet,
    legacy_senet,
    lenet,
    mixer,
    mobilenetv3,
    resnet,
    resnetv2,
    vgg,
    vit,
    wide_resnet,
)
from imgcls_jax.models.variant import Variant
from imgcls_jax.types import check_choice

MODELS: dict[str, Variant] = {
    **airbench.VARIANTS,
    **alexnet.VARIANTS,
    **convnext.VARIANTS,
    **densenet.VARIANTS,
    **efficientnet.VARIANTS,
    **googlenet.VARIANTS,
    **legacy_senet.VARIANTS,
    **lenet.VARIANTS,
    **mixer.VARIANTS,
    **mobilenetv3.VARIANTS,
    **resnet.VARIANTS,
    **resnetv2.VARIANTS,
    **vgg.VARIANTS,
    **vit.VARIANTS,
    **wide_resnet.VARIANTS,
}


def variant(name: str) -> Variant:
    """The entry of MODELS. Raises ConfigError, naming the nearest, if there is none."""
    check_choice("model.name", name, MODELS)
    return MODELS[name]


def build(name: str, *, num_classes: int, **overrides: Any) -> nn.Module:
    """The model called `name` (a key of MODELS), for `num_classes` classes; 0 gives pooled features [B,D].

    `overrides` replace fields of the architecture's class (see its docstring). The module is called with images
    [B,H,W,C] float, already normalised, and `train`; it returns logits [B,K] float32. Collections `params` and, for
    models with batch norm, `batch_stats`; random streams `dropout` and `drop_path`.

    Raises ConfigError, naming the nearest valid one, if the name or an override is unknown.
    """
    entry = variant(name)
    architecture = entry.architecture  # a linen module is a dataclass, which type checkers do not see
    fields = [f.name for f in dataclasses.fields(architecture) if f.name not in ("parent", "name", "num_classes")]
    for key in overrides:
        check_choice(f"field of {name}", key, fields)
    # A config read back from JSON has lists; a module must be hashable.
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in {**entry.fields, **overrides}.items()}
    module: nn.Module = architecture(num_classes=num_classes, **values)
    return module
