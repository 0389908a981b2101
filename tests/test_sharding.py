import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from imgcls_jax import sharding
from imgcls_jax.types import ConfigError


def test_mesh_takes_the_devices_that_are_left():
    mesh = sharding.make_mesh(data=-1, fsdp=2, model=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "model": 2}


def test_mesh_that_does_not_fit_says_what_would():
    with pytest.raises(ConfigError, match=r"fsdp=3 .* there are 8"):
        sharding.make_mesh(data=-1, fsdp=3, model=1)
    with pytest.raises(ConfigError, match="must be positive"):
        sharding.make_mesh(data=-1, fsdp=0, model=1)


def test_batch_size_must_divide_and_the_error_names_one_that_does():
    mesh = sharding.make_mesh(data=-1, fsdp=2, model=1)
    sharding.check_batch(mesh, "batch_size", 16)
    with pytest.raises(ConfigError, match=r"batch_size=20 does not divide over 8 devices; set it to 16 or 24"):
        sharding.check_batch(mesh, "batch_size", 20)


def test_put_batch_gives_back_the_rows():
    mesh = sharding.make_mesh(data=-1, fsdp=2, model=1)
    rows = sharding.local_rows(mesh, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    batch = sharding.put_batch(mesh, 16, {"image": np.arange(32).reshape(16, 2)})
    np.testing.assert_array_equal(batch["image"], np.arange(32).reshape(16, 2))
    assert batch["image"].sharding.spec == P(("data", "fsdp"))


def test_fsdp_splits_the_largest_axis_that_divides_and_leaves_small_leaves_whole():
    mesh = sharding.make_mesh(data=-1, fsdp=4, model=1)
    params = {
        "a": jnp.zeros((3, 3, 64, 128)),
        "b": jnp.zeros((128,)),
        "c": jnp.zeros((401, 3)),
        "d": jnp.zeros((512, 9)),
    }
    specs = jax.tree.map(lambda s: s.spec, sharding.params_shardings(params, ((".*", "fsdp"),), mesh))
    assert specs == {"a": P(None, None, None, "fsdp"), "b": P(), "c": P(), "d": P("fsdp", None)}


def test_rules_first_match_wins_and_stacked_leaves_keep_their_layer_axis():
    mesh = sharding.make_mesh(data=-1, fsdp=1, model=2)
    rules = ((r"fc1/kernel", (None, "model")), (r".*", "replicate"))
    params = {"fc1": {"kernel": jnp.zeros((4, 8))}, "scan": {"fc1": {"kernel": jnp.zeros((3, 4, 8))}}, "x": jnp.ones(2)}
    specs = jax.tree.map(lambda s: s.spec, sharding.params_shardings(params, rules, mesh))
    assert specs["fc1"]["kernel"] == P(None, "model")
    assert specs["scan"]["fc1"]["kernel"] == P(None, None, "model")
    assert specs["x"] == P()


def test_a_leaf_without_a_rule_and_an_axis_that_does_not_divide_are_errors():
    mesh = sharding.make_mesh(data=-1, fsdp=1, model=8)
    with pytest.raises(ConfigError, match="No rule matches the parameter 'head/kernel'"):
        sharding.params_shardings({"head": {"kernel": jnp.zeros((4, 4))}}, ((r"body", "fsdp"),), mesh)
    with pytest.raises(ConfigError, match=r"sharding.model=8 does not divide 'head/kernel'"):
        sharding.params_shardings({"head": {"kernel": jnp.zeros((4, 4))}}, ((r".*", (None, "model")),), mesh)


def test_copies_of_parameters_are_sharded_alike_and_the_rest_is_replicated():
    mesh = sharding.make_mesh(data=-1, fsdp=4, model=1)
    params = {"fc": {"kernel": jnp.zeros((64, 64))}}
    shardings = sharding.params_shardings(params, ((".*", "fsdp"),), mesh)
    tree = ({"count": jnp.zeros(())}, {"mu": params, "factored": {"fc": {"kernel": jnp.zeros((64,))}}})
    got = sharding.like_params(tree, params, shardings, mesh)
    assert got[1]["mu"]["fc"]["kernel"] == shardings["fc"]["kernel"]
    assert got[0]["count"].spec == P() and got[1]["factored"]["fc"]["kernel"].spec == P()
