"""Ranks that train or apply a model of photos."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm

from pets_core.config.pipeline import PipelineConfig
from pets_core.data.loading.decoded import DecodedPhotos, open_decoded
from pets_core.data.loading.loader import PhotoLoader, fits_on_gpu
from pets_core.data.loading.transforms import Transform
from pets_core.models.card import ModelCard
from pets_core.models.package import TrainedModel, create_model
from pets_core.records.base import Split
from pets_core.records.dataset import DatasetManifest
from pets_core.runtime.rank import Rank
from pets_core.runtime.request import WorkRequest
from pets_core.targets.objective import Objective
from pets_core.targets.registry import get_target
from pets_core.training.sharding import is_sharding

__all__ = ["PhotoRank"]


class PhotoRank(Rank[WorkRequest, TrainedModel]):
    """A rank with decoded, augmented photos and a model of them."""

    validation_setting = "source.valid_fraction"

    @property
    def config(self) -> PipelineConfig:
        """Settings of the run."""
        return self.request.config

    @property
    def manifest(self) -> DatasetManifest:
        """Data set of the request, which must have one."""
        assert self.request.manifest is not None
        return self.request.manifest

    @property
    def has_validation(self) -> bool:
        """Whether there are validation photos."""
        return "valid" in self.manifest.splits

    @property
    def suggestion(self) -> str:
        """Name of the LR finder's suggestion that training uses."""
        suggestion = self.config.lr_find.suggestion
        if suggestion != "auto":
            return suggestion
        return get_target(self.manifest.targets).suggestion

    def resume_key(self) -> dict[str, Any]:
        """Return data set, model and augmentation."""
        key: dict[str, Any] = {"data set": self.manifest.fingerprint}
        for group in ("model", "transform"):
            settings = getattr(self.config, group).model_dump(mode="json")
            key |= {f"{group}.{name}": value for name, value in settings.items()}
        if self.manifest.numbers:
            key["train.number_loss"] = self.config.train.number_loss
            key["source.y_range"] = self.config.source.y_range
        return key

    def model(self) -> TrainedModel:
        """Build the model; local rank 0 goes first, so that weights are downloaded once."""
        with self.accelerator.local_main_process_first():
            built = create_model(
                self.config,
                self.manifest.vocabulary,
                self.manifest.fingerprint,
                targets=self.manifest.targets,
                numbers=self.manifest.numbers,
            )
        if self.config.train.batch_norm == "sync":
            built.model.body = convert_sync_batchnorm(built.model.body)  # type: ignore[no-untyped-call]
        self.move_to_device(built)
        return built

    def move_to_device(self, built: TrainedModel) -> None:
        """Move a model to the device, in the channels-last format, which speeds up convolutions."""
        # FSDP accepts contiguous weights only.
        sharding = is_sharding(self.accelerator)
        layout = torch.contiguous_format if sharding else torch.channels_last
        built.model.to(self.accelerator.device, memory_format=layout)  # type: ignore[call-overload]

    def photos(self, split: Split, card: ModelCard) -> DecodedPhotos:
        """Open the decoded photos of a split; local rank 0 decodes them."""
        with self.accelerator.local_main_process_first():
            return open_decoded(
                self.manifest,
                split,
                card.resize_to,
                cache_dir=self.config.cache_dir,
                limit_gib=self.config.launch.decode_cache_gib,
                on_progress=self.report,
            )

    def train_loader(self, built: TrainedModel) -> PhotoLoader:
        """Return the shuffled, augmented training batches."""
        card, config = built.card, self.config
        photos = self.photos("train", card)
        return PhotoLoader(
            photos,
            card.augment(config.transform),
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            on_device=config.launch.photos_on_gpu == "auto"
            and fits_on_gpu(photos, self.accelerator.device),
            mixing=config.transform,
            num_classes=len(card.vocabulary),
            targets=card.targets,
            on_batch=self.watchdog.beat,
        )

    def valid_loader(self, built: TrainedModel) -> PhotoLoader | None:
        """Return the center-cropped validation batches, or None if there are none."""
        if not self.has_validation:
            return None
        photos = self.photos("valid", built.card)
        return self.eval_loader(photos, built.card.center_crop(), built.card.targets)

    def eval_loader(
        self, photos: DecodedPhotos, transform: Transform, targets: str = "class"
    ) -> PhotoLoader:
        """Return the batches of a split in stored order."""
        return PhotoLoader(
            photos,
            transform,
            batch_size=self.config.evaluate.batch_size * self.accelerator.num_processes,
            seed=None,
            device=self.accelerator.device,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            targets=targets,
            on_batch=self.watchdog.beat,
        )

    def objective(self, built: TrainedModel) -> Objective:
        """Return the objective of the kind of target."""
        counts = self.manifest.splits["train"].class_counts
        target = get_target(built.card.targets)
        return target.objective(built.card, self.config.train, counts, self.accelerator.device)
