"""Ranks that train or apply a model of photos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from timm.layers.norm_act import convert_sync_batchnorm

from pets_core.config.automatic import resolve_automatic
from pets_core.config.pipeline import PipelineConfig
from pets_core.data.loading.batches import BatchSampler, RowLoader
from pets_core.data.loading.decoded import DecodedPhotos, open_decoded
from pets_core.data.loading.loader import PhotoLoader, fits_on_gpu
from pets_core.data.loading.transforms import Transform
from pets_core.errors import PetsError
from pets_core.models.card import ModelCard
from pets_core.models.classifier import HeadModel
from pets_core.models.grouped import GroupedModel
from pets_core.models.package import TrainedModel, create_model
from pets_core.records.base import Resize, Split
from pets_core.records.dataset import DatasetManifest
from pets_core.runtime.rank import Rank
from pets_core.runtime.request import WorkRequest
from pets_core.runtime.stage_table import STAGES
from pets_core.targets.objective import Objective
from pets_core.targets.registry import get_target
from pets_core.training.features import FeatureKey, Features, checksum, open_features
from pets_core.training.prepared import Loader, PhaseInputs
from pets_core.training.probe import LinearProbe, fit_linear_probe
from pets_core.training.sharding import is_sharding

__all__ = ["PhotoRank"]

_MAX_FEATURES_GIB = 1.0
"""Features of a split that may be cached; the neighbours hold up to three copies in memory."""


_MIN_FINDER_BATCH = 64
"""Photos per step of the LR finder on features; the loss of fewer is too noisy."""


class _NoProbeError(PetsError):
    """The linear probe of this data set cannot be fitted."""


class PhotoRank(Rank[WorkRequest, TrainedModel]):
    """Rank that trains or applies a model of photos.

    Builds the model and its loaders, opens decoded photos, and computes and caches features.
    """

    validation_setting = "source.valid_fraction"

    def __init__(self, request: WorkRequest, failures: Path | None = None) -> None:
        # Only training needs these values, and a training split.
        if request.manifest and STAGES[request.stage].trains:
            request = request.model_copy(
                update={"config": resolve_automatic(request.config, request.manifest)}
            )
        super().__init__(request, failures)
        self._photos: dict[tuple[Split, int, Resize], DecodedPhotos] = {}
        self._features: dict[FeatureKey, Features] = {}

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
        """Open the decoded photos of a split once; local rank 0 decodes them."""
        key = split, card.resize_to, card.resize
        if key not in self._photos:
            with self.accelerator.local_main_process_first():
                self._photos[key] = open_decoded(
                    self.manifest,
                    split,
                    card.resize_to,
                    resize=card.resize,
                    cache_dir=self.config.cache_dir,
                    limit_gib=self.config.launch.decode_cache_gib,
                    on_progress=self.report,
                )
        return self._photos[key]

    def train_loader(self, built: TrainedModel) -> PhotoLoader:
        """Return the shuffled, augmented training batches."""
        card, config = built.card, self.config
        photos = self.photos("train", card)
        return PhotoLoader(
            photos,
            card.augment(config.transform),
            self._train_sampler(photos.targets, config.train.batch_size),
            device=self.accelerator.device,
            on_device=config.launch.photos_on_gpu == "auto"
            and fits_on_gpu(photos, self.accelerator.device),
            mixing=config.transform,
            num_classes=len(card.vocabulary),
            targets=card.targets,
            on_batch=self.watchdog.beat,
        )

    def _train_sampler(self, targets: NDArray[Any], batch_size: int) -> BatchSampler:
        """Return the sampler of shuffled rows, with equally frequent classes if that is set."""
        weights = None
        if self.config.train.sampling == "balanced":
            weights = 1 / np.bincount(targets)[targets]
        return self.sampler(len(targets), batch_size, self.config.train.seed, weights)

    def _eval_sampler(self, num_rows: int) -> BatchSampler:
        """Return the sampler of rows in stored order."""
        batch_size = self.config.evaluate.batch_size * self.accelerator.num_processes
        return self.sampler(num_rows, batch_size)

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
            self._eval_sampler(len(photos)),
            device=self.accelerator.device,
            targets=targets,
            on_batch=self.watchdog.beat,
        )

    def objective(self, built: TrainedModel) -> Objective:
        """Return the objective of the kind of target."""
        counts = self.manifest.splits["train"].class_counts
        target = get_target(built.card.targets)
        return target.objective(built.card, self.config.train, counts, self.accelerator.device)

    def finder_inputs(self, built: TrainedModel) -> tuple[GroupedModel, Loader]:
        """Return the head and cached features if training starts with the head.

        Otherwise, and if the head cannot be trained on features, the whole model is used.
        """
        train = self.config.train
        starts_with_head = train.num_frozen_epochs > 0 or train.starts_from_probe
        is_possible = starts_with_head and self._can_train_on_features(built)
        if not (self.config.lr_find.on_features and is_possible):
            return super().finder_inputs(built)
        batch_size = max(train.batch_size, _MIN_FINDER_BATCH)
        return HeadModel(built.model.head), self._feature_loader(built, batch_size)

    def frozen_inputs(self, built: TrainedModel) -> PhaseInputs | None:
        """Return cached features for the head, unless it cannot be trained on features."""
        config = self.config
        is_possible = config.train.num_frozen_epochs > 0 and self._can_train_on_features(built)
        if not (config.train.frozen_on_features and is_possible):
            return None
        valid = None
        if self.has_validation:
            features = self.features("valid", built)
            valid = self._row_loader(features, self._eval_sampler(len(features)))
        num_groups = len(built.model.layer_groups())
        return PhaseInputs(
            self._feature_loader(built, config.train.batch_size),
            valid,
            lambda model: HeadModel(model.head, num_groups),
        )

    def _can_train_on_features(self, built: TrainedModel) -> bool:
        """Return whether the head can be trained on cached features.

        It cannot if frozen epochs also train layers of the backbone, with Mixup or CutMix, with a
        sharded model, and if the features are too large to cache.
        """
        transform = self.config.transform
        return (
            self.config.train.freeze_to == -1
            and transform.mixup_alpha == transform.cutmix_alpha == 0
            and not is_sharding(self.accelerator)
            and self._can_cache(built)
        )

    def _feature_loader(self, built: TrainedModel, batch_size: int) -> RowLoader:
        """Return shuffled batches of the training photos' features."""
        features = self.features("train", built)
        targets = features.targets.numpy(force=True)
        return self._row_loader(features, self._train_sampler(targets, batch_size))

    def _row_loader(self, features: Features, sampler: BatchSampler) -> RowLoader:
        return RowLoader(features.read, sampler, self.accelerator.device, self.watchdog.beat)

    def features(self, split: Split, built: TrainedModel) -> Features:
        """Open the features of a split's plain photos once; shared by local ranks."""
        accelerator, card = self.accelerator, built.card
        # Files of earlier versions have no name for squish.
        other = () if card.resize == "squish" else (card.resize,)
        key = FeatureKey(
            dataset=self.manifest.fingerprint,
            split=split,
            view=repr((card.backbone, card.image_size, card.resize_to, *other)),
            precision=self.precision,
            device=accelerator.device.type,
            weights=checksum(built.model.body),
        )
        if key in self._features:
            return self._features[key]
        photos = self.photos(split, card)
        num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        batch_size = self.config.evaluate.batch_size * num_local
        rank = accelerator.local_process_index
        sampler = BatchSampler(len(photos), batch_size, None, rank, num_local)
        loader = PhotoLoader(
            photos,
            card.center_crop(),
            sampler,
            device=accelerator.device,
            on_batch=self.watchdog.beat,
        )
        self._features[key] = opened = open_features(
            built,
            photos,
            loader,
            key,
            accelerator=accelerator,
            cache_dir=self.config.cache_dir,
            watchdog=self.watchdog,
            on_progress=self.report,
        )
        return opened

    def fit_probe(self, built: TrainedModel) -> LinearProbe | None:
        """Fit the head on the features, if training starts from it or for comparison."""
        is_required = self.config.train.starts_from_probe
        has_baselines = self.request.is_evaluated and self.config.evaluate.baselines
        if not (is_required or has_baselines):
            return None
        try:
            return self._solve(built)
        except _NoProbeError as error:
            if is_required:
                raise PetsError(
                    f"train.recipe = {self.config.train.recipe}, train.head = "
                    f"{self.config.train.head}: {error}, or start from a new head (train.recipe = "
                    "fine_tune, train.head = new)"
                ) from error
            self.warn(
                f"There is no linear probe to compare with: {error}, or set evaluate.baselines = "
                "false"
            )
            return None

    def _solve(self, built: TrainedModel) -> LinearProbe:
        """Fit the head on rank 0 and return it on all ranks.

        Raises:
            _NoProbeError: There are too many features, or they are equal for all photos; on all
                ranks.
        """
        if not self._can_cache(built):
            raise _NoProbeError(
                f"the features of the largest split take {self._num_bytes(built) / 2**30:.2g} GiB, "
                f"more than {self._feature_gib:g} GiB: {self._feature_remedy}choose a backbone "
                "with fewer features"
            )
        train = self.features("train", built)
        valid = self.features("valid", built) if self.has_validation else None
        # An error is sent to the other ranks, which would wait for the head.
        solved: list[LinearProbe | str] = [""]
        if self.accelerator.is_main_process:
            try:
                solved = [fit_linear_probe(built.model.head, self.objective(built), train, valid)]
            except PetsError as error:
                solved = [str(error)]
        (result,) = broadcast_object_list(solved)
        if isinstance(result, str):
            raise _NoProbeError(result)
        assert isinstance(result, LinearProbe)
        return result

    def _can_cache(self, built: TrainedModel) -> bool:
        return self._num_bytes(built) <= self._feature_gib * 2**30

    def _num_bytes(self, built: TrainedModel) -> int:
        """Size of the features of the largest split."""
        rows = max(info.num_rows for info in self.manifest.splits.values())
        return 4 * rows * built.card.num_features

    @property
    def _feature_remedy(self) -> str:
        if self._feature_gib == _MAX_FEATURES_GIB:
            return ""
        return f"raise launch.decode_cache_gib (up to {_MAX_FEATURES_GIB:g} GiB counts), or "

    @property
    def _feature_gib(self) -> float:
        """Most features of a split to cache, GiB."""
        limit = self.config.launch.decode_cache_gib
        return _MAX_FEATURES_GIB if limit == "auto" else min(limit, _MAX_FEATURES_GIB)
