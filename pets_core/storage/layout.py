"""Names of the folders and files in the store that several modules use.

docs/file-formats.md describes them.
"""

from __future__ import annotations

__all__ = [
    "BASELINES",
    "CHECKPOINTS",
    "CONTRACTS",
    "DATASETS",
    "DUPLICATES",
    "EVALUATION",
    "GALLERY",
    "JOURNAL",
    "MANIFEST",
    "MODELS",
    "PHOTOS",
    "PLANS",
    "PROBE",
    "QUARANTINE",
    "RATINGS",
    "REPORT",
    "REPORT_RECORD",
    "RUNS",
    "SETTINGS",
    "SHARDS",
    "SWEEP",
    "TRAINING_PLOT",
]

# Folders of the store.
DATASETS = "datasets"
RATINGS = "ratings"
MODELS = "models"
RUNS = "runs"

# Folders of a data set, shared by its versions.
CONTRACTS = "contracts"
JOURNAL = "journal"
PLANS = "plans"
SHARDS = "shards"

# Files of a version.
DUPLICATES = "duplicates.parquet"
MANIFEST = "manifest.json"
"""Written last; its presence commits the version."""
PHOTOS = "photos.parquet"
QUARANTINE = "quarantine.parquet"

# Folders and files of a run.
CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation"
PROBE = "probe"
SETTINGS = "config.yaml"
SWEEP = "sweep.json"
TRAINING_PLOT = "training.png"

# Folders and files of an evaluation.
BASELINES = "baselines"
GALLERY = "gallery.parquet"
REPORT = "report.html"
REPORT_RECORD = "report.json"
