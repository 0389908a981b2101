"""Logits equal to timm's, from random timm weights with perturbed batch-norm statistics.

Needs the extra `parity`; run with `pytest -m parity`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgcls_jax import models

pytestmark = pytest.mark.parity

# Names whose last part differs from timm's; everything else is the path joined with dots.
LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


@pytest.fixture(scope="module")
def timm():
    """The library. The CUDA build of torchvision does not import on a CPU build of torch: two schemas are missing."""
    import torch

    library = None
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    yield timm
    del library  # which would have undeclared them had it gone earlier


def from_timm(state, shapes):
    """Our variables, shaped as `shapes`, from a timm state dict; every tensor of it must be used."""
    state = {k: v.numpy() for k, v in state.items() if not k.endswith("num_batches_tracked")}

    def leaf(path, shape):
        *modules, name = (key.key for key in path[1:])
        tensor = state.pop(".".join([*modules, LEAVES.get(name, name)]))
        if name == "kernel":  # outputs first in torch, last here
            tensor = tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
        return jnp.asarray(tensor.reshape(shape.shape))

    variables = jax.tree_util.tree_map_with_path(leaf, shapes)
    assert not state, f"unused: {sorted(state)}"
    return variables


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
                elif tensor.ndim == 1 or name in ("pos_embed", "cls_token"):
                    tensor.copy_(0.2 * noise)
                else:
                    tensor.copy_(noise / tensor[0].numel() ** 0.5)


@pytest.mark.parametrize(
    ("name", "timm_args", "our_args"),
    [
        ("resnet18", {}, {}),
        ("resnet50", {}, {}),
        ("seresnet50", {}, {}),
        ("vit_tiny_patch16_224", {}, {}),
        ("vit_tiny_patch16_224", {"global_pool": "map", "class_token": False}, {"pool": "map"}),
    ],
)
def test_logits_equal_timm(timm, name, timm_args, our_args):
    import torch

    reference = timm.create_model(name, num_classes=1000, **timm_args).eval()
    randomise(reference, torch)
    images = np.random.default_rng(0).standard_normal((2, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()

    model = models.build(name, num_classes=1000, **our_args)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    variables = from_timm(reference.state_dict(), shapes)
    got = np.asarray(jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images))
    assert np.std(expected) > 0.1  # the comparison would mean little on a net that says nothing
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert error < 1e-4
