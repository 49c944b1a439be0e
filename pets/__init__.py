"""Fine-tune image models with Prefect flows: the Python interface.

    import pets

    run = pets.fine_tune("path/to/photos", train={"epochs": 3})
    run.metrics, run.most_confused()
    pets.load("photos@champion").predict("path/to/new/*.jpg")

Each name is imported on first access, so `import pets` loads neither torch nor Prefect.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pets import datasets
    from pets.model import Model, load
    from pets.run import LRSearch, Run, find_lr, fine_tune

__all__ = ["LRSearch", "Model", "Run", "datasets", "find_lr", "fine_tune", "load"]

_MODULES = {
    "LRSearch": "run",
    "Model": "model",
    "Run": "run",
    "find_lr": "run",
    "fine_tune": "run",
    "load": "model",
}


def __getattr__(name: str) -> object:
    if name == "datasets":
        return import_module("pets.datasets")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
