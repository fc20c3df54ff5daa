"""SIGTERM ends what can be left at once, waits for what cannot, and is nobody's business outside."""

import os
import signal

import pytest

from utils.preemption import Preempted, Preemption


def test_sigterm_ends_a_script_at_once_until_it_is_deferred() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        with pytest.raises(Preempted, match="before training began"):
            os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested
        os.kill(os.getpid(), signal.SIGTERM)  # a second one finds the script on its way out
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_deferred_sigterm_is_a_request() -> None:
    with Preemption() as preemption:
        preemption.defer()
        assert not preemption.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.requested
