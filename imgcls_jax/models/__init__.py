"""The models: an architecture is a file, a variant an entry of `MODELS`. Names are timm's where timm has the model."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from flax import linen as nn

from imgcls_jax.models.layers import check_choice
from imgcls_jax.models.lenet import LeNet5
from imgcls_jax.models.resnet import ResNet
from imgcls_jax.models.vit import ViT

# The 16 and 224 of a ViT's name say what its timm counterpart was trained at; any size that the patches divide will do.
MODELS: dict[str, functools.partial[Any]] = {
    "lenet5": functools.partial(LeNet5),
    # Section 4.2 of arXiv:1512.03385: 3n blocks of 16-32-64 channels for 32x32 images, option A shortcuts.
    "resnet20": functools.partial(ResNet, stage_sizes=(3, 3, 3), block="basic", width=16, stem="small", shortcut="pad"),
    # Table 1 of arXiv:1512.03385.
    "resnet18": functools.partial(ResNet, stage_sizes=(2, 2, 2, 2), block="basic"),
    "resnet34": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), block="basic"),
    "resnet50": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3)),
    "resnet101": functools.partial(ResNet, stage_sizes=(3, 4, 23, 3)),
    "resnet152": functools.partial(ResNet, stage_sizes=(3, 8, 36, 3)),
    # Table 1 of arXiv:1709.01507.
    "seresnet50": functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), se_ratio=1 / 16),
    # Table 1 of arXiv:2010.11929, table 1 of arXiv:2106.10270; mu is big_vision's, for tests.
    "vit_mu_patch16_224": functools.partial(ViT, patch_size=16, width=32, depth=1, num_heads=2),
    "vit_tiny_patch16_224": functools.partial(ViT, patch_size=16, width=192, depth=12, num_heads=3),
    "vit_small_patch16_224": functools.partial(ViT, patch_size=16, width=384, depth=12, num_heads=6),
    "vit_small_patch32_224": functools.partial(ViT, patch_size=32, width=384, depth=12, num_heads=6),
    "vit_base_patch16_224": functools.partial(ViT, patch_size=16, width=768, depth=12, num_heads=12),
    "vit_base_patch32_224": functools.partial(ViT, patch_size=32, width=768, depth=12, num_heads=12),
    "vit_large_patch16_224": functools.partial(ViT, patch_size=16, width=1024, depth=24, num_heads=16),
    "vit_large_patch32_224": functools.partial(ViT, patch_size=32, width=1024, depth=24, num_heads=16),
}


def build(name: str, *, num_classes: int, **overrides: Any) -> nn.Module:
    """The model called `name` (a key of MODELS), for `num_classes` classes; 0 gives pooled features [B,D].

    `overrides` replace fields of the architecture's class (see its docstring). The module is called with images
    [B,H,W,C] float, already normalised, and `train`; it returns logits [B,K] float32. Collections `params` and, for
    models with batch norm, `batch_stats`; random streams `dropout` and `drop_path`.

    Raises ConfigError, naming the nearest valid one, if the name or an override is unknown.
    """
    check_choice("model", name, MODELS)
    variant = MODELS[name]
    architecture: Any = variant.func  # a linen module is a dataclass, which type checkers do not see
    fields = {f.name for f in dataclasses.fields(architecture)} - {"parent", "name", "num_classes"}
    for key in overrides:
        check_choice(f"field of model {name!r}", key, fields)
    # A config read back from JSON has lists; a module must be hashable.
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()}
    return variant(num_classes=num_classes, **values)
