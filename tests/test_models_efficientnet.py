"""Inverted residual blocks, EfficientNet and MobileNetV3: what the comparisons with the reference do not show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgcls_jax import models
from imgcls_jax.models import mbconv
from imgcls_jax.models.mbconv import InvertedResidual, Run, Style
from imgcls_jax.pretrained import convert
from imgcls_jax.types import ConfigError

IMAGES = np.random.default_rng(0).standard_normal((4, 16, 16, 3), np.float32)
X = np.random.default_rng(1).standard_normal((64, 4, 4, 8), np.float32)


def block(run, *, stride=1, drop_path=None, **style):
    return InvertedResidual(run, stride, Style("silu", dtype=jnp.float32, **style), drop_path)


def init(module, x):
    return jax.jit(functools.partial(module.init, train=False))(jax.random.key(0), x)


def test_initialisation_is_tensorflows():
    """N(0, 2 / fan_out), where a depthwise convolution's fan-out is its places alone; the classifier in +-K**-0.5."""
    wide = np.zeros((1, 4, 4, 256), np.float32)
    params = init(block(Run("mbconv", 5, 1, 4, 256, 1, 0.25)), wide)["params"]
    fans = {"conv_pw": 1024, "conv_dw": 25, "conv_pwl": 256}
    for name, fan in fans.items():
        assert np.std(params[name]["kernel"]) == pytest.approx((2 / fan) ** 0.5, rel=0.03), name
    assert np.std(params["se"]["conv_expand"]["kernel"]) == pytest.approx((2 / 1024) ** 0.5, rel=0.03)
    assert not np.any(params["se"]["conv_reduce"]["bias"])
    matrix = np.asarray(mbconv.classifier_init(jax.random.key(0), (1280, 100), jnp.float32))
    assert 0.099 < np.abs(matrix).max() <= 0.1 and np.std(matrix) == pytest.approx(0.1 / 3**0.5, rel=0.01)


@pytest.mark.parametrize(("kind", "channels", "stride", "has"), [
    ("mbconv", 8, 1, True), ("separable", 8, 1, True), ("fused", 8, 1, True), ("conv", 8, 1, True),
    ("mbconv", 8, 2, False), ("mbconv", 16, 1, False),
])  # fmt: skip
def test_the_shortcut_is_where_shapes_allow_it(kind, channels, stride, has):
    """With the last batch norm at zero the branch is zero, and what is left is the shortcut."""
    module = block(Run(kind, 3, stride, 2, channels, 1), stride=stride)
    variables = init(module, X)
    last = {"mbconv": "bn3", "separable": "bn2", "fused": "bn2", "conv": "bn1"}[kind]
    norm = variables["params"][last]
    norm["scale"] = jnp.zeros_like(norm["scale"])
    out = jax.jit(functools.partial(module.apply, train=False))(variables, X)
    np.testing.assert_array_equal(out, X if has else np.zeros_like(out))


def test_drop_path_drops_whole_branches_in_training_only():
    run = Run("separable", 3, 1, 1, 8, 1)
    plain, dropping = block(run), block(run, drop_path=0.5)
    variables = init(plain, X)
    np.testing.assert_array_equal(dropping.apply(variables, X, train=False), plain.apply(variables, X, train=False))
    full, _ = plain.apply(variables, X, train=True, mutable=["batch_stats"])
    out, _ = dropping.apply(variables, X, train=True, mutable=["batch_stats"], rngs={"drop_path": jax.random.key(1)})
    dropped = np.all(np.asarray(out) == X, axis=(1, 2, 3))
    assert 16 < dropped.sum() < 48
    np.testing.assert_allclose((out - X)[~dropped], 2 * (full - X)[~dropped], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tf", [False, True])
def test_padding_is_as_the_conventions_say(tf):
    """Seen in the statistics: at stride 2 TensorFlow's has no zeros above and left of an even map, torch's has."""
    module = block(Run("conv", 3, 2, 1, 8, 1), stride=2, tf=tf)
    variables = init(module, X)
    _, state = module.apply(variables, X, train=True, mutable=["batch_stats"])
    kernel = variables["params"]["conv"]["kernel"]
    padding = ((0, 1), (0, 1)) if tf else ((1, 1), (1, 1))
    y = jax.lax.conv_general_dilated(X, kernel, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    expected = 0.1 * jnp.mean(y, axis=(0, 1, 2))
    np.testing.assert_allclose(state["batch_stats"]["bn1"]["mean"], expected, atol=1e-6)


@pytest.mark.parametrize(("hard", "inner"), [(False, 4), (True, 24)])
def test_squeeze_and_excitation_is_relative_to_input_or_expansion(hard, inner):
    module = block(Run("mbconv", 3, 1, 6, 16, 1, 0.25), hard_se=hard)
    x = jax.ShapeDtypeStruct((1, 4, 4, 16), jnp.float32)
    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), x)
    assert shapes["params"]["se"]["conv_reduce"]["kernel"].shape == (1, 1, 96, inner)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "mobilenetv3_small_100"])
def test_dropout_acts_on_the_features_in_training_only(monkeypatch, name):
    """At a rate next to 1 nothing but the classifier's bias, which starts at zero, is left in training."""
    monkeypatch.setattr(mbconv, "apply_stages", lambda x, *args, **kwargs: x)  # all that takes time
    model = models.build(name, num_classes=3, dropout=1 - 1e-7)
    variables = init(model, IMAGES)
    rngs = {"dropout": jax.random.key(1)}
    trained, _ = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"], rngs=rngs)
    assert not np.any(trained)
    assert np.all(np.asarray(model.apply(variables, IMAGES, train=False)) != 0)


def test_names_of_efficientnet_pytorch_are_translated_and_ours_left_alone():
    """B1 has two blocks in its first stage, without expansion, and 23 in all."""
    layout = models.MODELS["efficientnet_b1"].layout
    names = {
        "_conv_stem.weight": "conv_stem.weight",
        "_bn0.weight": "bn1.weight",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
        "_blocks.1._se_reduce.bias": "blocks.0.1.se.conv_reduce.bias",
        "_blocks.1._project_conv.weight": "blocks.0.1.conv_pw.weight",
        "_blocks.1._bn2.running_var": "blocks.0.1.bn2.running_var",
        "_blocks.2._expand_conv.weight": "blocks.1.0.conv_pw.weight",
        "_blocks.2._bn0.weight": "blocks.1.0.bn1.weight",
        "_blocks.22._bn1.weight": "blocks.6.1.bn2.weight",
        "_blocks.22._se_expand.weight": "blocks.6.1.se.conv_expand.weight",
        "_blocks.22._project_conv.weight": "blocks.6.1.conv_pwl.weight",
        "_blocks.22._bn2.running_mean": "blocks.6.1.bn3.running_mean",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.weight": "bn2.weight",
        "_fc.bias": "classifier.bias",
    }
    assert list(convert.under_our_names(layout, dict.fromkeys(names, np.zeros(1)))) == list(names.values())
    model = models.build("efficientnet_b1", num_classes=3)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)
    ours = dict.fromkeys(map(convert.tensor_name, convert._flatten(shapes)), np.zeros(1))
    assert ours.keys() >= set(names.values())
    assert convert.under_our_names(layout, ours).keys() == ours.keys()


@pytest.mark.parametrize(("name", "field", "value", "sentence"), [
    ("efficientnet_b0", "table", "b9", "table='b9' is unknown .*choices: b0, lite, v2_s"),
    ("mobilenetv3_small_100", "table", "tiny", "table='tiny' is unknown.*choices: large, small"),
    ("efficientnet_b0", "width", 0.0, "width=0.0 and depth=1.0: both must be more than 0"),
    ("efficientnet_b0", "drop_path", 1.0, "drop_path is 1.0: it must be"),
])  # fmt: skip
def test_nonsense_is_refused_in_a_sentence(name, field, value, sentence):
    model = models.build(name, num_classes=3, **{field: value})
    with pytest.raises(ConfigError, match=sentence):
        jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), IMAGES)
