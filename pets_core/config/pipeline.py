"""Every setting of the pipeline, defined once.

One frozen model a stage and `PipelineConfig` over them. Flow parameters, YAML files, environment
variables and command-line flags all fill this same model; nothing else reads settings.
"""

from __future__ import annotations

from pydantic import model_validator

from pets_core.config.base import LocalFolder, Settings
from pets_core.config.evaluate import BatchConfig, EmbedConfig, EvaluateConfig, GateConfig
from pets_core.config.launch import LaunchConfig, refuse_sharding
from pets_core.config.model import ModelConfig
from pets_core.config.source import IngestConfig, SourceConfig
from pets_core.config.train import LRFindConfig, SweepConfig, TrainConfig, TransformConfig
from pets_core.records.target_spec import target_spec

__all__ = [
    "PipelineConfig",
]


class PipelineConfig(Settings):
    """All settings of a run."""

    store: str = "pets-store"
    """Root of data sets and runs: a path or any fsspec URL (s3://bucket/prefix, gs://...)."""
    cache_dir: LocalFolder = "~/.cache/pets"
    """Local folder for downloads and decoded photos; safe to delete at any time."""
    source: SourceConfig = SourceConfig()
    ingest: IngestConfig = IngestConfig()
    model: ModelConfig = ModelConfig()
    transform: TransformConfig = TransformConfig()
    lr_find: LRFindConfig = LRFindConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    batch: BatchConfig = BatchConfig()
    embed: EmbedConfig = EmbedConfig()
    sweep: SweepConfig = SweepConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _what_is_learnt(self) -> PipelineConfig:
        targets, spec = self.source.targets, target_spec(self.source.targets)
        of_class, of_numbers = spec.is_label, spec.is_numbers
        transform, train = self.transform, self.train
        faults = {
            "source.label_fixes": self.source.label_fixes is not None and not of_class,
            "train.class_weights": train.class_weights != "none" and not of_class,
            f"train.label_smoothing = {train.label_smoothing:g}": (
                train.label_smoothing > 0 and of_numbers
            ),
            f"transform.mixup_alpha = {transform.mixup_alpha:g}": (
                transform.mixup_alpha > 0 and of_numbers
            ),
            f"transform.cutmix_alpha = {transform.cutmix_alpha:g}": (
                transform.cutmix_alpha > 0 and of_numbers
            ),
            f"source.tag_separator = {self.source.tag_separator!r}": (
                self.source.tag_separator is not None and not spec.is_labels
            ),
            f"evaluate.threshold = {self.evaluate.threshold}": (
                self.evaluate.threshold != "shared" and not spec.is_labels
            ),
            f"train.number_loss = {train.number_loss}": (
                train.number_loss != "mse" and not of_numbers
            ),
        }
        if any(faults.values()):
            named = ", ".join(setting for setting, found in faults.items() if found)
            raise ValueError(f"{named} has no meaning with source.targets = {targets}: leave out")
        return self

    @model_validator(mode="after")
    def _sharded_training(self) -> PipelineConfig:
        refuse_sharding(self.launch, self.train)
        return self
