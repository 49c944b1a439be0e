"""Settings of augmentation, of the learning-rate finder, of training and of a sweep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pets_core.config.base import Settings
from pets_core.config.rates import RateSlice

__all__ = [
    "LRFindConfig",
    "SweepConfig",
    "TrainConfig",
    "TransformConfig",
]


class TransformConfig(Settings):
    """Augmentation of training photos, composed into one interpolation on the batch."""

    flip: bool = True
    """Mirror left-right, every other photo."""
    max_rotate_degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    """Largest rotation either way, degrees."""
    max_zoom: Annotated[float, Field(ge=1, le=4)] = 1.1
    """Largest magnification beyond the crop, times."""
    max_warp: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Largest tilt of the photo's plane either way: the near side is magnified, and the far side
    made smaller, by about this share."""
    max_lighting: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Largest change of brightness and contrast, share."""
    probability: Annotated[float, Field(ge=0, le=1)] = 0.75
    """How often each of rotation, zoom, warp and lighting is applied."""
    min_crop_area: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Below 1: random resized crops, of at least this share of the photo's area before the zoom and
    an aspect ratio from 3/4 to 4/3 (Szegedy and others 2015)."""
    erase_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often a rectangle of 2% to a third of the photo is blanked with the mean colour (Zhong
    and others 2017)."""
    mixup_alpha: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Above 0: photos are blended in pairs, by a share from Beta(alpha, alpha) (Zhang and others
    2017)."""
    cutmix_alpha: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Above 0: photos get a rectangle of another's, of a share from Beta(alpha, alpha) (Yun and
    others 2019). With mixup_alpha too, each batch takes one of both."""


class LRFindConfig(Settings):
    """The learning-rate range test (Smith 2015)."""

    start_lr: Annotated[float, Field(gt=0)] = 1e-6
    """Rate of the first step."""
    end_lr: Annotated[float, Field(gt=0)] = 1.0
    """Rate of the last step."""
    num_steps: Annotated[int, Field(ge=10, le=10_000)] = 100
    """Optimizer steps of the sweep."""
    suggestion: Literal["auto", "minimum", "steepest", "valley", "slide"] = "auto"
    """Which suggestion training takes when train.base_lr is not set. auto: steepest; where numbers
    or places are learnt valley, for their loss falls late and little, and noise before it is
    steeper."""

    @model_validator(mode="after")
    def _range(self) -> LRFindConfig:
        if self.end_lr <= self.start_lr:
            raise ValueError(f"end_lr ({self.end_lr:g}) must be above start_lr ({self.start_lr:g})")
        return self


class TrainConfig(Settings):
    """The recipe: frozen epochs for the new head, then one-cycle over the whole model."""

    freeze_epochs: Annotated[int, Field(ge=0, le=10_000)] = 1
    """Epochs that train the new head only, the backbone frozen."""
    epochs: Annotated[int, Field(ge=0, le=10_000)] = 2
    """Epochs after unfreezing."""
    base_lr: Annotated[float, Field(gt=0, lt=10)] | None = None
    """Peak rate of the head in the frozen epochs; empty: the LR finder's suggestion."""
    lr_max: RateSlice | None = None
    """Peak rates after unfreezing, as "slice(1e-6, 1e-4)"; empty: slice(top / lr_mult, top), where
    top is base_lr / unfrozen_lr_div."""
    unfrozen_lr_div: Annotated[float, Field(ge=1)] = 5.0
    """How many times smaller the head's peak rate is after unfreezing, when lr_max is empty
    (fastai: 2)."""
    lr_mult: Annotated[float, Field(ge=1)] = 100.0
    """How many times smaller the first layer group's rate is than the head's, when lr_max is
    empty."""
    freeze_to: int = -1
    """First layer group that learns in the frozen epochs; counts from the end when negative, so
    that -1 is the head alone."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Photos in one optimizer step, over all processes."""
    micro_batch_size: Annotated[int, Field(ge=0, le=65_536)] = 0
    """Most photos in one forward pass of a process; gradients are accumulated to batch_size. 0: as
    many as fit, found by halving where a GPU's memory runs out."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Gradients are scaled down to this norm; empty: they are left alone."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread over all classes (Szegedy and others 2015)."""
    number_loss: Literal["mse", "l1", "smooth_l1"] = "mse"
    """What is minimised where numbers or places are learnt, each in its standard deviations, places
    in halves of the photo's sides. smooth_l1: squared below 1 and linear above (Girshick 2015)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class counts the more in the loss the fewer photos it has."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Above 0: the model is an exponential moving average of the weights, with this decay a step,
    less at first."""
    early_stopping_epochs: Annotated[int, Field(ge=0, le=10_000)] = 0
    """End a phase when so many epochs on end did not better the validation loss, its one cycle cut
    short; 0: never. With train.keep = best the better weights are kept."""
    keep: Literal["last", "best"] = "last"
    """Which weights become the model: the last, or those of least validation loss. The others are
    stored beside it."""
    checkpoint_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    """A checkpoint is written after every epoch, and within one every so many optimizer steps, if
    the one before is checkpoint_seconds old."""
    checkpoint_seconds: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """Least time between two checkpoints within an epoch, seconds."""
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = 2
    """How many of the newest checkpoints are kept; each holds the best weights too."""
    weight_decay: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Decoupled weight decay; biases and normalisation layers take none."""
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of a one-cycle schedule spent warming up."""
    batch_norm: Literal["frozen", "train", "sync"] = "frozen"
    """frozen: the backbone's batch-norm statistics stay those of ImageNet; train: they follow each
    rank's batches; sync: they follow the global batch, whatever the number of ranks (GPUs only).
    train and sync need two photos in each forward pass."""
    mixed_precision: Annotated[
        Literal["auto", "no", "bf16", "fp16"], BeforeValidator(lambda v: "no" if v is False else v)
    ] = "auto"
    """auto: bf16 where the device multiplies it in hardware (GPUs since Ampere, CPUs with AMX)."""
    compile: bool = False
    """Compile the model (torch.compile): pays when training takes far longer than a minute."""
    tf32: bool = True
    """Let GPUs since Ampere multiply fp32 matrices in TF32."""
    log_with: Literal["none", "tensorboard", "mlflow", "wandb"] = "none"
    """A tracker that is told of every step, besides history.parquet; it needs its package."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the head's weights, the shuffle and the augmentation."""

    @model_validator(mode="after")
    def _some_epochs(self) -> TrainConfig:
        if self.freeze_epochs + self.epochs == 0:
            raise ValueError("freeze_epochs and epochs are both 0: nothing would be trained")
        return self


class SweepConfig(Settings):
    """What a sweep tries, and how often."""

    backbones: tuple[str, ...] = ()
    """Backbones to choose from; empty: model.backbone alone."""
    min_lr: Annotated[float, Field(gt=0, lt=10)] = 3e-4
    """Least peak rate of the head."""
    max_lr: Annotated[float, Field(gt=0, lt=10)] = 3e-2
    """Greatest peak rate of the head."""
    num_trials: Annotated[int, Field(ge=1, le=10_000)] = 12
    """Settings to try."""
    num_random: Annotated[int, Field(ge=1, le=10_000)] = 6
    """Trials drawn at random before the others learn from what came of them."""
    num_seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Trainings of each trial, train.seed and the ones after it; their mean error counts."""
    num_concurrent: Annotated[int, Field(ge=1, le=1000)] = 1
    """Trials that launch.deployment is asked for at once."""

    @model_validator(mode="after")
    def _range(self) -> SweepConfig:
        if self.max_lr <= self.min_lr:
            raise ValueError(f"max_lr ({self.max_lr:g}) must be above min_lr ({self.min_lr:g})")
        return self
