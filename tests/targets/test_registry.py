"""Lookup of kinds of targets by name."""

import sys
from types import ModuleType

import pytest

from pets_core.config.evaluate import GateConfig
from pets_core.config.source import SourceConfig
from pets_core.errors import PetsError
from pets_core.records.target_spec import BUILT_IN_SPECS, target_spec
from pets_core.targets.classes.target import Classes
from pets_core.targets.gate import check_gate
from pets_core.targets.registry import get_target


class Stars(Classes):
    """A custom kind, defined outside the package."""

    name = "stars:KIND"
    metric = "stars off"


@pytest.fixture
def stars(monkeypatch) -> ModuleType:
    """Install the module stars with the kind KIND."""
    module = ModuleType("stars")
    module.KIND = Stars()
    monkeypatch.setitem(sys.modules, "stars", module)
    return module


@pytest.mark.parametrize("name", BUILT_IN_SPECS)
def test_every_kind_is_found_by_its_name(name):
    target = get_target(name)
    assert target.name == name
    assert target.spec == target_spec(name)
    assert target.metric
    assert target.output_column
    assert get_target(name) is target


@pytest.mark.parametrize("find", [get_target, target_spec])
def test_unknown_kind_is_refused(find):
    with pytest.raises(PetsError, match=r"targets = tag: no such kind.*set class.*mean tags"):
        find("tag")
    with pytest.raises(PetsError, match=r"No module named 'no'.*PYTHONPATH"):
        find("no.such.module:STARS")
    with pytest.raises(
        PetsError, match=r"targets = numpy:array: the object there is not a kind of target\."
    ):
        find("numpy:array")


@pytest.mark.parametrize("find", [get_target, target_spec])
def test_standard_library_modules_are_not_imported(find, monkeypatch):
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)
    with pytest.raises(PetsError, match=r"targets = antigravity:x: is in Python's standard"):
        find("antigravity:x")
    assert "antigravity" not in sys.modules
    with pytest.raises(PetsError, match=r"no such kind of target"):
        find("os:system('x')")


def test_import_errors_of_a_custom_module_are_reported(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "faulty.py").write_text("raise SystemExit(3)")
    with pytest.raises(PetsError, match=r"targets = faulty:KIND: 3\. Install"):
        get_target("faulty:KIND")


def test_custom_kind_is_found_by_module_and_name(stars):
    assert get_target("stars:KIND") is stars.KIND
    assert target_spec("stars:KIND").is_label
    assert SourceConfig(targets="stars:KIND").targets == "stars:KIND"
    check_gate(GateConfig(max_value=0.1), get_target("stars:KIND"))


def test_kind_with_a_mismatched_name_is_refused(stars):
    stars.OTHER = stars.KIND
    with pytest.raises(PetsError, match=r"named 'stars:KIND'.*set its name to 'stars:OTHER'"):
        get_target("stars:OTHER")
    with pytest.raises(PetsError, match=r"named 'class'"):
        get_target("pets_core.targets.classes.target:CLASSES")


def test_unknown_kind_in_settings_lists_the_valid_kinds():
    with pytest.raises(ValueError, match=r"targets\n.*tag: no such kind of target; set class"):
        SourceConfig(targets="tag")
