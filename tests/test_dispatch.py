"""Results are taken a batch late, every one once."""

import pytest

from imgcls_jax import dispatch


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_a_result_is_taken_when_the_next_has_been_asked_for(count):
    asked, seen = [], []

    def results():
        for i in range(count):
            asked.append(i)
            yield i

    for result in dispatch.one_late(results()):
        seen.append((result, len(asked)))
    assert seen == [(i, min(i + 2, count)) for i in range(count)]
