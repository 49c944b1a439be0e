"""Pictures as PNG bytes, small enough to travel inside a page or a Prefect artifact."""

from pets_core.plots.calibration import reliability_diagram
from pets_core.plots.confusion import confusion_matrix
from pets_core.plots.numbers import MAX_RESIDUALS, residuals
from pets_core.plots.ratings import embedding_map, rating_errors, weight_decays
from pets_core.plots.sweep import sweep
from pets_core.plots.tags import threshold_curve
from pets_core.plots.training import lr_curve, training_curves

__all__ = [
    "MAX_RESIDUALS",
    "confusion_matrix",
    "embedding_map",
    "lr_curve",
    "rating_errors",
    "reliability_diagram",
    "residuals",
    "sweep",
    "threshold_curve",
    "training_curves",
    "weight_decays",
]
