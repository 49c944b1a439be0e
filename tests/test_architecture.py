"""The layers and what they may import, and the small rules that keep the code tidy."""

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("pets", "flows", "tasks", "pets_core")
LAYERS = (
    "pets",
    "flows",
    "tasks",
    "runtime maintenance",
    "training ratings inference",
    "targets",
    "registry",
    "evaluation embeddings",
    "models",
    "data",
    "plots",
    "config",
    "records",
    "storage",
    "errors progress",
)
"""Folders and loose modules, the outermost first: each imports its own layer and those below it."""
KNOWN_UPWARD: set[tuple[str, str]] = set()
"""Imports of a higher layer that are still to go; none may be added."""
MAX_LOOSE_MODULES = 3
KINDS = {"class", "tags", "numbers", "points", "box"}
MAX_PLACES_THAT_NAME_A_KIND = 10
MAX_FUNCTION_LINES = 50
MAX_FILE_LINES = 400
HEAVY = ("torch", "timm", "torchvision", "accelerate")
SOURCES = sorted(str(p.relative_to(ROOT)) for room in ROOMS for p in (ROOT / room).rglob("*.py"))
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}


def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(path): path for path in SOURCES}


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


def room(name: str) -> str | None:
    """The folder of the table of layers in which a module is; None where it is not ours."""
    first, _, rest = name.partition(".")
    if first == "pets_core":
        return rest.partition(".")[0] or None
    return first if first in ROOMS else None


def arrows(path: str) -> set[tuple[str, str]]:
    """A source, and each of our modules that it imports."""
    name = module_name(path)
    named = {found for found in imports(tree(path)) if room(found)}
    used = {found if found in MODULES else found.rpartition(".")[0] for found in named}
    return {(name, found) for found in used - {name} if room(found)}


ARROWS = sorted(arrow for path in SOURCES for arrow in arrows(path))


def is_upward(name: str, imported: str) -> bool:
    return RANKS[room(imported)] < RANKS[room(name)]


def breaches(path: str, module: ast.Module) -> list[str]:
    """Imports that the room of `path` may not have, whatever its layer is."""
    found = list(imports(module))
    if path.startswith("pets_core/"):
        return [name for name in found if is_within(name, "prefect", "tasks", "flows", "pets")]
    if path.startswith("tasks/"):
        return [name for name in found if is_within(name, "flows", "pets")]
    heavy = [name for name in found if is_within(name, *HEAVY)]
    if path.startswith("pets/"):
        return heavy
    return heavy + [name for name in found if is_within(name, "pets") or not is_for_flows(name)]


def is_for_flows(name: str) -> bool:
    """Of `pets_core`, flows know settings, records and errors; all else is a task's."""
    parts = name.split(".")
    return parts[0] != "pets_core" or len(parts) == 1 or {"config", "records", "errors"} & {*parts}


def cycle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """A circle of imports; empty where there is none."""
    graph = defaultdict(set)
    for importer, imported in edges:
        graph[importer].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


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


def test_each_folder_has_a_layer():
    assert {room(name) for name in MODULES} - {None} <= RANKS.keys()


def test_no_module_imports_a_higher_layer():
    """An entry of `KNOWN_UPWARD` that is no longer needed fails, too: take it out."""
    assert {arrow for arrow in ARROWS if is_upward(*arrow)} == KNOWN_UPWARD


def test_no_files_import_each_other_in_a_circle():
    assert cycle(ARROWS) == []


def test_no_folders_import_each_other_in_a_circle():
    rooms = {(room(a), room(b)) for a, b in ARROWS if (a, b) not in KNOWN_UPWARD}
    assert cycle((a, b) for a, b in rooms if a != b) == []


def test_the_arrows_and_the_circles_are_seen():
    assert ("pets_core.data.versions", "pets_core.storage") in ARROWS
    assert ("flows.pipeline", "tasks.stages") in ARROWS
    assert len(ARROWS) > 500
    assert is_upward("pets_core.models.card", "pets_core.training.loop")
    assert is_upward("pets_core.errors", "pets_core.storage")
    assert is_upward("tasks.stages", "flows.pipeline")
    assert not is_upward("pets_core.maintenance.retention", "pets_core.runtime.runs")
    assert not is_upward("pets_core.storage", "pets_core.errors")
    assert set(cycle([("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")])) == {"a", "b", "c"}


def test_few_modules_lie_loose():
    loose = [path for path in SOURCES if path.startswith("pets_core/") and path.count("/") == 1]
    assert len(loose) - 1 <= MAX_LOOSE_MODULES


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
        ("pets_core/a.py", "from flows import pipeline"),
        ("tasks/a.py", "from pets.cli import main as cli"),
        ("tasks/a.py", "from flows import pipeline"),
        ("flows/a.py", "from pets.cli import main"),
        ("flows/a.py", "from pets_core.data.ingest.commit import ingest"),
        ("flows/a.py", "from pets_core import storage"),
        ("flows/a.py", "import pets_core.inference.predict"),
        ("flows/a.py", "import timm"),
        ("pets/cli/main.py", "import torch.nn"),
    ],
)
def test_a_breach_is_seen(path, source):
    assert breaches(path, ast.parse(source)) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pets_core/a.py", "import prefectural, flowsheet, petshop"),
        ("tasks/a.py", "from pets_core.runtime.launcher import launch\nimport prefect"),
        ("flows/a.py", "from pets_core.config.pipeline import X\nfrom pets_core import errors"),
        ("flows/a.py", "from pets_core.tags.records import TagReport"),
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


def test_files_are_short():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def names_of_kinds(node: ast.AST) -> set[str]:
    """The kinds of targets that a comparison, or the keys of a dictionary, name."""
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.Dict):
        parts = [key for key in node.keys if key is not None]
    elif isinstance(node, ast.MatchValue):
        parts = [node.value]
    else:
        return set()
    constants = [
        each for part in parts for each in ast.walk(part) if isinstance(each, ast.Constant)
    ]
    named = {each.value for each in constants if isinstance(each.value, str)} & KINDS
    # A dictionary with one of these keys is about something else.
    return named if not isinstance(node, ast.Dict) or len(named) > 1 else set()


def test_few_places_outside_targets_name_a_kind():
    """Everything else asks the object of the kind (`pets_core.targets`)."""
    places = [
        f"{path}:{node.lineno}"
        for path in SOURCES
        if not path.startswith("pets_core/targets/")
        for node in ast.walk(tree(path))
        if names_of_kinds(node)
    ]
    assert len(places) <= MAX_PLACES_THAT_NAME_A_KIND, places


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ('targets == "tags"', {"tags"}),
        ('targets not in ("points", "box")', {"points", "box"}),
        ('{"class": 1, "tags": 2}', {"class", "tags"}),
        ('{"numbers": 1, "other": 2}', set()),
        ("spec.is_labels", set()),
    ],
)
def test_a_place_that_names_a_kind_is_seen(source, named):
    (node,) = [
        n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Compare, ast.Dict))
    ] or [ast.parse(source)]
    assert names_of_kinds(node) == named


def test_functions_are_short():
    lengths = {(path, node.name): num_lines(node) for path in SOURCES for node in functions(path)}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_the_docstring_of_a_function_does_not_count():
    documented = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1').body[0]
    plain = ast.parse("def f():\n" + "    x = 1\n" * 60).body[0]
    assert (num_lines(documented), num_lines(plain)) == (2, 61)


FLOWS = " ".join(name for name in MODULES if is_within(name, "flows"))
COMMANDS = " ".join(name for name in MODULES if is_within(name, "pets.cli"))
IMPORTS = {
    "flows.pipeline": {"torch", "timm", "torchvision", "accelerate", "matplotlib", "scipy",
                       "sklearn", "cleanlab", "optuna"},
    FLOWS: {"torch", "timm", "torchvision", "accelerate", "matplotlib"},
    "flows.evaluate": {"torch", "timm", "matplotlib", "scipy"},
    "flows.sweep": {"torch", "timm", "matplotlib", "scipy"},
    "tasks.stages": {"torch", "timm"},
    "pets_core.runtime.agent": {"prefect", "flows", "tasks"},
    "pets_core.inference.predict": {"prefect", "flows", "tasks"},
    "pets_core.targets.evaluate": {"torch", "prefect", "pandas"},
    COMMANDS: {"torch", "timm", "torchvision", "accelerate"},
    "pets.cli.main": {"torch", "prefect", "numpy", "pyarrow", "pydantic", "fsspec"},
}  # fmt: skip
"""Modules, and what their import must not bring with it."""
# A fork of a process that has imported nothing yet is as good as a new process.
IMPORT_EACH = """
import importlib, json, os, sys
for modules in sys.argv[1:]:
    if os.fork() == 0:
        for module in modules.split():
            importlib.import_module(module)
        print(json.dumps([modules, [name.split(".")[0] for name in sys.modules]]), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def test_an_import_brings_no_more_than_it_may():
    command = [sys.executable, "-c", IMPORT_EACH, *IMPORTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {modules: {*names} for modules, names in map(json.loads, done.stdout.splitlines())}
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
