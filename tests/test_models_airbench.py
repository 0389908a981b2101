"""airbench's network: the reference written with torch's layers, and filters that whiten."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_models_parity import randomise
from zoo import COUNTS

from imgcls_jax import models, pretrained
from imgcls_jax.models import airbench
from imgcls_jax.types import ConfigError


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_filters_whiten_images_of_the_markov_model(channels):
    """Outputs have the unit matrix for covariance, and the second half is the first negated."""
    places = [(y, x) for y in (0, 1) for x in (0, 1)]
    one = np.array([[airbench.NEIGHBOURS ** (abs(y - v) + abs(x - w)) for v, w in places] for y, x in places])
    covariance = np.kron(one, np.eye(channels))  # of a place's pixels, [2,2,C] flattened; channels independent
    kernel = airbench.whitening(jax.random.key(0), (2, 2, channels, 8 * channels)).reshape(4 * channels, -1)
    first, second = jnp.split(kernel, 2, axis=1)
    np.testing.assert_allclose(first.T @ covariance @ first, np.eye(4 * channels), atol=1e-5)
    np.testing.assert_array_equal(first, -second)


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 12), (12, 4)])
def test_convolutions_start_by_handing_channels_on(inputs, outputs):
    """The others have the spread of torch's default, U(-b, b) with b = (9 C)^-1/2."""
    kernel = airbench.handing_on(jax.random.key(0), (3, 3, inputs, outputs))
    x = np.random.default_rng(0).standard_normal((2, 6, 5, inputs)).astype(np.float32)
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    both = min(inputs, outputs)
    np.testing.assert_allclose(y[..., :both], x[..., :both], atol=1e-6)
    if outputs > inputs:
        others, bound = np.asarray(kernel[..., both:]), (9 * inputs) ** -0.5
        assert 0.95 * bound < np.abs(others).max() <= bound
        assert np.std(others) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_the_smallest_image_and_one_that_is_too_small():
    model = models.build("airbench94", num_classes=3, width=4)
    init = functools.partial(jax.eval_shape, functools.partial(model.init_with_output, train=False), jax.random.key(0))
    logits, _ = init(jnp.zeros((2, 9, 9, 1)))
    assert logits.shape == (2, 3)
    with pytest.raises(ConfigError, match="image size 8x9 is too small: sides must be 9 pixels or more"):
        init(jnp.zeros((2, 8, 9, 1)))


@pytest.mark.parity
def test_it_is_the_reference_in_evaluation_and_training(torch):
    """As github.com/KellerJordan/cifar10-airbench describes it: logits, both ways, and the gradients of all weights."""
    nn = torch.nn

    class Group(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, padding="same", bias=False)
            self.norm1, self.norm2 = (nn.BatchNorm2d(outputs, eps=1e-12) for _ in range(2))

        def forward(self, x):
            x = nn.functional.gelu(self.norm1(nn.functional.max_pool2d(self.conv1(x), 2)))
            return nn.functional.gelu(self.norm2(self.conv2(x)))

    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.whiten = nn.Conv2d(3, 24, 2)
            groups = [Group(24, width), Group(width, 4 * width), Group(4 * width, 4 * width)]
            self.layers = nn.Sequential(nn.GELU(), *groups, nn.MaxPool2d(3))
            self.head = nn.Linear(4 * width, 10, bias=False)

        def forward(self, x):
            x = self.layers(self.whiten(x)).flatten(1)
            return self.head(x) / x.shape[1]

    assert sum(parameter.numel() for parameter in Net(64).parameters()) == COUNTS["airbench94"]
    net = Net(8)
    randomise(net, torch)
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    theirs = torch.from_numpy(images).permute(0, 3, 1, 2)
    model = models.build("airbench94", num_classes=10, width=8)
    variables = pretrained.from_state_dict("airbench94", net.state_dict(), num_classes=10, width=8)
    got = jax.jit(functools.partial(model.apply, train=False))(variables, images)
    expected = net.eval()(theirs).detach().numpy()
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return (logits**2).mean(), logits

    grads, got = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    expected = net.train()(theirs)
    (expected**2).mean().backward()
    np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    ours = pretrained.to_state_dict("airbench94", {"params": grads})
    for name, parameter in net.named_parameters():
        wanted = parameter.grad.numpy()
        assert np.abs(ours[name] - wanted).max() < 1e-3 * np.abs(wanted).max(), name
