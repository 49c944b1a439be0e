"""Jobs of a fork server without torch: they perform the action in their arguments."""

import os
import signal
import sys
import time
from pathlib import Path

__all__: list[str] = []


def work(arguments) -> int:
    match arguments:
        case ["print", *words]:
            print(*words)
            return 0
        case ["ids"]:
            print(os.getppid(), os.getpid(), Path.cwd())
            return 0
        case ["exit", code]:
            return int(code)
        case ["fail"]:
            raise ValueError("the job failed")
        case ["die"]:
            os.kill(os.getpid(), signal.SIGKILL)
        case ["wait"]:
            print("waiting", flush=True)
            time.sleep(600)
    return 1


# The server imports this module.
if "ECHO_IDLE_SECONDS" in os.environ:
    sys.modules["__main__"]._IDLE_SECONDS = float(os.environ["ECHO_IDLE_SECONDS"])
if "ECHO_PLATFORM" in os.environ:
    sys.platform = os.environ["ECHO_PLATFORM"]
time.sleep(float(os.environ.get("ECHO_IMPORT_SECONDS", "0")))
if "ECHO_BROKEN" in os.environ:
    sys.exit("no module named torch")
