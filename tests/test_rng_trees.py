import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imgcls_jax import rng, trees
from imgcls_jax.types import ConfigError


def test_a_key_is_a_function_of_seed_stream_and_step():
    data = lambda *args: tuple(np.asarray(jax.random.key_data(rng.key(*args))).tolist())  # noqa: E731
    keys = {data(seed, stream, step) for seed in (0, 1) for stream in ("a", "b") for step in (0, 1, 2)}
    assert len(keys) == 12
    assert data(1, "a", 2) == tuple(np.asarray(jax.jit(lambda s: jax.random.key_data(rng.key(1, "a", s)))(2)).tolist())


def test_a_key_is_the_same_in_another_process():
    """Python salts hash() anew in every process; the stream's number must not come from it."""
    code = "import jax; from imgcls_jax import rng; print(jax.random.key_data(rng.key(3, 'dropout', 5)).tolist())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(jax.random.key_data(rng.key(3, "dropout", 5)).tolist())


def test_paths_and_match():
    tree = {"a": {"kernel": jnp.zeros((2, 3))}, "b": (jnp.zeros(4), {"bias": jnp.zeros(1)})}
    assert trees.paths(tree) == ["a/kernel", "b/0", "b/1/bias"]
    assert trees.count(tree) == 11
    rules = (("kernel$", 1), ("b/", 2))
    assert [trees.match(rules, path) for path in trees.paths(tree)] == [1, 2, 2]
    with pytest.raises(ConfigError, match="No rule matches the parameter 'c'"):
        trees.match(rules, "c")
