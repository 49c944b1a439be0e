"""SIGTERM to one rank stops all ranks before the same step."""

import os
import signal

import pytest
from torch.distributed import HashStore

from pets_core.training.interruption import Interruption


def test_single_rank_stops_before_its_next_step() -> None:
    with Interruption() as stop_signal:
        assert stop_signal.should_continue(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_signal._agreed.wait(10)
        assert not stop_signal.should_continue(1)
        assert not stop_signal.should_continue(2)


@pytest.mark.parametrize("ahead", [0, 1])
def test_ranks_in_different_steps_stop_before_the_same_step(ahead: int) -> None:
    """The slower rank still takes the step whose gradients the other waits for."""
    store = HashStore()
    # Only the second handler receives the signal; the first rank reads it from the store.
    with Interruption(0, 2, store) as first, Interruption(1, 2, store) as second:
        ranks = [first, second]
        assert all(rank.should_continue(7) for rank in ranks)
        assert ranks[ahead].should_continue(8)
        os.kill(os.getpid(), signal.SIGTERM)
        assert all(rank._agreed.wait(10) for rank in ranks)
        assert ranks[1 - ahead].should_continue(8)
        assert not any(rank.should_continue(9) for rank in ranks)


def test_signal_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
