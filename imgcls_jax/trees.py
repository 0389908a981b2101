"""Parameter paths, and rules over them: the first that matches wins, and every leaf must be covered."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from imgcls_jax.types import ConfigError, PyTree

T = TypeVar("T")


def path_str(path: Sequence[Any]) -> str:
    """A jax key path as "blocks_0/attn/qkv/kernel"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def paths(tree: PyTree) -> list[str]:
    """The path of every leaf, in the order of `jax.tree.leaves`."""
    return [path_str(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_with_path(f: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`jax.tree.map` whose function gets the leaf's path as its first argument."""
    return jax.tree_util.tree_map_with_path(lambda path, *leaves: f(path_str(path), *leaves), tree, *rest)


def match(rules: Sequence[tuple[str, T]], path: str) -> T:
    """The value of the first rule whose regular expression is found in `path`.

    Raises:
      ConfigError: when no rule matches.
    """
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise ConfigError(f"No rule matches the parameter '{path}' (patterns: {[p for p, _ in rules]}); add ('.*', ...).")


def count(tree: PyTree) -> int:
    """The number of scalars in all leaves (arrays or shapes)."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
