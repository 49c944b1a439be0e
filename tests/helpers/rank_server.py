"""A fork server whose jobs run ranks that do what their arguments say."""

import os
import signal
import time
from datetime import timedelta

from torch.distributed import TCPStore

from pets_core import supervisor
from pets_core.fork_server import serve

__all__: list[str] = []

supervisor.SHUTDOWN_SECONDS = 1.0


def say(*words: object) -> None:
    # One write, for the ranks share a pipe.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def rank(what: str) -> int:
    number = int(os.environ.get("RANK", "-1"))
    if what == "meet":
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        say(*(os.environ.get(name) for name in names))
        if number >= 0:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
            store.set(str(number), "here")
            store.wait([str(other) for other in range(int(os.environ["WORLD_SIZE"]))])
        return 0
    if what == "fail" and number == 1:
        return 3
    if what == "raise" and number == 1:
        raise ValueError("a rank failed")
    if what == "die" and number == 1:
        os.kill(os.getpid(), signal.SIGKILL)

    def heed(*_: object) -> None:
        say("rank", number, "is told to end")
        if what != "stubborn":
            os._exit(1)

    signal.signal(signal.SIGTERM, heed)
    say("rank", number, os.getpid())
    while True:
        time.sleep(60)


if __name__ == "__main__":
    serve(lambda arguments: supervisor.run_ranks(int(arguments[0]), lambda: rank(arguments[1])))
