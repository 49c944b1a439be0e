"""Imports with the garbage collector paused."""

import gc
import sys
from collections.abc import Iterator

import pytest

from pets_core.runtime.importing import import_object


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    yield
    gc.enable()


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """Name of a module that records whether the collector runs during its import."""
    (tmp_path / "recorder.py").write_text("import gc\nis_collecting = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "recorder", raising=False)
    return "recorder"


def test_collector_pauses_during_the_import_only(module) -> None:
    assert import_object(f"{module}:is_collecting") is False
    assert gc.isenabled()


def test_imported_objects_are_not_collected_again(module) -> None:
    before = gc.get_freeze_count()
    import_object(f"{module}:is_collecting")
    assert gc.get_freeze_count() > before


def test_collector_continues_after_a_failed_import() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_object("no_such_module:function")
    assert gc.isenabled()


def test_disabled_collector_stays_disabled(module) -> None:
    gc.disable()
    import_object(f"{module}:is_collecting")
    assert not gc.isenabled()
