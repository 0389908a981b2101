import threading

import numpy as np
import pytest

from imgcls_jax.data.order import Order, generator, permutation


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_every_epoch_has_each_example_once(n):
    records = Order(n, seed=3).indices(np.arange(5 * n)).reshape(5, n)
    np.testing.assert_array_equal(np.sort(records, axis=1), np.tile(np.arange(n), (5, 1)))


def test_epochs_and_seeds_have_orders_of_their_own():
    epochs = [Order(1000, seed).indices(np.arange(3000)).reshape(3, 1000) for seed in (0, 1)]
    orders = {epoch.tobytes() for seed in epochs for epoch in seed}
    assert len(orders) == 6


@pytest.mark.parametrize("chunk", [1, 3, 64, 500])
def test_chunks_do_not_matter(chunk):
    order = Order(100, seed=0)
    whole = order.indices(np.arange(1000))
    parts = [order.indices(np.arange(i, min(i + chunk, 1000))) for i in range(0, 1000, chunk)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    scrambled = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(order.indices(scrambled), whole[scrambled])


def test_the_order_is_the_same_for_ever():
    # A checkpoint continues with the data of the version that wrote it only if this stays as it is.
    assert Order(10, seed=42).indices(np.arange(8, 14)).tolist() == [3, 6, 7, 1, 4, 9]


def test_positions_far_along_are_as_cheap_as_the_first():
    far = 2**60
    records = Order(1_281_167, seed=0).indices(np.arange(far, far + 1024))
    assert len(np.unique(records)) == 1024 and records.min() >= 0 and records.max() < 1_281_167


def test_threads_agree_across_epoch_ends():
    order = Order(5000, seed=1)
    expected = order.indices(np.arange(20_000))
    results: dict[int, np.ndarray] = {}

    def read(i: int) -> None:
        results[i] = np.concatenate([order.indices(np.arange(p, p + 100)) for p in range(0, 20_000, 100)])

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(results[i], expected)


def test_streams_numbers_and_seeds_do_not_share_random_numbers():
    cases = [(s, n, t) for s in (0, 1, -1) for n in (0, 1, 2**40) for t in (0, 1)]
    draws = {generator(s, n, t).integers(0, 2**63, 4).tobytes() for s, n, t in cases}
    assert len(draws) == len(cases)


def test_a_permutation_cannot_be_changed_by_who_reads_it():
    with pytest.raises(ValueError, match="read-only"):
        permutation(10, 0, 0)[0] = 1
