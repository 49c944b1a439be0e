"""Kinds of targets by name."""

import pytest

from pets_core.config.evaluate import GateConfig
from pets_core.errors import PetsError
from pets_core.registry.gate import check_gate
from pets_core.targets import registry
from pets_core.targets.classes.target import CLASSES
from pets_core.targets.registry import get_target, register_target, target_names


@pytest.fixture(autouse=True)
def kinds(monkeypatch) -> None:
    """Forget the kinds that a test registers."""
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))


@pytest.mark.parametrize("name", target_names())
def test_every_kind_is_found_by_its_own_name(name):
    target = get_target(name)
    assert target.name == name
    assert target.metric
    assert target.output_column
    assert get_target(name) is target


def test_an_unknown_kind_is_refused():
    with pytest.raises(PetsError, match=r"targets = tag: .*known are class.*Did you mean tags"):
        get_target("tag")


def test_a_new_kind_is_imported_on_first_use():
    register_target("stars", "no.such.module:STARS")
    assert "stars" in target_names()
    with pytest.raises(ModuleNotFoundError, match="no"):
        get_target("stars")


def test_a_new_kind_needs_no_change_of_the_gate():
    register_target("breed", "pets_core.targets.classes.target:CLASSES")
    assert get_target("breed") is CLASSES
    check_gate(GateConfig(max_error_rate=0.1), get_target("breed"))


def test_two_kinds_of_one_name_are_refused():
    register_target("stars", "one.module:STARS")
    register_target("stars", "one.module:STARS")
    words = r"targets = stars is registered twice, at one.module:STARS and at other.module:STARS"
    with pytest.raises(PetsError, match=words):
        register_target("stars", "other.module:STARS")
    with pytest.raises(PetsError, match=r"targets = class is registered twice"):
        register_target("class", "other.module:STARS")
    assert get_target("class") is CLASSES
