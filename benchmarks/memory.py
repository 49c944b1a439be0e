"""Photos per second of a training step with glibc's memory settings and with ours.

    python benchmarks/memory.py [--size 160] [--batch 64] [--steps 4]

Runs both one after the other, in separate processes, and prints the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from pets_core.runtime.launcher import worker_environment

__all__ = ["main"]

_MEASURE = """
import json, resource, sys, time
import torch
from pets_core.models.backbones import create_body
size, batch, steps = map(int, sys.argv[1:])
body = create_body("tf_efficientnet_lite0", "auto", size).eval()
body.to(memory_format=torch.channels_last)
photos = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
result = {}
for mode in ("frozen", "unfrozen"):
    body.requires_grad_(mode == "unfrozen")
    def step():
        features = body(photos)
        if mode == "unfrozen":
            features.sum().backward()
    step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    started = time.perf_counter()
    for _ in range(steps):
        step()
    result[mode] = batch * steps / (time.perf_counter() - started)
    result[mode + " faults"] = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / steps
print(json.dumps(result))
"""


def main() -> None:
    """Measure both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=160, help="side of the photos, pixels")
    parser.add_argument("--batch", type=int, default=64, help="photos per step")
    parser.add_argument("--steps", type=int, default=4, help="measured steps")
    options = parser.parse_args()
    arguments = [str(options.size), str(options.batch), str(options.steps)]
    ours = worker_environment()
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    rows = {name: _measure(env, arguments) for name, env in (("glibc", plain), ("ours", ours))}
    for mode in ("frozen", "unfrozen"):
        glibc, own = rows["glibc"][mode], rows["ours"][mode]
        faults = rows["glibc"][f"{mode} faults"], rows["ours"][f"{mode} faults"]
        print(
            f"{mode:9s} glibc {glibc:6.1f} photos/s ({faults[0]:8.0f} faults per step)   "
            f"ours {own:6.1f} photos/s ({faults[1]:8.0f})   ratio {own / glibc:.2f}"
        )


def _measure(environment: dict[str, str], arguments: list[str]) -> dict[str, float]:
    output = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    result: dict[str, float] = json.loads(output.stdout)
    return result


if __name__ == "__main__":
    main()
