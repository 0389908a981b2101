"""Residual networks beyond what test_zoo shows: counts and outputs by formula, initialisation, options, errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_zoo import FAST_TO_COMPILE, paths, quick_variables, shapes_of
from zoo import COUNTS

from imgcls_jax import models, pretrained
from imgcls_jax.models import layers, legacy_senet, resnet
from imgcls_jax.pretrained import convert
from imgcls_jax.types import ConfigError

# Every architecture of this family, small: (name, overrides).
SMALL = {
    "legacy": ("legacy_seresnet50", {"stage_sizes": (1, 1), "width": 8}),
    "wide": ("wrn40_4", {"depth": 10, "widen": 1}),
    "v2": ("resnetv2_50x1_bit", {"stage_sizes": (1, 1), "width": 32}),
    "resnext": ("resnext50_32x4d", {"stage_sizes": (1, 1), "groups": 4}),
}
IMAGES = np.random.default_rng(0).standard_normal((4, 17, 15, 3), np.float32)


def make(case, **extra):
    name, overrides = SMALL[case]
    return models.build(name, **{"num_classes": 5, **overrides, **extra})


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "seed"), compiler_options=FAST_TO_COMPILE)
def forward(model, variables, images, *, train=False, seed=0):
    rngs = {"dropout": jax.random.key(seed), "drop_path": jax.random.key(seed)}
    return model.apply(variables, images, train=train, rngs=rngs, mutable=["batch_stats"])[0]


def residual_stages(channels, widths, blocks, shortcut):
    """Weights of stages of pairs of 3x3 convolutions; shortcut(C, F) is what it costs to go to another width."""
    total = 0
    for width in widths:
        for _ in range(blocks):
            total += 9 * channels * width + 9 * width * width
            total += shortcut(channels, width) if channels != width else 0
            channels = width
    return total


@pytest.mark.parametrize(("name", "depth"), [("resnet20", 20), ("resnet32", 32), ("resnet56", 56)])
def test_counts_of_plain_small_networks_by_formula(name, depth):
    """6n + 2 layers; every convolution has a batch norm after it; shortcuts cost nothing."""
    blocks = (depth - 2) // 6
    norms = 2 * (16 + 2 * blocks * (16 + 32 + 64))
    expected = 27 * 16 + residual_stages(16, (16, 32, 64), blocks, lambda c, f: 0) + norms + 64 * 10 + 10
    assert COUNTS[name] == expected


@pytest.mark.parametrize(("name", "depth", "widen", "millions"), [("wrn28_10", 28, 10, 36.5), ("wrn40_4", 40, 4, 8.9)])
def test_counts_of_wide_networks_by_formula(name, depth, widen, millions):
    """6n + 4 layers; a batch norm before every 3x3 convolution but the first, and one at the end."""
    blocks = (depth - 4) // 6
    widths = [16 * widen, 32 * widen, 64 * widen]
    before = [16, *np.repeat(widths, 2 * blocks)]  # channels that each batch norm sees
    convolutions = 27 * 16 + residual_stages(16, widths, blocks, lambda c, f: c * f)
    assert COUNTS[name] == convolutions + 2 * sum(before) + widths[-1] * 10 + 10
    assert round(COUNTS[name] / 1e6, 1) == millions


def test_wide_resnet_is_the_paper_written_with_torchs_tensors():
    """A second writing of it, on NCHW images, from the tensors under their published names."""
    model = models.build("wrn28_10", num_classes=5, depth=16, widen=2)
    variables = quick_variables(shapes_of(model, IMAGES))
    t = {k: jnp.asarray(v) for k, v in pretrained.to_state_dict("wrn28_10", variables).items()}

    def conv(x, name, stride=1):
        pad = t[f"{name}.weight"].shape[-1] // 2
        return lax.conv_general_dilated(x, t[f"{name}.weight"], (stride, stride), [(pad, pad)] * 2)

    def norm_relu(x, name):
        weight, bias, mean, var = (
            t[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return jnp.maximum((x - mean) / jnp.sqrt(var + 1e-5) * weight + bias, 0)

    @jax.jit
    def expected(x):
        x = conv(x, "conv1")
        for stage in (1, 2, 3):
            for i in (0, 1):
                block, stride = f"block{stage}.layer.{i}", 2 if stage > 1 and i == 0 else 1
                active = norm_relu(x, f"{block}.bn1")
                y = conv(active, f"{block}.conv1", stride)
                y = conv(norm_relu(y, f"{block}.bn2"), f"{block}.conv2")
                x = y + (conv(active, f"{block}.convShortcut", stride) if i == 0 else x)
        return norm_relu(x, "bn1").mean((2, 3)) @ t["fc.weight"].T + t["fc.bias"]

    np.testing.assert_allclose(
        forward(model, variables, IMAGES), expected(IMAGES.transpose(0, 3, 1, 2)), rtol=1e-4, atol=1e-5
    )


def test_standardised_convolutions_ignore_scale_and_shift_of_their_weights():
    model = make("v2")
    variables = quick_variables(shapes_of(model, IMAGES))

    def other(path, leaf):
        if path[-1].key != "kernel" or path[-2].key == "head.fc":
            return leaf
        rng = np.random.default_rng(leaf.size)
        scale, shift = rng.uniform(0.5, 2, leaf.shape[-1]), rng.standard_normal(leaf.shape[-1])
        return (leaf * scale + 0.1 * shift).astype(np.float32)

    changed = jax.tree_util.tree_map_with_path(other, variables)
    expected = forward(model, variables, IMAGES)
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(forward(model, changed, IMAGES), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", range(2, 10))
def test_the_legacy_pool_counts_windows_that_reach_over_the_edge(size):
    x = -1 - np.random.default_rng(size).random(
        (1, size, 7, 1), np.float32
    )  # what is not there must not be the maximum
    rows = [x[:, i : i + 3].max(axis=1) for i in range(0, max(size - 1, 1), 2)]
    expected = np.stack([np.stack([row[:, j : j + 3].max(axis=1) for j in (0, 2, 4)], axis=1) for row in rows], axis=1)
    np.testing.assert_array_equal(legacy_senet._pool(jnp.asarray(x)), expected)


@pytest.mark.parametrize(
    ("case", "extra"),
    [
        ("legacy", {"dropout": 0.5}),
        ("legacy", {"drop_path": 0.5}),
        ("wide", {"dropout": 0.5}),
        ("v2", {"drop_path": 0.5}),
    ],
)
def test_random_layers_follow_their_key_in_training_and_are_off_in_evaluation(case, extra):
    model = make(case, **extra)
    variables = quick_variables(shapes_of(model, IMAGES))
    first, second, again = (forward(model, variables, IMAGES, train=True, seed=seed) for seed in (0, 1, 0))
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(forward(model, variables, IMAGES), forward(make(case), variables, IMAGES))


@pytest.mark.parametrize("case", SMALL)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters_and_logits(case):
    model = make(case, dtype=jnp.bfloat16)
    shapes = shapes_of(model, IMAGES)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    variables = quick_variables(shapes)
    logits, expected = forward(model, variables, IMAGES), forward(make(case), variables, IMAGES)
    assert logits.dtype == jnp.float32
    assert 1e-6 < np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 0.1
    text = forward.lower(model, variables, IMAGES).as_text()
    products = [
        line for line in text.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    assert len([line for line in products if "bf16" not in line]) == 1  # the head


def test_widths_and_groups_of_bottlenecks():
    image = jnp.zeros((1, 32, 32, 3))
    for name, inner, per_group in (("resnet50", 64, 64), ("wide_resnet50_2", 128, 128), ("resnext50_32x4d", 128, 4)):
        shapes = {k: v.shape for k, v in paths(shapes_of(models.build(name, num_classes=5), image)["params"]).items()}
        assert shapes["layer1.0/conv2/kernel"] == (3, 3, per_group, inner)
        assert shapes["layer4.0/conv2/kernel"] == (3, 3, 8 * per_group, 8 * inner)
        assert shapes["layer4.2/conv3/kernel"] == (1, 1, 8 * inner, 2048)


def test_initialisation_is_as_documented():
    key = jax.random.key(0, impl="unsafe_rbg")  # its programs compile fast

    def initial(case, **extra):
        init = functools.partial(make(case, **extra).init, key, IMAGES[:1], train=False)
        return paths(jax.jit(init, compiler_options=FAST_TO_COMPILE)()["params"])

    def he(shape):
        return pytest.approx(math.sqrt(2 / (shape[0] * shape[1] * shape[3])), rel=0.05)

    wide, v2, legacy = (
        initial("wide", widen=4),
        initial("v2", stage_sizes=(1,)),
        initial("legacy", stage_sizes=(1,), width=32),
    )
    for params, path in (
        (wide, "block2.layer.0/conv1"),
        (wide, "block2.layer.0/convShortcut"),
        (v2, "stages.0.blocks.0/conv3"),
        (legacy, "layer1.0/conv3"),
    ):
        kernel = params[f"{path}/kernel"]
        assert np.std(kernel) == he(kernel.shape), path
    assert np.std(v2["head.fc/kernel"]) == pytest.approx(0.01, rel=0.1)
    for kernel in (wide["fc/kernel"], legacy["last_linear/kernel"]):
        assert np.abs(kernel).max() == pytest.approx(len(kernel) ** -0.5, rel=0.02)
        assert np.std(kernel) == pytest.approx((3 * len(kernel)) ** -0.5, rel=0.1)
    for path, value in (wide | v2 | legacy).items():
        if path.endswith("/scale"):
            assert np.all(value == 1), path
        elif path.endswith("/bias"):
            assert not np.any(value), path


def test_the_head_of_v2_is_a_convolution_as_in_the_reference():
    variables = quick_variables(shapes_of(make("v2"), IMAGES))
    tensors = pretrained.to_state_dict("resnetv2_50x1_bit", variables)
    assert tensors["head.fc.weight"].shape == (5, 256, 1, 1) and tensors["head.fc.bias"].shape == (5,)


def test_transformers_names_become_ours_and_ours_stay():
    """tests/test_models_parity_transformers.py compares with transformers itself."""
    layout = models.MODELS["resnet50"].layout
    translated = {
        "resnet.embedder.embedder.normalization.running_var": "bn1.running_var",
        "embedder.embedder.convolution.weight": "conv1.weight",  # of a ResNetModel, which has no head
        "resnet.encoder.stages.3.layers.10.layer.2.convolution.weight": "layer4.10.conv3.weight",
        "resnet.encoder.stages.0.layers.0.shortcut.normalization.bias": "layer1.0.downsample.1.bias",
        "classifier.1.weight": "fc.weight",
    }
    assert list(convert.under_our_names(layout, dict.fromkeys(translated, 0))) == list(translated.values())
    ours = [convert.tensor_name(path) for path in paths(shapes_of(make("resnext", se_ratio=0.25), IMAGES))]
    assert list(convert.under_our_names(layout, dict.fromkeys(ours, 0))) == ours


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("wrn28_10", {"depth": 27}, "depth is 27: it must be 6n + 4"),
        ("wrn28_10", {"depth": 4}, "depth is 4: it must be 6n + 4"),
        ("resnetv2_50x1_bit", {"width": 48}, "width is 48: group norm needs a multiple of 32"),
        ("legacy_seresnet50", {"width": 6}, "width is 6: squeeze-and-excitation needs a multiple of 4"),
        ("resnet18", {"groups": 2}, "groups and base_width are of bottlenecks"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(name, overrides, message):
    with pytest.raises(ConfigError) as error:
        shapes_of(models.build(name, num_classes=5, **overrides), jnp.zeros((1, 32, 32, 3)))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("shape", [(17, 14, 3), (12, 9, 1)])
def test_the_stem_for_tpus_is_the_plain_one_to_rounding(shape):
    """Output, and the gradients by kernel and images of a random function of it."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, *shape), np.float32)
    variables = {"params": {"kernel": rng.standard_normal((7, 7, shape[-1], 8), np.float32)}}
    weights = rng.standard_normal((2, -(-shape[0] // 2), -(-shape[1] // 2), 8), np.float32)

    def found(conv):
        def value(*args):
            output = conv.apply(*args)
            return jnp.sum(weights * output), output

        function = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)
        (_, output), gradients = jax.jit(function, compiler_options=FAST_TO_COMPILE)(variables, images)
        return output, *jax.tree.leaves(gradients)

    for a, b in zip(found(resnet.SpaceToDepthConv(8)), found(layers.Conv(8, 7, stride=2)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_resnet_with_the_stem_for_tpus_takes_the_weights_of_the_plain_one():
    plain, other = (
        models.build("resnet50", num_classes=5, stage_sizes=(1, 1), width=8, stem=stem)
        for stem in ("imagenet", "space_to_depth")
    )
    variables = quick_variables(shapes_of(plain, IMAGES))
    assert paths(shapes_of(other, IMAGES)) == paths(shapes_of(plain, IMAGES))
    got, expected = (forward(model, variables, IMAGES)[0] for model in (other, plain))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    text = jax.jit(lambda v: other.apply(v, IMAGES, train=False)).lower(variables).as_text()
    assert "(tensor<4x9x8x12xf32>, tensor<4x4x12x8xf32>) -> tensor<4x9x8x8xf32>" in text
