"""The watchdog: silent while work goes on, once it does not it tells where that stands."""

import threading
import time

from pets_core.watchdog import Watchdog


def hang(go_on: threading.Event) -> None:
    go_on.wait(30)


def test_silence_is_told_once_with_every_threads_stack() -> None:
    told, go_on = [], threading.Event()
    other = threading.Thread(target=hang, args=(go_on,), name="other")
    other.start()
    with Watchdog(0.1, told.append):
        time.sleep(0.5)
    go_on.set()
    other.join()
    assert len(told) == 1
    assert told[0].startswith("thread MainThread:")
    assert "test_silence_is_told_once" in told[0]
    assert "thread other:" in told[0]
    assert "hang" in told[0]


def test_work_that_goes_on_or_is_over_is_left_alone() -> None:
    told: list[str] = []
    watchdog = Watchdog(0.5, told.append)
    with watchdog:
        for _ in range(20):
            time.sleep(0.05)
            watchdog.beat()
    time.sleep(1)
    with watchdog:
        pass
    assert told == []
