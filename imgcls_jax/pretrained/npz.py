"""The `.npz` files of Google's vision transformers and Big Transfer, under timm's names and in torch's layouts.

Two layouts. Vision transformers as in the original repository and AugReg (arXiv:2010.11929, arXiv:2106.10270:
`Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel`) and as in big_vision, which numbers modules
differently, may stack the blocks on a leading axis (`Transformer/encoderblock`) and may pool by attention
(`MAPHead_0`). ResNets of Big Transfer (arXiv:1912.11370: `resnet/block1/unit01/a/standardized_conv2d/kernel`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from imgcls_jax.pretrained.convert import Tensors

# Where a whole training state keeps the parameters of the image model; the first that is there is taken.
_ROOTS = ("opt/target/", "params/img/", "params/")
# Anchored (regular expression, timm's name) pairs, applied in order; what remains are the leaves.
_NAMES = tuple(
    (re.compile("^" + pattern), name)
    for pattern, name in (
        # Vision transformers.
        (r"embedding/", "patch_embed.proj/"),
        (r"cls$", "cls_token"),
        (r"(Transformer/posembed_input/)?pos_embedding$", "pos_embed"),
        (r"Transformer/encoder_norm/", "norm/"),
        (r"Transformer/encoderblock_(\d+)/", r"blocks.\1."),
        (r"pre_logits/", "pre_logits.fc/"),
        (r"MAPHead_0/probe$", "attn_pool.latent"),
        (r"MAPHead_0/LayerNorm_0/", "attn_pool.norm/"),
        (r"MAPHead_0/", "attn_pool."),
        (r"(blocks\.\d+)\.LayerNorm_0/", r"\1.norm1/"),
        (r"(blocks\.\d+)\.LayerNorm_[12]/", r"\1.norm2/"),
        (r"(.*\.)MlpBlock_\d/Dense_0/", r"\1mlp.fc1/"),
        (r"(.*\.)MlpBlock_\d/Dense_1/", r"\1mlp.fc2/"),
        (r"(blocks\.\d+\.)MultiHeadDotProductAttention_\d/", r"\1attn."),
        (r"(attn_pool\.)MultiHeadDotProductAttention_0/", r"\1"),
        (r"(.*attn(_pool)?\.)out/", r"\1proj/"),
        # Big Transfer.
        (r"resnet/root_block/standardized_conv2d/", "stem.conv/"),
        (r"resnet/group_norm/", "norm/"),
        (r"resnet/head/conv2d/", "head.fc/"),
    )
)
_UNIT = re.compile(r"^resnet/block(\d+)/unit(\d+)/([abc])/(proj/standardized_conv2d|standardized_conv2d|group_norm)/")
_PARTS = {"proj/standardized_conv2d": "downsample.conv", "standardized_conv2d": "conv", "group_norm": "norm"}
_LEAVES = {"kernel": "weight", "scale": "weight", "gamma": "weight", "beta": "bias"}
_QUERY_KEY_VALUE = re.compile(r"^(.*attn(?:_pool)?\.)(query|key|value)/(kernel|bias)$")


def read(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file by name; bfloat16, which numpy writes as two nameless bytes, is recognised.

    Raises ValueError if it is another kind of file, holds Python objects or is damaged.
    """
    with path.open("rb") as file:  # np.load itself leaves a damaged one open
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("one array, not an archive of them")
        arrays = dict(archive)
    return {k: v.view(ml_dtypes.bfloat16) if v.dtype.kind == "V" and v.itemsize == 2 else v for k, v in arrays.items()}


def to_torch(arrays: Mapping[str, np.ndarray]) -> Tensors:
    """The arrays of such a file as timm's tensors.

    A class token that has no position of its own (big_vision adds positions before it) gets one of zeros. The layer
    `pre_logits` of some ImageNet-21k files becomes `pre_logits.fc`, which no model of ours has.
    """
    root = next((root for root in _ROOTS if any(name.startswith(root) for name in arrays)), "")
    arrays = _unstacked({k.removeprefix(root): v for k, v in arrays.items() if k.startswith(root)})
    tensors = {}
    for name, array in arrays.items():
        path = _translated(name)
        if _QUERY_KEY_VALUE.match(path):
            continue
        module, _, leaf = path.rpartition("/")
        tensors[".".join(filter(None, [module, _LEAVES.get(leaf, leaf)]))] = _in_torch_layout(path, array)
    tensors |= _fused(arrays)
    positions = tensors.get("pos_embed")
    if positions is not None and "cls_token" in tensors and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        tensors["pos_embed"] = np.pad(positions, ((0, 0), (1, 0), (0, 0)))
    return tensors


def _unstacked(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Blocks that are stacked on a leading axis as blocks of their own."""
    stacked = "Transformer/encoderblock/"
    flat = {k: v for k, v in arrays.items() if not k.startswith(stacked)}
    for name in arrays.keys() - flat.keys():
        for i, array in enumerate(arrays[name]):
            flat[f"Transformer/encoderblock_{i}/{name.removeprefix(stacked)}"] = array
    return flat


def _translated(name: str) -> str:
    """timm's name of the module, a slash, and the leaf as it was."""
    unit = _UNIT.match(name)
    if unit:
        stage, block, letter, part = unit.groups()
        number = "" if part.startswith("proj") else str("abc".index(letter) + 1)
        return f"stages.{int(stage) - 1}.blocks.{int(block) - 1}.{_PARTS[part]}{number}/{name[unit.end() :]}"
    for pattern, replacement in _NAMES:
        name = pattern.sub(replacement, name)
    return name


def _in_torch_layout(path: str, array: np.ndarray) -> np.ndarray:
    """Outputs first: [k,k,C,F] -> [F,C,k,k], [C,F] -> [F,C], and what merges heads, [H,D/H,F] -> [F,D]."""
    if path.endswith("/kernel"):
        return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.reshape(-1, array.shape[-1]).T
    return array


def _fused(arrays: Mapping[str, np.ndarray]) -> Tensors:
    """Queries, keys and values, kernels [D,H,D/H] and biases [H,D/H], in one as timm has them.

    Blocks have `qkv`; attention pooling, whose queries are of something else, `q` and `kv`. What lacks a part is left
    out.
    """
    found: dict[tuple[str, str], Tensors] = {}
    for name, array in arrays.items():
        match = _QUERY_KEY_VALUE.match(_translated(name))
        if match:
            before, part, leaf = match.groups()
            flat = array.reshape(len(array), -1).T if leaf == "kernel" else array.reshape(-1)
            found.setdefault((before, _LEAVES.get(leaf, leaf)), {})[part] = flat
    tensors = {}
    for (before, leaf), parts in found.items():
        if len(parts) < 3:
            continue
        if before == "attn_pool.":
            tensors[f"{before}q.{leaf}"] = parts.pop("query")
        fused = "qkv" if "query" in parts else "kv"
        tensors[f"{before}{fused}.{leaf}"] = np.concatenate([parts[k] for k in ("query", "key", "value") if k in parts])
    return tensors
