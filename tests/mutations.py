"""Mutation testing: apply each mutation and check that a test fails.

Run `python tests/mutations.py`. Each mutation of mutations.yaml is applied to a copy of the working
tree, in which the listed test files then run: first as bare pytest, then with the slow tests, then
with the nightly ones, until one fails. The files must pass in the unchanged copy first. Takes an
hour.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import yaml

__all__ = ["Mutation", "main", "read_mutations"]

ROOT = Path(__file__).parents[1]
TIERS = {"bare": [], "slow": ["--run-slow"], "nightly": ["--run-slow", "--run-nightly"]}
_MAX_SECONDS = 900
_IGNORED = shutil.ignore_patterns(".git", ".venv", ".*_cache", "*.egg-info", "pets-store")


class Mutation(NamedTuple):
    """A change of one file: `find`, which must occur exactly once, is replaced by `replace`."""

    file: str
    find: str
    replace: str
    tests: list[str]


def read_mutations() -> list[Mutation]:
    """Return the mutations of mutations.yaml."""
    return [Mutation(**entry) for entry in yaml.safe_load((ROOT / "tests/mutations.yaml").open())]


def find_tier(tree: Path, tests: list[str], tiers: list[str], *, must_pass: bool = False) -> str:
    """Return the first tier in which a test fails, "none" if all pass."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    present = [test for test in tests if (tree / test).exists()]
    for tier in tiers:
        process = subprocess.Popen(
            [*command, *TIERS[tier], *present], cwd=tree, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=None if must_pass else _MAX_SECONDS)
        except subprocess.TimeoutExpired:
            # A hanging test also detects the mutation.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return tier
        if process.returncode > 1 or (process.returncode and must_pass):
            sys.exit(f"{present}: pytest ended with {process.returncode}:\n{output}")
        if process.returncode:
            return tier
    return "none"


def main() -> None:
    """Print a line per mutation and the number of detected mutations per tier."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", type=Path, default=ROOT, help="another version of the project")
    parser.add_argument("--tier", default="nightly", choices=TIERS, help="last tier to try")
    parser.add_argument("numbers", nargs="*", type=int, help="of the mutations (default: all)")
    arguments = parser.parse_args()
    tiers = list(TIERS)[: list(TIERS).index(arguments.tier) + 1]
    mutations = list(enumerate(read_mutations(), 1))
    if arguments.numbers:
        mutations = [mutations[number - 1] for number in arguments.numbers]
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(arguments.tree, tree, ignore=_IGNORED)
        # A test reads the ignored files from git.
        subprocess.run(["git", "init", "--quiet", tree], check=True)
        tests = sorted({test for _, mutation in mutations for test in mutation.tests})
        find_tier(tree, tests, ["bare"], must_pass=True)
        for number, mutation in mutations:
            path = tree / mutation.file
            text = path.read_text() if path.exists() else ""
            start = time.monotonic()
            has_tests = any((tree / test).exists() for test in mutation.tests)
            if text.count(mutation.find) != 1 or not has_tests:
                tier = "missing"
            else:
                path.write_text(text.replace(mutation.find, mutation.replace))
                tier = find_tier(tree, mutation.tests, tiers)
                path.write_text(text)
            found[tier] = found.get(tier, 0) + 1
            seconds = time.monotonic() - start
            change = mutation.replace.strip().splitlines()[0]
            print(f"{number:3} {tier:9} {seconds:4.0f} s  {mutation.file}: {change}", flush=True)
    print(found)


if __name__ == "__main__":
    main()
