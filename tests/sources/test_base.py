"""What sources share."""

import numpy as np
import pytest

from y7edge.sources.base import RateLimit


@pytest.mark.parametrize("jitter_ms", [0, 8])
@pytest.mark.parametrize(
    ("rate", "limit", "expected"),
    [(30, 30, 30), (30, 60, 30), (30, 20, 20), (30, 7.5, 7.5), (30, 0.5, 0.5), (25, 24, 24)],
)
def test_a_limit_of_the_rate(rate, limit, expected, jitter_ms):
    jitter = np.random.default_rng(0).uniform(-jitter_ms, jitter_ms, 60 * rate)
    times = (np.arange(60 * rate) * 1e9 / rate + jitter * 1e6 + 5e17).astype(int).tolist()
    one = RateLimit(limit)
    passed = sum(map(one.passes, times))
    assert expected * 57 <= passed <= expected * 60 + 1


def test_times_that_are_set_back_or_jump():
    one = RateLimit(10)
    for start in (10**12, 0, 10**15, 10**14):
        assert [one.passes(start + n * 25_000_000) for n in range(8)] == [
            *(True, False, True, False, False, False, True, False)
        ]
