"""Signals wait for the end of a batch, unless repeated or in an immediate block."""

import signal

import pytest

from y7edge.train.run.interrupts import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_waits_until_it_is_asked_for(number):
    with Interrupts() as interrupts:
        signal.raise_signal(number)
        done = True  # what comes before the check is not cut off
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert done


def test_second_signal_is_obeyed_at_once():
    with Interrupts():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_free_block_is_left_at_once():
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt), interrupts.immediate():
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
