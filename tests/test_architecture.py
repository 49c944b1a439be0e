"""The arrows between the rooms, and the small rules that keep them tidy."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pets", "flows", "tasks", "pets_core")
MAX_FUNCTION_LINES = 50
FLOWS_MAY_IMPORT = {
    "pets_core.config",
    "pets_core.records",
    "pets_core.errors",
    "pets_core.numbers.records",
    "pets_core.ratings.config",
    "pets_core.ratings.records",
    "pets_core.tags.records",
}
COMMAND_LINE_MAY_IMPORT = {
    "pets_core.data.sources.sources",
    "pets_core.embeddings.similar",
    "pets_core.evaluation.predictions",
    "pets_core.runtime.launcher",
    "pets_core.models.card",
    "pets_core.inference.onnx",
    "pets_core.inference.predict",
    "pets_core.ratings.files",
    "pets_core.ratings.recommend",
    "pets_core.data.versions",
    "pets_core.runtime.multi_node",
    "pets_core.registry",
    "pets_core.maintenance.retention",
    "pets_core.runtime.runs",
    "pets_core.runtime.signals",
    "pets_core.storage",
}
SOURCES = sorted(str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def imports(module: ast.Module) -> Iterator[str]:
    """Every module imported anywhere in a source; `from a import b` is both a and a.b."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by the full name"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def breaches(path: str, module: ast.Module) -> list[str]:
    """Imports that the room of `path` may not have."""
    found = list(imports(module))
    if path.startswith("pets_core/"):
        return [name for name in found if is_within(name, "prefect", "tasks", "flows", "pets")]
    if path.startswith("tasks/"):
        return [name for name in found if is_within(name, "flows", "pets")]
    is_command_line = path.startswith("pets/")
    allowed = FLOWS_MAY_IMPORT | (COMMAND_LINE_MAY_IMPORT if is_command_line else set())
    return [
        name
        for name in found
        if is_within(name, "torch", "timm", "torchvision", "accelerate")
        or (is_within(name, "pets") and not is_command_line)
        or (is_within(name, "pets_core") and name != "pets_core" and not is_within(name, *allowed))
    ]


def functions(path: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def num_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, signature and all, less its docstring."""
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    return lines


def test_there_are_sources_in_each_room():
    assert {path.split("/")[0] for path in SOURCES} == set(ROOMS)
    assert len(SOURCES) > 30


def test_imports_follow_the_arrows():
    found = {path: breaches(path, tree(path)) for path in SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pets_core/a.py", "import prefect"),
        ("pets_core/a.py", "def f():\n    from prefect.context import x"),
        ("pets_core/a.py", "from tasks.stages import train_model"),
        ("pets_core/a.py", "import pets.cli.main as c"),
        ("tasks/a.py", "from pets.cli import main as cli"),
        ("flows/a.py", "from pets_core.data.ingest.commit import ingest"),
        ("flows/a.py", "from pets_core import storage"),
        ("flows/a.py", "import pets_core.inference.predict"),
        ("pets/cli/main.py", "from pets_core.runtime.rank import Rank"),
        ("pets/cli/main.py", "import torch.nn"),
    ],
)
def test_a_breach_is_seen(path, source):
    assert breaches(path, ast.parse(source)) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pets_core/a.py", "import prefectural, flowsheet"),
        ("tasks/a.py", "from pets_core.runtime.launcher import launch\nimport prefect"),
        ("flows/a.py", "from pets_core.config.pipeline import X\nfrom pets_core import errors"),
        ("pets/cli/main.py", "from pets_core.inference.predict import predict_photos"),
    ],
)
def test_what_is_allowed_is_no_breach(path, source):
    assert breaches(path, ast.parse(source)) == []


def test_modules_say_what_they_offer():
    """One `__all__`, of public names; ruff sees to it that they are defined."""
    for path in SOURCES:
        if path.endswith("__init__.py"):
            continue
        offered = [
            ast.literal_eval(node.value)
            for node in tree(path).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        assert len(offered) == 1, path
        assert not [name for name in offered[0] if name.startswith("_")], path


def test_functions_are_short():
    lengths = {(path, node.name): num_lines(node) for path in SOURCES for node in functions(path)}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_the_docstring_of_a_function_does_not_count():
    documented = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1').body[0]
    plain = ast.parse("def f():\n" + "    x = 1\n" * 60).body[0]
    assert (num_lines(documented), num_lines(plain)) == (2, 61)


IMPORTS = {
    "flows.pipeline": {"torch", "timm", "torchvision", "accelerate", "matplotlib", "scipy",
                       "sklearn", "cleanlab", "optuna"},
    "flows.evaluate": {"torch", "timm", "matplotlib", "scipy"},
    "flows.sweep": {"torch", "timm", "matplotlib", "scipy"},
    "tasks.stages": {"torch", "timm"},
    "pets_core.runtime.agent": {"prefect", "flows", "tasks"},
    "pets_core.inference.predict": {"prefect", "flows", "tasks"},
    "pets_core.evaluation.review": {"torch", "prefect"},
    "pets.cli.main": {"torch", "prefect", "numpy", "pyarrow", "pydantic", "fsspec"},
}  # fmt: skip
"""Modules, and what their import must not bring with it."""
# A fork of a process that has imported nothing yet is as good as a new process.
IMPORT_EACH = """
import importlib, os, sys
for module in sys.argv[1:]:
    if os.fork() == 0:
        importlib.import_module(module)
        print(module, *{name.split(".")[0] for name in sys.modules}, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_an_import_brings_no_more_than_it_may():
    command = [sys.executable, "-c", IMPORT_EACH, *IMPORTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {line.split()[0]: {*line.split()[1:]} for line in done.stdout.splitlines()}
    assert loaded.keys() == IMPORTS.keys()
    assert {module: loaded[module] & absent for module, absent in IMPORTS.items()} == {
        module: set() for module in IMPORTS
    }


def test_parquet_of_python_files_is_read_without_arrows_threads():
    """One of them may abort the process at its end; a file that is opened by path has none."""
    opening = re.compile(r"pq\.(ParquetFile\(|read_table\()")
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "pets_core").rglob("*.py")
        if opening.search(path.read_text())
    }
    by_path = {"data/sources/archives.py", "data/sources/table.py", "ratings/files.py"}
    assert found == {f"pets_core/{name}" for name in by_path}


READ = """
import io
import pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from pets_core.data.dataset import open_parquet

def num_threads():
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum(not name.startswith("jemalloc") for name in names)

data = io.BytesIO()
pq.write_table(pa.table({name: [1] * 9 for name in "abc"}), data)
before = num_threads()
open_parquet(data).read()
open_parquet(data).read_row_group(0)
list(open_parquet(data).iter_batches())
print(num_threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux names a process's threads")
def test_an_open_parquet_file_is_read_in_its_own_thread():
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
