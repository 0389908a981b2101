"""GoogLeNet, Inception v1 (Szegedy et al., arXiv:1409.4842), as torchvision has it: with batch norm.

Names follow torchvision: `conv1.conv`, `conv1.bn`, ..., `inception3a/branch2.0.conv`, ..., `aux1/fc2`, `fc`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.pooling import max_pool
from imgcls_jax.models.variant import Layout, Preprocessing, Variant

# Table 1 of the paper: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj of each inception, by stage.
STAGES: dict[int, dict[str, tuple[int, ...]]] = {
    3: {"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)},
    4: {
        "a": (192, 96, 208, 16, 48, 64),
        "b": (160, 112, 224, 24, 64, 64),
        "c": (128, 128, 256, 24, 64, 64),
        "d": (112, 144, 288, 32, 64, 64),
        "e": (256, 160, 320, 32, 128, 128),
    },
    5: {"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)},
}
AUXILIARY = {"4a": "aux1", "4d": "aux2"}  # the inceptions that a classifier looks at in training

INIT = nn.initializers.normal(0.01)


def _conv(
    x: jax.Array, features: int, kernel_size: int, *, name: str, train: bool, dtype: Any, stride: int = 1
) -> jax.Array:
    """Convolution, batch norm, ReLU: [B,H,W,C] -> [B,H/stride,W/stride,features]."""
    names = (f"{name}.conv", f"{name}.bn")
    common: dict[str, Any] = {"names": names, "train": train, "dtype": dtype, "epsilon": 1e-3, "kernel_init": INIT}
    return layers.conv_bn_act(x, features, kernel_size, stride=stride, **common)


def _max_pool(x: jax.Array, window: int) -> jax.Array:
    """At stride 2, with windows that hang over the right and the lower edge: [B,H,W,C] -> [B,ceil(H/2),ceil(W/2),C].

    (One less for windows of 3 at odd sides, where the last fits exactly: torch's ceil_mode.)
    """
    height, width = ((0, (window - side) % 2) for side in x.shape[1:3])
    return max_pool(x, window, 2, (height, width))


class Inception(nn.Module):
    """Four branches side by side, [B,H,W,C] -> [B,H,W,sum of their channels]: 1x1, two of 1x1-3x3, 3x3 max pool-1x1.

    The third branch is 5x5 in the paper; torchvision's weights are for 3x3.
    """

    widths: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(_conv, train=train, dtype=self.dtype)
        one, reduce3, three, reduce5, five, pool = self.widths
        return jnp.concatenate(
            [
                conv(x, one, 1, name="branch1"),
                conv(conv(x, reduce3, 1, name="branch2.0"), three, 3, name="branch2.1"),
                conv(conv(x, reduce5, 1, name="branch3.0"), five, 3, name="branch3.1"),
                conv(max_pool(x, 3, 1, ((1, 1), (1, 1))), pool, 1, name="branch4.1"),
            ],
            axis=-1,
        )


class Auxiliary(nn.Module):
    """The classifier beside the trunk: in training, x's [B,H,W,C] logits [B,K] float32 into collection `aux_logits`."""

    num_classes: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> None:
        x = layers.adaptive_avg_pool(x, 4, 4)
        x = layers.flatten(_conv(x, 128, 1, name="conv", train=train, dtype=self.dtype))
        x = nn.relu(layers.Dense((1024,), kernel_init=INIT, dtype=self.dtype, name="fc1")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        x = layers.classifier(x, self.num_classes, kernel_init=INIT, name="fc2")
        if train and self.num_classes and not self.is_initializing():
            self.sow("aux_logits", "logits", x, init_fn=lambda: None, reduce_fn=lambda _, logits: logits)


class GoogLeNet(nn.Module):
    """Stem, nine inceptions in three stages, mean, dense; two auxiliary classifiers that exist for training.

    In training the auxiliary logits [B,K] float32 are `aux1/logits` and `aux2/logits` of the collection `aux_logits`;
    the paper adds 0.3 of their losses to the main one. They are not computed in evaluation.

    Attributes:
      num_classes: K; 0 gives pooled features, and no auxiliary logits.
      dropout: before the last layer. The paper's 0.4 is of a net without batch norm; this is torchvision's.
      dropout_aux: before the auxiliary ones' last layers (section 5 of the paper).
      dtype: of the computation.

    Initialisation: torchvision's. Kernels N(0, 0.01), which it truncates at 200 standard deviations; biases zero.
    """

    num_classes: int
    dropout: float = 0.2
    dropout_aux: float = 0.7
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,1024] if num_classes is 0.

        Raises ConfigError for images of less than 15 pixels.
        """
        conv = functools.partial(_conv, train=train, dtype=self.dtype)
        x = _max_pool(conv(images, 64, 7, name="conv1", stride=2), 3)
        x = conv(conv(x, 64, 1, name="conv2"), 192, 3, name="conv3")
        for stage, inceptions in STAGES.items():
            x = _max_pool(x, 2 if stage == 5 else 3)
            for letter, widths in inceptions.items():
                x = Inception(widths, self.dtype, name=f"inception{stage}{letter}")(x, train=train)
                # Evaluation does without, but whichever way a model is initialised their parameters must be there.
                if f"{stage}{letter}" in AUXILIARY and (train or self.is_initializing()):
                    name = AUXILIARY[f"{stage}{letter}"]
                    Auxiliary(self.num_classes, self.dropout_aux, self.dtype, name=name)(x, train=train)
        x = layers.adaptive_avg_pool(layers.FeatureMap()(x).astype(jnp.float32), 1, 1)[:, 0, 0]
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return layers.classifier(x, self.num_classes, kernel_init=INIT, name="fc")


VARIANTS = {
    "googlenet": Variant(
        GoogLeNet,
        {},
        Layout(stem="conv1.conv", heads=("fc", "aux1.fc2", "aux2.fc2"), layers=(r"conv(\d)", r"inception(\d)([a-e])")),
        reference="torchvision",
        # Not ImageNet's: together with its weights torchvision sets `transform_input`, which turns images that are
        # normalised as for all its others into these.
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        top1=0.69778,
        source="torchvision IMAGENET1K_V1",
    ),
}
