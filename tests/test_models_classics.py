"""AlexNet, VGG, GoogLeNet, DenseNet: what tests over every model do not show."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models_parity import randomise
from zoo import COUNTS

from imgcls_jax import models, pretrained
from imgcls_jax.models import layers
from imgcls_jax.types import ConfigError

NOISE = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
SMALL_DENSENET = {"growth": 4, "block_sizes": (2, 2)}


def shapes_of(model, side):
    image = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), image)


def windows_mean(x, height, width):
    """torch.nn.AdaptiveAvgPool2d's documented formula, window by window."""
    out = np.empty((len(x), height, width, x.shape[-1]), np.float32)
    for i in range(height):
        rows = slice(i * x.shape[1] // height, math.ceil((i + 1) * x.shape[1] / height))
        for j in range(width):
            columns = slice(j * x.shape[2] // width, math.ceil((j + 1) * x.shape[2] / width))
            out[:, i, j] = x[:, rows, columns].mean(axis=(1, 2))
    return out


@pytest.mark.parametrize(
    ("old", "new"), [((8, 6), (4, 3)), ((7, 7), (7, 7)), ((13, 9), (6, 6)), ((3, 1), (7, 7)), ((5, 12), (1, 5))]
)
def test_adaptive_pooling_is_the_formulas(old, new):
    x = NOISE[:, : old[0], : old[1]]
    np.testing.assert_allclose(layers.adaptive_avg_pool(jnp.asarray(x), *new), windows_mean(x, *new), atol=1e-6)
    assert layers.adaptive_avg_pool(jnp.asarray(x, jnp.bfloat16), *new).dtype == jnp.bfloat16


@pytest.mark.parametrize(("name", "side"), [("alexnet", 63), ("vgg11", 32), ("googlenet", 15), ("densenet121", 29)])
def test_the_smallest_images(name, side):
    overrides = {"block_sizes": (1, 1, 1, 1)} if name == "densenet121" else {}
    model = models.build(name, num_classes=5, **overrides)
    shapes_of(model, side)
    with pytest.raises(ConfigError, match="the image is too small"):
        shapes_of(model, side - 1)


def test_densenet_bc_has_the_papers_parameters():
    """Convolutions have no bias, norms two parameters a channel; widths by section 3 of arXiv:1608.06993."""
    length, growth, classes = 100, 12, 10
    layers_in_block = (length - 4) // 6
    width = 2 * growth
    total = 3 * 9 * width
    for block in range(3):
        for _ in range(layers_in_block):
            total += 2 * width + width * 4 * growth  # norm, 1x1
            total += 2 * 4 * growth + 4 * growth * 9 * growth  # norm, 3x3
            width += growth
        total += 2 * width
        if block < 2:
            total += width * (width // 2)
            width //= 2
    assert total + (width + 1) * classes == COUNTS["densenet_bc_100_12"]


def test_the_small_stem_of_densenet_keeps_the_size():
    def places(side, **overrides):
        model = models.build("densenet121", num_classes=5, **SMALL_DENSENET, **overrides)
        apply = functools.partial(model.apply, train=False, capture_intermediates=True)
        _, state = jax.eval_shape(apply, shapes_of(model, side), jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32))
        return state["intermediates"]["features.norm5"]["__call__"][0].shape[1]

    assert places(32, stem="small") == 16 and places(32) == 4
    with pytest.raises(ConfigError, match=r"stem='smal' is unknown \(did you mean 'small'\?\)"):
        places(32, stem="smal")


def test_densenet_reads_torchvisions_published_names():
    model = models.build("densenet121", num_classes=5, **SMALL_DENSENET)
    variables = jax.tree.map(lambda leaf: np.resize(NOISE, leaf.shape), shapes_of(model, 32))
    new = pretrained.to_state_dict("densenet121", variables)
    assert "features.denseblock1.denselayer2.norm1.running_var" in new
    old = {k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for k, v in new.items()}
    assert len(old.keys() - new.keys()) == 4 * 5
    back = pretrained.from_state_dict("densenet121", old, **SMALL_DENSENET)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


# name: (overrides, side, the default rates)
DROPOUTS = {
    "alexnet": ({}, 63, {"dropout": 0.5}),
    "vgg11": ({"stage_sizes": (1, 0, 0, 0, 0)}, 32, {"dropout": 0.5}),
    "googlenet": ({}, 32, {"dropout": 0.2, "dropout_aux": 0.7}),
    "densenet121": (SMALL_DENSENET, 32, {"dropout": 0.0}),
}


@pytest.mark.parametrize("name", DROPOUTS)
def test_dropout_is_of_training_only(name, monkeypatch):
    """As far as that can be seen without running the large ones: where random numbers are drawn."""
    overrides, side, rates = DROPOUTS[name]
    model = models.build(name, num_classes=5, **overrides)
    assert {key: getattr(model, key) for key in rates} == rates
    variables = shapes_of(model, side)
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    drawn, bernoulli = [], jax.random.bernoulli
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: drawn.append(p) or bernoulli(key, p, shape))

    def draws(train, **fields):
        drawn.clear()
        apply = functools.partial(model.clone(**fields).apply, train=train, mutable=["batch_stats", "aux_logits"])
        jax.eval_shape(functools.partial(apply, rngs={"dropout": jax.random.key(0)}), variables, images)
        return len(drawn)

    on, off = dict.fromkeys(rates, 0.5), dict.fromkeys(rates, 0.0)
    assert draws(False, **on) == 0 and draws(True, **off) == 0
    # Two dense layers; trunk and two auxiliary ones; all convolutions but the first: 4 layers of 2 and a transition.
    assert draws(True, **on) == {"alexnet": 2, "vgg11": 2, "googlenet": 3, "densenet121": 9}[name]


def test_dropout_in_densenet_leaves_the_stem_alone():
    model = models.build("densenet121", num_classes=0, growth=4, block_sizes=(2,), dropout=1.0)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), shapes_of(model, 32))
    apply = functools.partial(jax.jit(model.apply, static_argnames=("train", "mutable")), mutable=("batch_stats",))
    dropped, _ = apply(variables, NOISE[:, :32, :32], train=True, rngs={"dropout": jax.random.key(0)})
    whole, _ = apply(variables, NOISE[:, :32, :32], train=False)
    assert dropped.shape == whole.shape == (2, 16)
    # What the layers add is all zeros, which norm5 turns into its bias; the stem's 8 channels differ by image.
    np.testing.assert_array_equal(dropped[:, 8:], 0.5)
    assert (dropped[0, :8] != dropped[1, :8]).all()


def test_auxiliary_logits_are_of_training_only():
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)

    def aux_logits(train, num_classes=5):
        model = models.build("googlenet", num_classes=num_classes)
        apply = functools.partial(model.apply, train=train, mutable=["batch_stats", "aux_logits"])
        rngs = {"dropout": jax.random.key(0)}
        _, state = jax.eval_shape(functools.partial(apply, rngs=rngs), shapes_of(model, 64), images)
        return state.get("aux_logits")

    logits = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    assert aux_logits(True) == {"aux1": {"logits": logits}, "aux2": {"logits": logits}}
    assert aux_logits(False) is None and aux_logits(True, num_classes=0) is None
    init = functools.partial(models.build("googlenet", num_classes=5).init, train=True)
    variables = jax.eval_shape(init, {"params": jax.random.key(0), "dropout": jax.random.key(1)}, images)
    assert jax.tree.structure(variables) == jax.tree.structure(shapes_of(models.build("googlenet", num_classes=5), 64))
    assert variables.keys() == {"params", "batch_stats"}


# name: (overrides, side, {module path: (standard deviation of its kernel, whether it is uniform)})
INITIAL = {
    "alexnet": ({}, 63, {"features.3": ((3 * 25 * 64) ** -0.5, True), "classifier.6": ((3 * 4096) ** -0.5, True)}),
    "vgg11": ({}, 32, {"features.18": ((2 / (9 * 512)) ** 0.5, False), "classifier.6": (0.01, False)}),
    "googlenet": ({}, 32, {"conv3.conv": (0.01, False), "aux1/fc1": (0.01, False), "fc": (0.01, False)}),
    "densenet121": (
        {"block_sizes": (4,)},
        32,
        {
            "features.denseblock1.denselayer2/conv2": ((2 / (9 * 128)) ** 0.5, False),
            "classifier": ((3 * 192) ** -0.5, True),
        },
    ),
}


@pytest.mark.parametrize("name", INITIAL)
def test_initialisation_is_as_documented(name):
    overrides, side, expected = INITIAL[name]
    model = models.build(name, num_classes=100, **overrides)

    @jax.jit
    def some():  # XLA leaves out what is not asked for
        params = model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False)["params"]
        return {path: functools.reduce(lambda tree, key: tree[key], path.split("/"), params) for path in expected}

    for path, leaves in some().items():
        deviation, uniform = expected[path]
        kernel = np.asarray(leaves["kernel"])
        assert abs(kernel.mean()) < 4 * deviation / kernel.size**0.5
        np.testing.assert_allclose(kernel.std(), deviation, rtol=0.02)
        assert (np.abs(kernel).max() < 1.733 * deviation) == uniform  # 3**0.5 deviations is where a uniform one ends
        assert not np.any(leaves.get("bias", 0))


@pytest.mark.parity
@pytest.mark.slow
def test_vgg_reads_timms_names(torch):
    """timm's first dense layer is a 7x7 convolution: the same at the native size."""
    import timm

    net = timm.create_model("vgg11").eval()
    randomise(net, torch)
    images = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    variables = pretrained.from_state_dict("vgg11", net.state_dict())
    got = jax.jit(functools.partial(models.build("vgg11", num_classes=1000).apply, train=False))(variables, images)
    assert np.std(expected) > 0.1
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parity
def test_googlenet_in_training_and_its_inputs_are_torchvisions(torch):
    """Auxiliary logits from the batch's own statistics, dropout off; the published weights' inputs."""
    import torchvision

    net = torchvision.models.googlenet(
        num_classes=7, init_weights=False, transform_input=True, dropout=0.0, dropout_aux=0.0
    )
    randomise(net, torch)
    tensors = {key: value.numpy().copy() for key, value in net.state_dict().items()}
    ours, imagenet = models.MODELS["googlenet"].preprocessing, models.MODELS["resnet50"].preprocessing
    pixels = np.random.default_rng(0).random((4, 97, 97, 3), np.float32)
    theirs = ((pixels - imagenet.mean) / imagenet.std).astype(np.float32)
    with torch.no_grad():
        expected, expected2, expected1 = net.train()(torch.from_numpy(theirs).permute(0, 3, 1, 2))

    variables = pretrained.from_state_dict("googlenet", tensors)
    model = models.build("googlenet", num_classes=7, dropout=0.0, dropout_aux=0.0)
    apply = functools.partial(model.apply, train=True, mutable=["batch_stats", "aux_logits"])
    got, state = jax.jit(apply)(variables, ((pixels - ours.mean) / ours.std).astype(np.float32))
    aux = state["aux_logits"]
    for a, b in ((expected, got), (expected1, aux["aux1"]["logits"]), (expected2, aux["aux2"]["logits"])):
        assert np.abs(a.numpy() - b).max() < 1e-3 * np.abs(a.numpy()).max()
