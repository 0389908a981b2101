"""Logits equal to those of transformers' ViT and DeiT, from the names of its modules and from those of its files."""

import functools

import jax
import numpy as np
import pytest
from test_models_parity import randomise

from imgcls_jax import models, pretrained

pytestmark = pytest.mark.parity

CLASSES = 7
OVERRIDES = {"patch_size": 8, "width": 48, "depth": 11, "num_heads": 3, "mlp_dim": 80}
CONFIG = {
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 11,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "image_size": 32,
    "num_labels": CLASSES,
}


@pytest.mark.parametrize("names", ["modules", "files"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_logits_equal_and_every_tensor_is_used(torch, tmp_path, name, names):
    import safetensors.numpy
    import transformers

    if "deit" in name:
        net = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**CONFIG))
    else:
        net = transformers.ViTForImageClassification(transformers.ViTConfig(**CONFIG))
    net.eval()
    randomise(net, torch)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images).permute(0, 3, 1, 2)).logits.numpy()

    tensors = net.state_dict()
    if names == "files":
        net.save_pretrained(tmp_path)
        tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    variables = pretrained.from_state_dict(name, tensors, image_size=32, **OVERRIDES)
    model = models.build(name, num_classes=CLASSES, **OVERRIDES)
    got = np.asarray(jax.jit(functools.partial(model.apply, train=False))(variables, images))
    assert np.std(expected) > 0.1
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-4
    ours = pretrained.to_state_dict(name, variables)
    assert sum(p.numel() for p in net.parameters()) == sum(v.size for v in ours.values())
