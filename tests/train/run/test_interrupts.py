"""Signals wait for the end of a batch, unless repeated or in an immediate block."""

import signal

import pytest

from y7edge.train.run.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_is_raised_by_check(number):
    with Interrupts() as interrupts:
        signal.raise_signal(number)
        done = True  # what comes before the check is not cut off
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert done


def test_second_signal_raises_immediately():
    with Interrupts():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_immediate_block_is_interrupted():
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.immediate():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")


def test_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
