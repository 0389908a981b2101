"""Logits equal to the reference's (timm, torchvision) from its random weights, and the weights back bit for bit.

Needs the extra `parity`; `pytest -m "parity and not slow"` runs one model a family, `pytest -m parity` all of them.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from zoo import COUNTS, FAST

from imgcls_jax import models, pretrained

pytestmark = pytest.mark.parity

REFERENCED = [name for name, variant in models.MODELS.items() if variant.reference]
# Largest difference over largest logit; the deepest collect more rounding.
TOLERANCE = {}


def reference(name, **kwargs):
    """The model of the library that the variant names, in evaluation mode."""
    if models.MODELS[name].reference == "timm":
        import timm

        return timm.create_model(name, **kwargs).eval()
    import torchvision

    kwargs |= {"init_weights": False} if name.startswith(("googlenet", "vgg")) else {}
    return torchvision.models.get_model(name, weights=None, **kwargs).eval()


def randomise(model, torch):
    """Every parameter and statistic away from its initial value, at a scale that keeps activations in range."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                if tensor.ndim == 1 and name.endswith("weight"):
                    tensor.copy_(1 + 0.2 * noise)
                elif tensor.ndim == 1 or name.endswith(("pos_embed", "_token", "gamma")):
                    tensor.copy_(0.2 * noise)
                else:
                    tensor.copy_(noise / tensor[0].numel() ** 0.5)


def side(name):
    """Pixels: what learned positions ask for, else few, and odd: that puts paddings of all kinds to the test."""
    size = models.MODELS[name].preprocessing.image_size
    return size if "vit" in name or "deit" in name or "mixer" in name else 129


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in REFERENCED]
)
def test_logits_equal_the_reference_and_weights_come_back(torch, name):
    net = reference(name, num_classes=models.MODELS[name].num_classes)
    assert sum(p.numel() for p in net.parameters()) == COUNTS[name]
    randomise(net, torch)
    size = side(name)
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    tensors = {k: v.numpy() for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
    variables = pretrained.from_state_dict(name, tensors)
    model = models.build(name, num_classes=1000)
    got = np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))
    assert np.std(expected) > 0.1  # the comparison would mean little on a net that says nothing
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE.get(name, 1e-4)

    back = pretrained.to_state_dict(name, variables)
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        np.testing.assert_array_equal(back[key], tensor, err_msg=key)


@pytest.mark.parametrize("name", [n for n in REFERENCED if models.MODELS[n].reference == "timm"])
def test_preprocessing_is_that_of_the_default_weights(torch, name):
    import timm

    theirs = timm.get_pretrained_cfg(name)
    ours = dataclasses.asdict(models.MODELS[name].preprocessing)
    keys = ("mean", "std", "interpolation", "crop_pct")
    assert {k: ours[k] for k in keys} == {k: getattr(theirs, k) for k in keys}
    assert ours["image_size"] == theirs.input_size[-1]
