"""Position embeddings at other image sizes: logits equal timm's after its own resizing of the same weights."""

import functools

import jax
import numpy as np
import pytest
from test_models_parity import randomise

from imgcls_jax import models, pretrained

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 160),
        ("vit_tiny_patch16_224", 288),
        ("deit_tiny_distilled_patch16_224", 160),
        ("deit_tiny_distilled_patch16_224", 288),
        ("deit3_small_patch16_224", 160),
    ],
)
def test_positions_are_resized_as_timm_does(torch, name, size):
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    net = timm.create_model(name, num_classes=10)
    randomise(net, torch)
    with torch.no_grad():
        net.pos_embed *= 5  # they must matter
    tensors = net.state_dict()
    other = timm.create_model(name, num_classes=10, img_size=size).eval()
    other.load_state_dict(checkpoint_filter_fn(dict(tensors), other))
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = other(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    variables = pretrained.from_state_dict(name, tensors, image_size=size)
    resized = variables["params"]["pos_embed"]
    np.testing.assert_allclose(resized, other.pos_embed.detach().numpy(), rtol=1e-5, atol=1e-5)
    model = models.build(name, num_classes=10)
    got = np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))
    assert np.std(expected) > 0.1
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-4
