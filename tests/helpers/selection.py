"""Selection and order of test files by their imports and durations.

A pytest plugin. As a script, prints the test files for `make quick`: those that a change affects,
nearest first, up to 20 seconds.
"""

import ast
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import pytest

__all__ = [
    "DURATIONS",
    "affected_tests",
    "changed_files",
    "choose",
    "read_durations",
    "write_durations",
]

ROOT = Path(__file__).parents[2]
GPU_TESTS = ROOT / "tests/gpu"
"""Folder of all tests marked gpu."""
DURATIONS = ROOT / "tests/durations.json"
"""Seconds per test file, written by a full run with `--store-durations`."""
_UNKNOWN_SECONDS = 5.0
_BUDGET_SECONDS = 20.0
_MAX_PROCESSES = 4  # each takes 2 GB
_FOLDERS = ("pets", "flows", "tasks", "pets_core", "tests", "docs", "benchmarks")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store-durations",
        action="store_true",
        help=f"store the seconds of each file: {DURATIONS}",
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes for `-n auto`.

    None for single files, whose tests are faster than starting processes, and none for `-m gpu`,
    because each test may use all memory of the GPU.
    """
    if _is_for_gpus(config):
        return 0
    is_whole = not any("::" in argument or argument.endswith(".py") for argument in config.args)
    # One more than cores: some tests wait for servers and processes.
    return min((os.cpu_count() or 1) + 1, _MAX_PROCESSES) if is_whole else 0


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m gpu` import only the GPU tests, which do not need Prefect."""
    is_other = collection_path.name.startswith("test_") and GPU_TESTS not in collection_path.parents
    return True if is_other and _is_for_gpus(config) else None


def _is_for_gpus(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "gpu"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Each pytest-xdist process gets one file at a time: start with the longest.
    if hasattr(config, "workerinput"):
        durations = read_durations()
        items.sort(key=lambda item: -durations.get(_file(item.nodeid), 0.0))


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not config.getoption("--store-durations"):
        return
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[_file(report.nodeid)] += report.duration
    write_durations(seconds)


def read_durations() -> dict[str, float]:
    return json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}


def write_durations(seconds: Mapping[str, float]) -> None:
    kept = {path: round(found, 1) for path, found in sorted(seconds.items()) if found >= 0.05}
    DURATIONS.write_text(json.dumps(kept, indent=1) + "\n")


def changed_files(base: str) -> set[str]:
    """Return files changed since the merge base with `base`, including uncommitted ones."""

    def git(*words: str) -> list[str]:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"git {' '.join(words)}: {done.stderr.strip()}: set BASE=branch")
        return done.stdout.splitlines()

    (fork,) = git("merge-base", "HEAD", base)
    return {*git("diff", "--name-only", fork), *git("ls-files", "--others", "--exclude-standard")}


def affected_tests(changed: Collection[str]) -> dict[str, int]:
    """Return test files that import a changed file, or name a non-Python one, by distance.

    The distance is the number of imports between a test file and the changed file.
    """
    paths = [path for folder in _FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    names = {_module(path): str(path.relative_to(ROOT)) for path in paths}
    users = defaultdict(set)
    for file in changed:
        if not file.endswith(".py"):
            users[file] = {t for t in names.values() if Path(file).name in (ROOT / t).read_text()}
    for path in paths:
        importer = str(path.relative_to(ROOT))
        for name in _imports(path):
            if name in names:
                users[names[name]].add(importer)
        for conftest in (parent / "conftest.py" for parent in path.parents):
            if path.name.startswith("test_") and conftest.exists():
                users[str(conftest.relative_to(ROOT))].add(importer)
    distance, edge = dict.fromkeys(changed, 0), list(changed)
    while edge:
        nearest = edge.pop(0)
        for user in users[nearest] - distance.keys():
            distance[user] = distance[nearest] + 1
            edge.append(user)
    return {
        path: steps
        for path, steps in distance.items()
        if Path(path).name.startswith("test_") and (ROOT / path).exists()
    }


def choose(distances: Mapping[str, int], durations: Mapping[str, float], budget: float) -> set[str]:
    """Return changed test files and the nearest others within a budget in seconds."""
    chosen, total = set(), 0.0
    by_distance = sorted(
        (distance, durations.get(path, _UNKNOWN_SECONDS), path)
        for path, distance in distances.items()
    )
    for _, seconds, path in by_distance:
        if total + seconds <= budget or distances[path] == 0:
            chosen.add(path)
            total += seconds
    return chosen


def _module(path: Path) -> str:
    """Return the module name of a file; the folder of helpers is on the import path."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[:2] == ("tests", "helpers"):
        return parts[2]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


if __name__ == "__main__":
    found = affected_tests(changed_files(sys.argv[1]))
    chosen = choose(found, read_durations(), _BUDGET_SECONDS)
    print(*sorted(chosen))
    print(f"{len(chosen)} of the {len(found)} test files affected", file=sys.stderr)
