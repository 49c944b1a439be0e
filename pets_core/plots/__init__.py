"""Plots as PNG bytes, small enough for an HTML page or a Prefect artifact.

Each module, and matplotlib, is imported on first access to one of its functions.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pets_core.plots.calibration import reliability_diagram
    from pets_core.plots.confusion import confusion_matrix
    from pets_core.plots.ratings import embedding_map, rating_errors, weight_decays
    from pets_core.plots.regression import MAX_RESIDUALS, residuals
    from pets_core.plots.runs import compared_curves
    from pets_core.plots.sweep import sweep_trials
    from pets_core.plots.tags import threshold_curve
    from pets_core.plots.training import lr_curve, ridge_curve, training_curves

__all__ = [
    "MAX_RESIDUALS",
    "compared_curves",
    "confusion_matrix",
    "embedding_map",
    "lr_curve",
    "rating_errors",
    "reliability_diagram",
    "residuals",
    "ridge_curve",
    "sweep_trials",
    "threshold_curve",
    "training_curves",
    "weight_decays",
]

_MODULES = {
    "MAX_RESIDUALS": "regression",
    "compared_curves": "runs",
    "confusion_matrix": "confusion",
    "embedding_map": "ratings",
    "lr_curve": "training",
    "rating_errors": "ratings",
    "reliability_diagram": "calibration",
    "residuals": "regression",
    "ridge_curve": "training",
    "sweep_trials": "sweep",
    "threshold_curve": "tags",
    "training_curves": "training",
    "weight_decays": "ratings",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
