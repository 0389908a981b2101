"""LeNet-5: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition" (1998)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgcls_jax.models import layers
from imgcls_jax.models.pooling import max_pool
from imgcls_jax.models.variant import Layout, Preprocessing, Variant

FIELD = 32  # pixels: the paper centres its 28x28 digits in a 32x32 field


class LeNet5(nn.Module):
    """Two 5x5 convolutions (6, 16), each followed by 2x2 pooling, then dense 120, 84 and num_classes.

    The 1998 layout with tanh and average pooling; `modern=True` has ReLU and max pooling. Simplifications that
    everyone makes: C3 sees all six maps, the pooling has no trainable coefficients, tanh is not rescaled and the
    output layer is linear. 61,706 parameters for 10 classes at 1 channel and 28x28 or 32x32.

    Images smaller than 32x32 are centred in a field of zeros of that size (28x28: two pixels on every side);
    larger ones only make the first dense layer larger.

    Initialisation: LeCun-normal, standard deviation fan_in**-0.5 ("Efficient BackProp", 1998, section 4.6);
    He-normal for the modern one (arXiv:1502.01852).
    """

    num_classes: int
    modern: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Images [B,H,W,C] float -> logits [B,K] float32; features [B,84] if num_classes is 0."""
        del train  # nothing here differs
        act = nn.relu if self.modern else jnp.tanh
        pool = functools.partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2))
        if self.modern:
            pool = functools.partial(max_pool, window=2, stride=2)
        init = nn.initializers.he_normal() if self.modern else nn.initializers.lecun_normal()
        conv = functools.partial(
            layers.Conv, kernel_size=5, padding=0, use_bias=True, kernel_init=init, dtype=self.dtype
        )

        x = _centre(images.astype(self.dtype))
        x = pool(act(conv(6, name="conv1")(x)))
        x = pool(layers.FeatureMap()(act(conv(16, name="conv2")(x))))
        x = x.reshape(x.shape[0], -1)
        x = act(layers.Dense((120,), kernel_init=init, dtype=self.dtype, name="fc1")(x))
        x = act(layers.Dense((84,), kernel_init=init, dtype=self.dtype, name="fc2")(x))
        return layers.classifier(x, self.num_classes, kernel_init=init, name="fc3")


def _centre(images: jax.Array) -> jax.Array:
    """Zeros around images [B,H,W,C] whose sides are shorter than FIELD."""
    margins = [max(0, FIELD - side) for side in images.shape[1:3]]
    return jnp.pad(images, ((0, 0), *((m // 2, m - m // 2) for m in margins), (0, 0)))


VARIANTS = {
    "lenet5": Variant(
        LeNet5,
        {},
        Layout(stem="conv1", heads=("fc3",), layers=(r"conv(\d)", r"fc([12])")),
        preprocessing=Preprocessing(mean=(0.1307,), std=(0.3081,), crop_pct=1.0, image_size=28),
        channels=1,
        num_classes=10,
    ),
}
