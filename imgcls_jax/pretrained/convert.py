"""Tensors under the reference's names <-> our variables: layouts, and what adapts to other data."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from imgcls_jax.models.layers import SPLITS
from imgcls_jax.models.variant import Layout
from imgcls_jax.types import PyTree, UserError

Tensors = dict[str, np.ndarray]

# Last parts of a path that torch calls something else.
_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
# torch's counter of batch-norm updates: of no use to anyone whose momentum is a constant.
_IGNORED = "num_batches_tracked"
# Where position embeddings are, in every architecture that learns them.
POSITIONS = "params/pos_embed"


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the tensors of a file, by the reference's names.

    Attributes:
      matched: taken as they were.
      adapted: resized positions and stems of another number of channels.
      reinitialised: heads of another width.
      unexpected: in the file, not in the model.
    """

    matched: tuple[str, ...]
    adapted: tuple[str, ...]
    reinitialised: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.matched)} tensors matched"]
        parts += [
            f"{what}: {_shortened(names)}"
            for what, names in (
                ("adapted", self.adapted),
                ("newly initialised", self.reinitialised),
                ("unexpected, not used", self.unexpected),
            )
            if names
        ]
        return "; ".join([*parts, "none missing"])


def fill(
    model: nn.Module, layout: Layout, image_shape: tuple[int, int, int], tensors: Mapping[str, Any], *, seed: int = 0
) -> tuple[dict[str, PyTree], Report]:
    """The variables of `model` for images [H,W,C], filled from tensors under the reference's names.

    Position embeddings are resized to the grid of this image size, the stem is adapted to its channels, and a head
    whose width differs or which the file lacks keeps the model's own initialisation (from `seed`).

    Raises:
      UserError: if anything else is missing or of another shape, naming it.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    rest = dict(under_our_names(layout, as_numpy(tensors)))
    flat: dict[str, Any] = {}
    found: dict[str, list[str]] = {"matched": [], "adapted": [], "reinitialised": []}
    missing, misfits, new = [], [], []
    variables = _unstacked(_flatten(shapes))
    grid = _grid(layout, variables, image_shape)
    for path, leaf in variables.items():
        name = tensor_name(path)
        tensor = rest.pop(name, None)
        value, adapted = (None, False) if tensor is None else _fit(path, tensor, leaf.shape, layout, grid)
        if value is not None:
            flat[path] = value
            found["adapted" if adapted else "matched"].append(name)
        elif _module(path) in layout.heads:
            new.append(path)
            found["reinitialised"].append(name)
        elif tensor is None:
            missing.append(name)
        else:
            misfits.append(f"{name} {list(tensor.shape)}, not {list(to_torch(path, np.empty(leaf.shape)).shape)}")
    if missing or misfits or not found["matched"]:
        raise UserError(_refusal(missing, misfits, list(rest)))
    flat |= _initial(model, image, new, seed)
    names = {what: tuple(which) for what, which in found.items()}
    report = Report(names["matched"], names["adapted"], names["reinitialised"], tuple(sorted(rest)))
    return _unflatten(_stacked(flat, _flatten(shapes))), report


def state_dict(variables: Mapping[str, PyTree]) -> Tensors:
    """Our variables as tensors under the reference's names and in its layouts, float32, contiguous."""
    flat = _unstacked(_flatten(dict(variables)))
    return {tensor_name(path): np.ascontiguousarray(to_torch(path, np.asarray(v))) for path, v in flat.items()}


def tensor_name(path: str) -> str:
    """The reference's name of a variable: "params/layer1.0/conv1/kernel" -> "layer1.0.conv1.weight"."""
    *modules, leaf = path.split("/")[1:]
    return ".".join([*modules, _LEAVES.get(leaf, leaf)])


def to_torch(path: str, array: np.ndarray) -> np.ndarray:
    """An array of ours in torch's layout: outputs first."""
    if not path.endswith("/kernel"):
        # The fused biases [3,H,D/H] of attention are one vector there.
        return array.reshape(-1) if path.endswith("/bias") else array
    if array.ndim == 4 and _module(path).split(".")[-1] not in SPLITS:
        return array.transpose(3, 2, 0, 1)
    inputs = math.prod(array.shape[: _contracted(path, array.ndim)])
    return array.reshape(inputs, -1).T


def from_torch(path: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A tensor in torch's layout as the array of this shape; None if it does not fit.

    A matrix and a convolution whose inputs are as many are taken for each other: [F,C] and [F,C,1,1], or the first
    dense layer after a 7x7 map, [F,C*7*7] and [F,C,7,7].
    """
    if path.endswith("/kernel"):
        wanted = to_torch(path, np.empty(shape, np.bool_)).shape
        if tensor.ndim < 2 or tensor.shape[0] != wanted[0] or tensor.size != math.prod(wanted):
            return None
        if tensor.ndim == len(wanted) and tensor.shape != wanted:  # its axes are in another order
            return None
        tensor = tensor.reshape(wanted)
        if len(wanted) == 4:
            return tensor.transpose(2, 3, 1, 0)
        return tensor.T.reshape(shape)
    if tensor.shape != shape and not (tensor.ndim == 1 and tensor.size == math.prod(shape)):
        return None
    return tensor.reshape(shape)


def under_our_names(layout: Layout, tensors: Tensors) -> Tensors:
    """The tensors under the reference's names, whichever of the architecture's namings they came in.

    Queries, keys and values that are kept apart (`X.q.weight`, `X.k.weight`, `X.v.weight`) become one `X.qkv.weight`.
    """
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in layout.aliases:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    for name in [n for n in renamed if re.search(r"\.q\.(weight|bias)$", n)]:
        parts = [re.sub(r"\.q\.(\w+)$", rf".{part}.\1", name) for part in "qkv"]
        if all(part in renamed for part in parts):
            fused = np.concatenate([renamed.pop(part) for part in parts])
            renamed[re.sub(r"\.q\.(\w+)$", r".qkv.\1", name)] = fused
    return renamed


def resize_positions(positions: np.ndarray, grid: tuple[int, int], prefix: int) -> np.ndarray | None:
    """Position embeddings [1,N,D] for a grid (height, width) of patches behind `prefix` tokens: [1,prefix+h*w,D].

    Bicubic and antialiased, as timm and big_vision; the old grid is taken for a square. If there are more tokens in
    front of it than `prefix`, the first stay (the class token is the first); None if there are fewer.
    """
    side = math.isqrt(positions.shape[1])
    old_prefix = positions.shape[1] - side * side
    if old_prefix < prefix:
        return None
    tokens, patches = positions[:, :prefix], positions[:, old_prefix:]
    patches = patches.reshape(1, side, side, -1)
    if grid != (side, side):
        shape = (1, *grid, patches.shape[-1])
        patches = np.asarray(jax.image.resize(patches, shape, method="cubic", antialias=True))
    return np.concatenate([tokens, patches.reshape(1, grid[0] * grid[1], -1)], axis=1)


def adapt_stem(weight: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution's weight [F,C,k,k] for another number of channels: [F,channels,k,k].

    As timm: to 1 they are summed; else they are repeated in turn and scaled by old / new number. A grey image in all
    channels gives the same as before if the new number is 1 or a multiple of the old.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(axis=1, keepdims=True)
    repeated = np.tile(weight, (1, -(-channels // old), 1, 1))[:, :channels]
    return (repeated * (old / channels)).astype(weight.dtype)


def as_numpy(tensors: Mapping[str, Any]) -> Tensors:
    """numpy arrays, floating point ones float32, of whatever arrays these are (torch's too); counters left out."""
    arrays = {}
    for name, tensor in tensors.items():
        if name.endswith(_IGNORED):
            continue
        if hasattr(tensor, "detach"):  # torch: numpy knows no bfloat16
            tensor = tensor.detach().cpu()
            tensor = tensor.float() if tensor.is_floating_point() else tensor
        array = np.asarray(tensor)
        arrays[name] = array if array.dtype.kind in "iub" else array.astype(np.float32)
    return arrays


def _fit(
    path: str, tensor: np.ndarray, shape: tuple[int, ...], layout: Layout, grid: tuple[int, int]
) -> tuple[np.ndarray | None, bool]:
    """(the tensor as the array of this shape or None if it cannot be, whether it had to be adapted)."""
    if _module(path) == layout.stem and tensor.ndim == 4 and tensor.shape[1] != shape[2]:
        return from_torch(path, adapt_stem(tensor, shape[2]), shape), True
    if path == POSITIONS and tensor.ndim == 3 and tensor.shape != shape:
        if tensor.shape[-1] != shape[-1]:
            return None, True
        return resize_positions(tensor, grid, shape[1] - grid[0] * grid[1]), True
    return from_torch(path, tensor, shape), False


def _grid(layout: Layout, variables: Mapping[str, Any], image_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Patches down and across, where the stem cuts the image into patches; anything where there are no positions."""
    patch = variables[f"params/{layout.stem}/kernel"].shape[0]
    return image_shape[0] // patch, image_shape[1] // patch


def _module(path: str) -> str:
    """The reference's name of the module that a variable belongs to."""
    return ".".join(path.split("/")[1:-1])


def _contracted(path: str, ndim: int) -> int:
    """How many of a dense kernel's first axes are contracted: all but one for what merges heads, else one."""
    return 1 if _module(path).split(".")[-1] in SPLITS else ndim - 1


def _flatten(tree: PyTree) -> dict[str, Any]:
    flat: dict[str, Any] = traverse_util.flatten_dict(tree, sep="/")
    return flat


def _unflatten(flat: dict[str, Any]) -> dict[str, PyTree]:
    tree: dict[str, PyTree] = traverse_util.unflatten_dict(flat, sep="/")
    return tree


def _unstacked(flat: dict[str, Any]) -> dict[str, Any]:
    """Variables of scanned blocks [L, ...] as those of L blocks: "params/blocks/x" -> "params/blocks.0/x", ..."""
    out: dict[str, Any] = {}
    for path, leaf in flat.items():
        if not path.startswith("params/blocks/"):
            out[path] = leaf
            continue
        abstract = isinstance(leaf, jax.ShapeDtypeStruct)
        for i in range(leaf.shape[0]):
            one = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if abstract else leaf[i]
            out[path.replace("params/blocks/", f"params/blocks.{i}/")] = one
    return out


def _stacked(flat: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_unstacked` for the paths of `like`."""
    return {
        path: flat[path]
        if path in flat
        else np.stack([flat[path.replace("blocks/", f"blocks.{i}/", 1)] for i in range(leaf.shape[0])])
        for path, leaf in like.items()
    }


def _initial(model: nn.Module, image: jax.ShapeDtypeStruct, paths: Sequence[str], seed: int) -> dict[str, Any]:
    """The model's own initial values of some variables; XLA drops the computation of the others."""
    if not paths:
        return {}

    def init() -> dict[str, Any]:
        flat = _flatten(model.init(jax.random.key(seed), jnp.zeros(image.shape), train=False))
        return {path: flat[path] for path in paths}

    return {path: np.asarray(value) for path, value in jax.jit(init)().items()}


def _refusal(missing: Sequence[str], misfits: Sequence[str], unexpected: Sequence[str]) -> str:
    parts = [
        f"{what}: {_shortened(names)}"
        for what, names in (("missing", missing), ("of another shape", misfits), ("unexpected", unexpected))
        if names
    ]
    return f"The weights are not this model's ({'; '.join(parts)}); choose the model that they were made for."


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
