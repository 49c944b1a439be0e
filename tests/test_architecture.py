"""Layers and allowed imports, and limits on files and functions."""

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
PACKAGES = ("pets", "flows", "tasks", "pets_core")
LAYERS = (
    "pets",
    "flows",
    "tasks",
    "runtime maintenance",
    "training ratings inference hub",
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
"""Folders and top-level modules, outermost first. Each imports its own and lower layers only."""
KNOWN_UPWARD: set[tuple[str, str]] = set()
"""Imports of a higher layer that remain to be removed. None may be added."""
MAX_TOP_LEVEL_MODULES = 3
KINDS = {"class", "tags", "numbers", "points", "box"}
MAX_EXPRESSIONS_WITH_A_KIND = 10
MAX_FUNCTION_LINES = 50
MAX_FILE_LINES = 400
HEAVY = ("torch", "timm", "torchvision", "accelerate")
SOURCES = sorted(
    str(p.relative_to(ROOT)) for folder in PACKAGES for p in (ROOT / folder).rglob("*.py")
)
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer.split()}


def tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), path)


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(path): path for path in SOURCES}


def imports(module: ast.Module) -> Iterator[str]:
    """Yield every module imported in a source. `from a import b` yields a and a.b."""
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: use an absolute import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def layer_folder(name: str) -> str | None:
    """Return the entry of LAYERS that a module belongs to, None for other libraries."""
    first, _, rest = name.partition(".")
    if first == "pets_core":
        return rest.partition(".")[0] or None
    return first if first in PACKAGES else None


def import_edges(path: str) -> set[tuple[str, str]]:
    """Return (module, imported module) pairs of a source within this project."""
    name = module_name(path)
    named = {found for found in imports(tree(path)) if layer_folder(found)}
    used = {found if found in MODULES else found.rpartition(".")[0] for found in named}
    return {(name, found) for found in used - {name} if layer_folder(found)}


IMPORT_EDGES = sorted(edge for path in SOURCES for edge in import_edges(path))


def is_upward(name: str, imported: str) -> bool:
    return RANKS[layer_folder(imported)] < RANKS[layer_folder(name)]


def forbidden_imports(path: str, module: ast.Module) -> list[str]:
    """Return imports that are forbidden in the package of `path`, regardless of layers."""
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
    """Flows may import settings, records and errors of `pets_core`; tasks import the rest."""
    parts = name.split(".")
    return parts[0] != "pets_core" or len(parts) == 1 or {"config", "records", "errors"} & {*parts}


def cycle(edges: Iterable[tuple[str, str]]) -> list[str]:
    """Return an import cycle, empty if there is none."""
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
    """Return the number of lines of a function with its signature, without its docstring."""
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        lines -= node.body[0].end_lineno - node.body[0].lineno + 1
    return lines


def test_each_package_has_sources():
    assert {path.split("/")[0] for path in SOURCES} == set(PACKAGES)
    assert len(SOURCES) > 30


def test_each_folder_has_a_layer():
    assert {layer_folder(name) for name in MODULES} - {None} <= RANKS.keys()


def test_no_module_imports_a_higher_layer():
    """Entries of `KNOWN_UPWARD` that are no longer needed also fail: remove them."""
    assert {edge for edge in IMPORT_EDGES if is_upward(*edge)} == KNOWN_UPWARD


def test_modules_have_no_import_cycle():
    assert cycle(IMPORT_EDGES) == []


def test_folders_have_no_import_cycle():
    allowed = set(IMPORT_EDGES) - KNOWN_UPWARD
    edges = {(layer_folder(a), layer_folder(b)) for a, b in allowed}
    assert cycle((a, b) for a, b in edges if a != b) == []


def test_import_edges_and_cycles_are_detected():
    assert ("pets_core.data.versions", "pets_core.storage") in IMPORT_EDGES
    assert ("flows.pipeline", "tasks.stages") in IMPORT_EDGES
    assert len(IMPORT_EDGES) > 500
    assert is_upward("pets_core.models.card", "pets_core.training.loop")
    assert is_upward("pets_core.errors", "pets_core.storage")
    assert is_upward("tasks.stages", "flows.pipeline")
    assert not is_upward("pets_core.maintenance.retention", "pets_core.runtime.runs")
    assert not is_upward("pets_core.storage", "pets_core.errors")
    assert set(cycle([("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")])) == {"a", "b", "c"}


def test_few_modules_are_outside_a_folder():
    top_level = [path for path in SOURCES if path.startswith("pets_core/") and path.count("/") == 1]
    assert len(top_level) - 1 <= MAX_TOP_LEVEL_MODULES


def test_packages_have_no_forbidden_imports():
    found = {path: forbidden_imports(path, tree(path)) for path in SOURCES}
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
def test_forbidden_import_is_detected(path, source):
    assert forbidden_imports(path, ast.parse(source)) != []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("pets_core/a.py", "import prefectural, flowsheet, petshop"),
        ("tasks/a.py", "from pets_core.runtime.launcher import launch\nimport prefect"),
        ("flows/a.py", "from pets_core.config.pipeline import X\nfrom pets_core import errors"),
        ("flows/a.py", "from pets_core.tags.records import TagReport"),
        ("pets/cli/main.py", "from pets_core.inference.predict import open_model"),
    ],
)
def test_allowed_import_is_not_reported(path, source):
    assert forbidden_imports(path, ast.parse(source)) == []


def test_modules_define_one_all():
    """Each has one `__all__` with public names; ruff checks that they are defined."""
    for path in SOURCES:
        if path.endswith("__init__.py"):
            continue
        exported = [
            ast.literal_eval(node.value)
            for node in tree(path).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        assert len(exported) == 1, path
        assert not [name for name in exported[0] if name.startswith("_")], path


def test_files_are_short():
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def names_of_kinds(node: ast.AST) -> set[str]:
    """Return the kinds of targets named in a comparison or in the keys of a dictionary."""
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
    # A dictionary with only one of these keys does not distinguish kinds.
    return named if not isinstance(node, ast.Dict) or len(named) > 1 else set()


def test_few_expressions_outside_targets_name_a_kind():
    """Other code calls methods of the kind's object (`pets_core.targets`)."""
    expressions = [
        f"{path}:{node.lineno}"
        for path in SOURCES
        if not path.startswith("pets_core/targets/")
        for node in ast.walk(tree(path))
        if names_of_kinds(node)
    ]
    assert len(expressions) <= MAX_EXPRESSIONS_WITH_A_KIND, expressions


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
def test_expression_that_names_a_kind_is_detected(source, named):
    (node,) = [
        n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Compare, ast.Dict))
    ] or [ast.parse(source)]
    assert names_of_kinds(node) == named


def test_functions_are_short():
    lengths = {(path, node.name): num_lines(node) for path in SOURCES for node in functions(path)}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_docstring_does_not_count_as_function_lines():
    documented = ast.parse('def f():\n    """One.\n\n    Two.\n    """\n    return 1').body[0]
    plain = ast.parse("def f():\n" + "    x = 1\n" * 60).body[0]
    assert (num_lines(documented), num_lines(plain)) == (2, 61)


FLOWS = " ".join(name for name in MODULES if is_within(name, "flows"))
COMMANDS = " ".join(name for name in MODULES if is_within(name, "pets.cli"))
IN_FLOWS = {
    "pets.cli.main": {"torch", "prefect", "numpy", "pyarrow", "pydantic", "fsspec"},
    "pets.cli.push pets.cli.pull pets_core.hub.client": {"huggingface_hub", "timm", "torch",
                                                         "prefect"},
    "pets_core.targets.evaluate": {"torch", "prefect", "pandas"},
    "flows.pipeline": {"torch", "timm", "torchvision", "accelerate", "matplotlib", "scipy",
                       "sklearn", "cleanlab", "optuna"},
    "flows.evaluate": {"torch", "timm", "matplotlib", "scipy"},
    "flows.sweep": {"torch", "timm", "matplotlib", "scipy"},
    "tasks.stages": {"torch", "timm"},
    FLOWS: {"torch", "timm", "torchvision", "accelerate", "matplotlib", "mlflow"},
    COMMANDS: {"torch", "timm", "torchvision", "accelerate"},
}  # fmt: skip
"""Modules, and the packages that their import must not load, after the import of those above."""
IN_RANKS = {
    "pets_core.inference.predict": {"prefect", "flows", "tasks"},
    "pets_core.runtime.agent": {"prefect", "flows", "tasks"},
}
IMPORT_EACH = """
import importlib, json, sys
for modules in sys.argv[1:]:
    for module in modules.split():
        importlib.import_module(module)
    print(json.dumps([modules, [name.split(".")[0] for name in sys.modules]]))
"""


@pytest.mark.parametrize("imports", [IN_FLOWS, IN_RANKS], ids=["flows", "ranks"])
def test_imports_do_not_load_forbidden_packages(imports):
    command = [sys.executable, "-c", IMPORT_EACH, *imports]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {modules: {*names} for modules, names in map(json.loads, done.stdout.splitlines())}
    assert loaded.keys() == imports.keys()
    assert {module: loaded[module] & absent for module, absent in imports.items()} == {
        module: set() for module in imports
    }


def test_pyarrow_readers_are_called_only_for_files_opened_by_path():
    """For a Python file Arrow starts threads, which may abort the process at exit."""
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
def test_open_parquet_starts_no_threads():
    done = subprocess.run([sys.executable, "-c", READ], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
