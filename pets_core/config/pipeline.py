"""All settings of the pipeline.

`PipelineConfig` holds one frozen model per stage. Flow parameters, YAML files, environment
variables and command-line flags all fill this model; nothing else reads settings.
"""

from __future__ import annotations

from pydantic import model_validator

from pets_core.config.base import LocalFolder, Settings
from pets_core.config.evaluate import BatchConfig, EmbedConfig, EvaluateConfig, GateConfig
from pets_core.config.launch import LaunchConfig, check_sharding
from pets_core.config.model import ModelConfig
from pets_core.config.registry import RegistryConfig
from pets_core.config.run import RunConfig
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
    run: RunConfig = RunConfig()
    source: SourceConfig = SourceConfig()
    ingest: IngestConfig = IngestConfig()
    model: ModelConfig = ModelConfig()
    transform: TransformConfig = TransformConfig()
    lr_find: LRFindConfig = LRFindConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    registry: RegistryConfig = RegistryConfig()
    batch: BatchConfig = BatchConfig()
    embed: EmbedConfig = EmbedConfig()
    sweep: SweepConfig = SweepConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _check_targets(self) -> PipelineConfig:
        targets, spec = self.source.targets, target_spec(self.source.targets)
        transform, train = self.transform, self.train
        conflicts = {
            "source.label_fixes": self.source.label_fixes is not None and not spec.is_label,
            "train.class_weights": train.class_weights != "none" and not spec.is_label,
            "train.sampling = balanced": train.sampling != "uniform" and not spec.is_label,
            f"train.label_smoothing = {train.label_smoothing:g}": (
                train.label_smoothing > 0 and spec.is_numbers
            ),
            f"transform.mixup_alpha = {transform.mixup_alpha:g}": (
                transform.mixup_alpha > 0 and spec.is_numbers
            ),
            f"transform.cutmix_alpha = {transform.cutmix_alpha:g}": (
                transform.cutmix_alpha > 0 and spec.is_numbers
            ),
            f"transform.resize = {transform.resize}": (
                transform.resize != "squish" and spec.geometry is not None
            ),
            f"source.tag_separator = {self.source.tag_separator!r}": (
                self.source.tag_separator is not None and not spec.is_labels
            ),
            f"evaluate.threshold = {self.evaluate.threshold}": (
                self.evaluate.threshold != "shared" and not spec.is_labels
            ),
            f"train.number_loss = {train.number_loss}": (
                train.number_loss != "mse" and not spec.is_numbers
            ),
        }
        if any(conflicts.values()):
            names = ", ".join(setting for setting, is_set in conflicts.items() if is_set)
            raise ValueError(f"{names} cannot be used with source.targets = {targets}: remove it")
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> PipelineConfig:
        check_sharding(self.launch, self.train)
        return self
