"""Settings of augmentation, learning-rate finder, training and sweep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pets_core.config.base import Settings
from pets_core.config.rates import RateSlice
from pets_core.records.base import Resize, SuggestionName

__all__ = [
    "LRFindConfig",
    "SweepConfig",
    "TrainConfig",
    "TransformConfig",
]


class TransformConfig(Settings):
    """Augmentation of training photos, combined into one interpolation per batch."""

    resize: Resize = "squish"
    """How a photo becomes a square, for training and prediction. squish: stretched. crop: its
    largest centred square. pad: the whole photo, with grey borders."""
    flip: bool = True
    """Mirror photos left-right with probability 0.5."""
    max_rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Maximum rotation in either direction, degrees."""
    max_zoom: Annotated[float, Field(ge=1, le=4)] = 1.1
    """Maximum zoom factor, in addition to the crop."""
    max_warp: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Maximum perspective warp in either direction: the near side is enlarged, and the far side
    reduced, by about this share."""
    max_lighting: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Maximum change of brightness and contrast, share."""
    probability: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Probability of each of rotation, zoom, warp and lighting."""
    policy: Literal["none", "trivial", "rand"] = "none"
    """Augmentation policy in place of rotation, zoom, warp and lighting. trivial: TrivialAugment,
    one colour or geometric operation of any strength per photo (Müller and Hutter 2021). rand:
    RandAugment, two operations of moderate strength (Cubuk and others 2019)."""
    min_crop_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Below 1: random resized crops with at least this share of the photo's area (before the zoom)
    and an aspect ratio from 3/4 to 4/3 (Szegedy and others 2015)."""
    erase_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of random erasing: a rectangle of 2% to a third of the photo is filled with the
    mean colour (Zhong and others 2017)."""
    mixup_alpha: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Above 0: Mixup. Photos are blended in pairs; the share is drawn from Beta(alpha, alpha)
    (Zhang and others 2017)."""
    cutmix_alpha: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Above 0: CutMix. A rectangle of another photo is pasted in; its share of the area is drawn
    from Beta(alpha, alpha) (Yun and others 2019). If mixup_alpha is also set, each batch uses one
    of the two."""


class LRFindConfig(Settings):
    """The learning-rate range test (Smith 2015)."""

    start_lr: Annotated[float, Field(gt=0)] = 1e-6
    """Learning rate of the first step."""
    end_lr: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the last step."""
    num_steps: Annotated[int, Field(ge=10, le=10_000)] = 100
    """Optimizer steps of the range test."""
    on_features: bool = True
    """true: train only the head, on cached features of the photos without augmentation: much
    faster, with a similar curve. false: train the whole model on augmented photos. The whole model
    is also used if training does not start with the head, with Mixup or CutMix, with a sharded
    model, and if the features take more than 1 GiB."""
    suggestion: Literal["auto", SuggestionName] = "auto"
    """Suggestion that training uses if train.base_lr is empty. auto: limited, which is
    steepest, but at least valley and at most the geometric mean of minimum and valley; minimum for
    numbers and coordinates, whose loss falls late."""

    @model_validator(mode="after")
    def _check_range(self) -> LRFindConfig:
        if self.end_lr <= self.start_lr:
            raise ValueError(f"end_lr ({self.end_lr:g}) must be above start_lr ({self.start_lr:g})")
        return self


class TrainConfig(Settings):
    """Settings of training: fine-tuning, or only a linear probe."""

    recipe: Literal["fine_tune", "probe"] = "fine_tune"
    """fine_tune: train the head, then also other layers. probe: only fit the head, which takes
    seconds after one pass over the photos."""
    head: Literal["auto", "new", "probe"] = "auto"
    """Head at the start of training. new: weights of zero. probe: a linear probe,
    fitted by L-BFGS on features of the pretrained backbone (LP-FT, Kumar and others 2022). auto:
    probe if that is the recipe, or with fewer than 500 training photos and pretrained weights,
    unless freeze_epochs, freeze_to, sampling or epochs = 0 is set; otherwise new."""
    freeze_epochs: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Epochs that train only the head, with a frozen backbone. Empty: 1, or 0 if the head is a
    probe."""
    epochs: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Epochs after unfreezing. Empty: 2; for numbers and coordinates as many as 2,000 photos take,
    from 2 to 50; 0 if the recipe is probe."""
    base_lr: Annotated[float, Field(gt=0, lt=10)] | None = None
    """Peak learning rate of the head in the frozen epochs. Empty: the LR finder's suggestion."""
    lr_max: RateSlice | None = None
    """Peak learning rates after unfreezing, such as "slice(1e-6, 1e-4)". Empty: slice(top /
    lr_mult, top), where top is base_lr / unfrozen_lr_div."""
    unfrozen_lr_div: Annotated[float, Field(ge=1)] | None = None
    """Divisor of base_lr for the head's peak learning rate after unfreezing, if lr_max is empty.
    Empty: 5; 50 from a probe, which larger rates make worse; 2 (as fastai) for numbers and
    coordinates."""
    lr_mult: Annotated[float, Field(ge=1)] | None = None
    """Ratio of the head's learning rate to that of the first layer group, if lr_max is empty.
    Empty: 100, but 10 for numbers and coordinates, for which the backbone must change more."""
    optimizer: str = "adamw"
    """Optimizer. adamw, or any other name of timm.optim, such as sgd, lamb, lion or nadamw, with
    timm's settings. The learning rate that suits it may differ: use the LR finder."""
    freeze_to: int = -1
    """First layer group that is trained in the frozen epochs. Negative: counted from the end; -1 is
    only the head."""
    frozen_on_features: bool = True
    """true: the frozen epochs train the head on cached features of the photos without augmentation:
    much faster, and as good (docs/recipe.md). false: on augmented photos. Augmented photos are also
    used if freeze_to is not -1, with Mixup or CutMix, with a sharded model, and if the features
    take more than 1 GiB (or launch.decode_cache_gib, if that is less)."""
    unfreeze_to: int | None = None
    """First layer group that is trained after unfreezing; the groups before it stay frozen, which
    is faster. 0: the whole model. Empty: the first group whose peak learning rate is at least a
    tenth of the head's; 0 if lr_max is set or model.weights is none."""
    batch_size: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Photos per optimizer step, over all processes. 0: 64, or about a tenth of a smaller data set,
    at least 8."""
    micro_batch_size: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Maximum photos per forward pass of a process; gradients are accumulated up to batch_size. 0:
    as many as fit, found by halving when GPU memory runs out."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Maximum norm for gradient clipping. Empty: no clipping."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Label smoothing: share of the target that is spread over all classes (Szegedy and others
    2015)."""
    number_loss: Literal["mse", "l1", "smooth_l1"] = "mse"
    """Loss of numbers and coordinates. Errors of numbers are in standard deviations, those of
    coordinates in halves of the photo's side. smooth_l1: squared below 1 and linear above (Girshick
    2015)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: the fewer photos a class has, the larger its weight in the loss. none: all classes
    have the same weight."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """Photos of an epoch. uniform: each once. balanced: as many, drawn with replacement so that all
    classes are equally frequent."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Above 0: the model is an exponential moving average of the weights with this decay per step;
    the decay is smaller in the first steps."""
    early_stopping_epochs: Annotated[int, Field(ge=0, le=10_000)] = 0
    """End a phase, and cut its one-cycle schedule short, after this many consecutive epochs without
    a lower validation loss. 0: no early stopping. Set train.keep = best to keep the best
    weights."""
    keep: Literal["last", "best"] = "last"
    """Weights of the model. last: those of the last epoch. best: those with the lowest validation
    loss. The other weights are stored next to the model."""
    checkpoint_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    """Optimizer steps between checkpoints within an epoch, if the previous checkpoint is
    checkpoint_seconds old. A checkpoint is also written after every epoch."""
    checkpoint_seconds: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """Minimum time between two checkpoints within an epoch, seconds."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """Number of newest checkpoints to keep. Each also contains the best weights."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Weight decay, decoupled in AdamW; not applied to biases and normalisation layers."""
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the one-cycle schedule used for warm-up."""
    batch_norm: Literal["frozen", "train", "sync"] = "frozen"
    """Batch-norm statistics of the backbone. frozen: those of ImageNet. train: those of trained
    layers are updated from each rank's batches. sync: the same from the global batch, independent
    of the number of ranks (GPUs only). train and sync need two photos in each forward pass."""
    mixed_precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"], BeforeValidator(lambda v: "no" if v is False else v)
    ] = "auto"
    """Precision of training. auto: bf16 on GPUs since Ampere and CPUs with AMX, fp16 on GPUs since
    Volta if the model is not sharded, otherwise no. On CPUs, bf16 leaves depthwise convolutions
    in fp32 while their weights are trained."""
    compile: bool = False
    """Compile the model (torch.compile). Worthwhile if training takes much longer than a minute."""
    tf32: bool = True
    """Use TF32 for fp32 matrix products (GPUs since Ampere)."""
    log_with: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """Tracker that logs every step, in addition to history.parquet. Its package must be
    installed."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the head's weights, shuffling and augmentation."""

    @property
    def starts_from_probe(self) -> bool:
        """Whether training starts from a linear probe."""
        return self.head == "probe" or (self.head == "auto" and self.recipe == "probe")

    @property
    def num_frozen_epochs(self) -> int:
        """Number of epochs with a frozen backbone."""
        default = 0 if self.starts_from_probe else 1
        return default if self.freeze_epochs is None else self.freeze_epochs

    @property
    def num_unfrozen_epochs(self) -> int:
        """Number of epochs after unfreezing."""
        default = 0 if self.recipe == "probe" else 2
        return default if self.epochs is None else self.epochs

    @property
    def num_epochs(self) -> int:
        """Number of epochs."""
        return self.num_frozen_epochs + self.num_unfrozen_epochs

    @model_validator(mode="after")
    def _check_recipe(self) -> TrainConfig:
        if self.starts_from_probe and self.sampling != "uniform":
            raise ValueError(
                "sampling = balanced cannot be used with a probe, which is fitted on each photo "
                "once: set class_weights = balanced instead"
            )
        if self.recipe == "probe":
            conflicts = {
                f"head = {self.head}": self.head == "new",
                f"freeze_epochs = {self.freeze_epochs}": bool(self.freeze_epochs),
                f"epochs = {self.epochs}": bool(self.epochs),
            }
            if any(conflicts.values()):
                names = ", ".join(setting for setting, is_set in conflicts.items() if is_set)
                raise ValueError(
                    f"{names}: recipe = probe only fits the head, without epochs. Remove "
                    "the settings, or set recipe = fine_tune"
                )
        elif self.num_epochs == 0:
            raise ValueError(
                "there are no epochs: set freeze_epochs or epochs to 1 or more, or recipe = probe"
            )
        return self


class SweepConfig(Settings):
    """Search space and size of a sweep."""

    backbones: tuple[str, ...] = ()
    """Backbones to choose from. Empty: only model.backbone."""
    min_lr: Annotated[float, Field(gt=0, lt=10)] = 3e-4
    """Minimum peak learning rate of the head."""
    max_lr: Annotated[float, Field(gt=0, lt=10)] = 3e-2
    """Maximum peak learning rate of the head."""
    num_trials: Annotated[int, Field(ge=1, le=10_000)] = 12
    """Number of trials."""
    num_random: Annotated[int, Field(ge=1, le=10_000)] = 6
    """Random trials before the sampler uses the results of earlier trials."""
    num_seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Trainings per trial, with train.seed and the seeds after it. Trials are compared by the mean
    of their metric."""
    num_concurrent: Annotated[int, Field(ge=1, le=1000)] = 1
    """Trials at the same time, as flow runs of launch.deployment."""

    @model_validator(mode="after")
    def _check_range(self) -> SweepConfig:
        if self.max_lr <= self.min_lr:
            raise ValueError(f"max_lr ({self.max_lr:g}) must be above min_lr ({self.min_lr:g})")
        return self
