"""Logits equal to those of transformers' models, whose state dicts come under other names than timm's."""

import functools

import jax
import numpy as np
import pytest
from test_models_parity import randomise

from imgcls_jax import models, pretrained

pytestmark = pytest.mark.parity

CLASSES = 7


def resnet(**config):
    """ResNetForImageClassification as microsoft/resnet-50 and its sisters, randomly initialised."""
    import transformers

    return transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=CLASSES, **config))


# id: (our name, overrides, image size, what makes the other model).
CASES = {
    "resnet18": (
        "resnet18",
        {},
        65,
        functools.partial(resnet, layer_type="basic", hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2]),
    ),
    "resnet50": ("resnet50", {}, 65, resnet),
    "resnet-of-two-stages": (
        "resnet50",
        {"stage_sizes": (2, 11), "width": 8},
        33,
        functools.partial(resnet, embedding_size=8, hidden_sizes=[32, 64], depths=[2, 11]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_and_every_tensor_is_used(torch, case):
    name, overrides, size, make = CASES[case]
    net = make().eval()
    randomise(net, torch)
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images).permute(0, 3, 1, 2)).logits.numpy()

    variables = pretrained.from_state_dict(name, net.state_dict(), image_size=size, **overrides)
    model = models.build(name, num_classes=CLASSES, **overrides)
    got = np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))
    assert np.std(expected) > 0.1
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < 1e-4
    ours = pretrained.to_state_dict(name, variables)
    assert sum(p.numel() for p in net.parameters()) == sum(v.size for k, v in ours.items() if "running" not in k)
