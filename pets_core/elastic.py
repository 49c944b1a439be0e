"""The launcher of worker ranks: torch elastic, made to die with its parent.

`python -m pets_core.elastic REQUEST.json PARENT_PID` starts the ranks that a request asks for.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

__all__ = ["die_with_parent", "main"]

_PR_SET_PDEATHSIG = 1


def die_with_parent(with_signal: signal.Signals) -> None:
    """Ask Linux to send this process a signal when its parent ends; elsewhere do nothing.

    torch starts each rank in a session of its own, so that killing a process group misses them.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, with_signal)


def main() -> None:
    """Start the ranks and wait for them; the exit code is theirs."""
    die_with_parent(signal.SIGTERM)
    if os.getppid() != int(sys.argv[2]):
        sys.exit("the process that started this launcher has ended")
    # torch is imported here, and not above, because importing it takes longer than the parent
    # may live: the request to be told comes first.
    import torch
    from torch.distributed.run import main as torchrun

    from pets_core.launch import WorkRequest

    path = Path(sys.argv[1])
    request = WorkRequest.model_validate_json(path.read_text(encoding="utf-8"))
    if request.stage == "check":
        # One short look needs no ranks.
        from pets_core import worker

        worker.main()
        return
    config = request.config.launch
    wanted = config.num_processes
    count = max(torch.cuda.device_count(), 1) if wanted == "auto" else wanted
    threads = max((os.cpu_count() or 1) // count, 1)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    torchrun(["--standalone", f"--nproc-per-node={count}", "-m", "pets_core.worker", str(path)])


if __name__ == "__main__":
    main()
