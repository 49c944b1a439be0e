"""Every setting of the pipeline, defined once.

One frozen model a stage and `PipelineConfig` over them. Flow parameters, YAML files, environment
variables and command-line flags all fill this same model; nothing else reads settings.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from pets_core.rates import RateSlice
from pets_core.records import Targets

__all__ = [
    "NAME_PATTERN",
    "ClassFolder",
    "EmbedConfig",
    "EvaluateConfig",
    "GateConfig",
    "IngestConfig",
    "LRFindConfig",
    "LaunchConfig",
    "LocalFolder",
    "ModelConfig",
    "PipelineConfig",
    "Settings",
    "SourceConfig",
    "TrainConfig",
    "TransformConfig",
    "refuse_sharding",
]

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""What data sets and aliases may be called: each is a folder in the store."""


class Settings(BaseModel):
    """Frozen, and an unknown key is an error rather than a typo that trains for a night."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads yes and on as true, which pydantic would take for 1."""
        assert info.field_name is not None
        if isinstance(value, bool) and {int, float} & _types(cls.model_fields[info.field_name]):
            raise ValueError("expected a number, not true or false")
        return value


def _types(field: FieldInfo) -> set[Any]:
    """The types a field's annotation allows, bounds stripped."""
    options = {
        get_args(option)[0] if get_origin(option) is Annotated else option
        for option in (get_args(field.annotation) or [field.annotation])
    }
    return options


def _local_folder(value: str) -> str:
    if "://" in value or value.startswith("file:"):
        raise ValueError(f"{value} is a URL: give the path of a local folder")
    return value


LocalFolder = Annotated[str, AfterValidator(_local_folder)]
ClassFolder = Literal["auto", "first", "last"]
"""Which of the folders around a photo names its class."""


class SourceConfig(Settings):
    """Where the photos come from and how they are split."""

    kind: Literal["auto", "sample", "oxford-iiit-pet", "folder", "table"] = "auto"
    """What the source is. auto: the built-in sample when no URL is given, else what lies there.
    folder: a folder of photos a class, or an archive (.zip, .tar, .tar.gz, ...) of such folders.
    table: CSV or Parquet."""
    url: str | None = None
    """Path or fsspec URL of the source; oxford-iiit-pet alone defaults to the authors' site."""
    name: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Name of the data set; empty: the last part of the URL."""
    checksums: dict[
        str, Annotated[str, Field(pattern=r"^(md5|sha1|sha256|sha512):[0-9a-fA-F]+$")]
    ] = {}
    """What the source's archives or table must hash to, by file name: "md5:..." or "sha256:..."."""
    class_folder: ClassFolder = "auto"
    """Of a folder or archive: which folder names a photo's class, below a folder around all and
    below train, val and test. first: the outermost. last: the one the photo lies in. auto: the
    first, unless all of these hold the same folders, as 2023/cat and 2024/cat."""
    targets: Targets = "class"
    """What is learnt of a photo. class: what it is of. tags: any number of them; of pets, species
    and breed. points, box: places on the photo; of pets, the centre of the head and the box around
    it. numbers: the columns of a table."""
    image_column: str = "image"
    """Of a table: the column with the photos' paths, URLs or bytes."""
    image_folder: str | None = None
    """Of a table of paths or ids: the folder they are in, from the table's folder."""
    image_suffix: str = ""
    """Of a table of ids: what follows each id in its file's name, as .jpg."""
    label_column: str = "label"
    """Of a table: the column with the labels; of tags, lists, or text with tag_separator."""
    tag_separator: Annotated[str, Field(min_length=1)] | None = None
    """Of a table whose tags are text: what stands between them; empty: spaces."""
    tag_columns: tuple[str, ...] = ()
    """Of a table with a column a tag, in place of label_column: 1 where a photo has the tag, 0 or
    nothing where not, and -1 where that is uncertain, which counts as not."""
    delimiter: str | None = None
    """Of a CSV table: what stands between its cells: a character, :: or tab; empty: detected."""
    encoding: str | None = None
    """Of a CSV table, as utf-8, utf-16 or cp1252; empty: detected."""
    quoting: bool | None = None
    """Of a CSV table: whether double quotes enclose cells; empty: detected."""
    decimal: Literal[".", ","] | None = None
    """Of the numbers of a CSV table: what stands before their fractions; empty: detected."""
    number_columns: tuple[str, ...] = ()
    """Of a table: the columns with the numbers. For points x and y in turn, for a box xmin, ymin,
    xmax and ymax, in pixels of the upright photo, from its upper left. Points that have a left and
    a right, as eyes, want transform.flip off: a mirrored left eye stays in its column."""
    units: tuple[str, ...] = ()
    """What the numbers are told in, one for each of number_columns; empty: none."""
    y_range: tuple[float, float] | None = None
    """Lowest and highest value of the numbers, which predictions are held within; empty: any.
    Places are on the photo in any case."""
    label_fixes: str | None = None
    """Path or URL of a CSV with columns id and label: photos that have another label than the
    source says; an empty label leaves the photo out. An evaluation proposes such a file."""
    split_column: str | None = None
    """Of a table: the column that says train, valid or test; empty: a random split."""
    split: Literal["auto", "official", "random"] = "auto"
    """official: the published trainval and test lists, the folders train, val and test, or
    split_column. auto: official where there is one."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training photos held out for validation, by a hash of each photo's id. Each
    class of at least five photos has at least one."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share held out for testing; random split only (the official brings its own)."""
    group_column: str | None = None
    """Of a table: the column with each photo's animal, patient or camera. All photos of one are on
    one side of a random split, so that a model is judged on others than it was trained on."""
    group_pattern: str | None = None
    """The same of any source: a regular expression that finds the group in a photo's id, as
    "^[^/]+/([^_]+)_". Its first parenthesis is the group, else the whole match."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the random part of the split, and of the built-in sample."""
    sample_photos_per_breed: Annotated[int, Field(ge=4, le=2000)] = 40
    """How many photos of each breed the built-in sample draws."""

    @model_validator(mode="after")
    def _combinations(self) -> SourceConfig:
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"valid_fraction ({self.valid_fraction:g}) + test_fraction "
                f"({self.test_fraction:g}) must stay below 1: lower one"
            )
        if self.split == "official" and self.test_fraction:
            raise ValueError(
                f"test_fraction = {self.test_fraction:g} has no meaning with split = official, "
                "which brings its own test list: leave it out, or set split = random"
            )
        if self.group_column and self.group_pattern:
            raise ValueError("group_column and group_pattern are both set: leave out one of them")
        if self.group_pattern:
            try:
                re.compile(self.group_pattern)
            except re.error as error:
                raise ValueError(
                    f"group_pattern = {self.group_pattern!r} is no regular expression: {error}"
                ) from error
        if self.tag_columns and self.targets != "tags":
            raise ValueError(f"tag_columns has no meaning with targets = {self.targets}: set tags")
        if self.tag_columns and self.tag_separator:
            raise ValueError("tag_separator has no meaning with tag_columns: leave out one of them")
        if self.kind in ("folder", "table") and self.url is None:
            raise ValueError(f"kind = {self.kind} needs url: where the {self.kind} lies")
        if self.kind == "sample" and self.url is not None:
            raise ValueError("kind = sample is generated and takes no url: leave one of them out")
        return self

    @model_validator(mode="after")
    def _numbers(self) -> SourceConfig:
        columns, num = self.number_columns, len(self.number_columns)
        if columns and self.targets in ("class", "tags"):
            raise ValueError(
                f"number_columns = {', '.join(columns)} has no meaning with targets = "
                f"{self.targets}: set numbers, points or box"
            )
        if len(set(columns)) < num:
            raise ValueError(f"number_columns = {', '.join(columns)}: one is there twice")
        if self.targets == "numbers" and not columns:
            raise ValueError("targets = numbers needs number_columns: where a table has them")
        if columns and (self.targets, num % 2) == ("points", 1):
            raise ValueError(f"number_columns has {num} columns, for points x and y in turn")
        if columns and self.targets == "box" and num != 4:
            raise ValueError(f"number_columns has {num} columns, a box has xmin, ymin, xmax, ymax")
        for name, given in (("units", self.units), ("y_range", self.y_range)):
            if given and self.targets != "numbers":
                raise ValueError(f"{name} has no meaning with targets = {self.targets}: leave out")
        if self.units and len(self.units) != num:
            raise ValueError(f"units has {len(self.units)} entries, number_columns {num}")
        if self.y_range and self.y_range[0] >= self.y_range[1]:
            low, high = self.y_range
            raise ValueError(f"y_range ({low:g}, {high:g}) must have its lower end first")
        return self


class IngestConfig(Settings):
    """How photos become Parquet."""

    shard_mib: Annotated[int, Field(ge=1, le=4096)] = 32
    """Most photo bytes in one Parquet shard, MiB; each worker holds about three times as much."""
    row_group_rows: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Photos in one Parquet row group."""
    max_quarantined_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The run stops when more than this share of the photos cannot be used."""
    duplicates: Literal["keep", "drop"] = "keep"
    """drop: training photos that are (nearly) in valid or test are left out, and validation photos
    that are (nearly) in test."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=16)] = 6
    """Photos whose 64-bit perceptual hashes differ in at most so many bits are near-duplicates."""
    new_labels: Literal["refuse", "quarantine", "extend"] = "refuse"
    """What becomes of labels that earlier versions of the data set do not know. extend: they come
    after the known ones, in a new version of the label contract."""
    runner: Literal["threads", "processes", "dask", "ray"] = "threads"
    """What runs the shard tasks; dask and ray need the extra of that name."""
    runner_address: str | None = None
    """Of a running Dask scheduler or Ray cluster; empty: one is started on this machine."""
    num_workers: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Shard tasks at a time; 0: one a CPU core. A running cluster decides that itself."""

    @model_validator(mode="after")
    def _address_has_a_cluster(self) -> IngestConfig:
        if self.runner_address is not None and self.runner not in ("dask", "ray"):
            raise ValueError(
                f"runner_address has no meaning with runner = {self.runner}: set dask or ray"
            )
        return self


class ModelConfig(Settings):
    """What is trained."""

    backbone: str = "tf_efficientnet_lite0"
    """Any timm model name; resnet34 and resnet50 mean torchvision's ImageNet weights."""
    weights: str = "auto"
    """auto: from an installed package, else the hub; hub; none (random); or a file's path or URL
    (.safetensors or .pth)."""
    image_size: Annotated[int, Field(ge=32, le=1024)] = 224
    """Side of the square the model sees, pixels."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the pooled features dropped before the head in training."""


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


class EvaluateConfig(Settings):
    """How the trained model is judged."""

    split: Literal["auto", "test", "valid"] = "auto"
    """Which photos to judge on. auto: test where the data set has one, else valid."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 64
    """Photos in one forward pass of a process."""
    tta_views: Annotated[int, Field(ge=0, le=64)] = 0
    """Augmented views of each photo that the prediction is averaged over, besides the plain one
    (fastai's TTA, whose default is 4); each costs another forward pass."""
    most_confused_min_count: Annotated[int, Field(ge=1)] = 1
    """Pairs of breeds confused fewer times than this are left out of the most-confused table."""
    threshold: Literal["shared", "per_tag"] = "shared"
    """How probable a tag must be to be given, chosen by the F1 of the validation photos of the run
    that trains the model, which keeps it. per_tag: a threshold for each, for which few photos of a
    tag are too few."""
    embeddings: bool = False
    """Store the pooled features of each photo with its prediction."""


class GateConfig(Settings):
    """Which model may go out.

    An alias is a name that points at one model of a data set; that model is the champion.
    """

    promote: bool = False
    """Point the alias at a model that passes, and end a run whose model does not as Rejected."""
    alias: Annotated[str, Field(pattern=NAME_PATTERN)] = "champion"
    """The alias; every run is compared with the model it points at."""
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Highest error rate to pass, share."""
    min_improvement: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """By how much the error rate must be less than the champion's on the same photos, share; below
    0: by how much it may be more."""
    max_drop_per_class: Annotated[float, Field(ge=0, le=1)] | None = None
    """How much less of any class may be recognised than by the champion, share of its photos."""
    allow_unseen_classes: bool = False
    """Let a model pass although some of its classes have no evaluated photo."""

    @property
    def is_configured(self) -> bool:
        """Whether any setting besides the alias differs from its default."""
        return self != GateConfig(alias=self.alias)


class BatchConfig(Settings):
    """How a batch of photos without labels is predicted."""

    part_photos: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Photos of one file of predictions: as many are lost when a machine dies."""
    num_tasks: Annotated[int, Field(ge=1, le=1000)] = 1
    """Flow runs that launch.deployment is asked for at once."""


class EmbedConfig(Settings):
    """How near-duplicates are told by their embeddings."""

    min_similarity: Annotated[float, Field(gt=0, lt=1)] = 0.94
    """Photos whose embeddings have a cosine of at least this are near-duplicates; every model has a
    scale of its own."""


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


class LaunchConfig(Settings):
    """The processes that compute."""

    deployment: Annotated[str, Field(pattern=r"^[^/]+/[^/]+$")] | None = None
    """Deployment that finds rates, trains and predicts for this run, as "flow name/deployment
    name": on another worker pool. Unset: this process starts the ranks."""
    num_processes: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"
    """Ranks on this machine; auto: one a GPU, or one on a machine without."""
    num_machines: Annotated[int, Field(ge=1, le=1024)] = 1
    """Machines that work together; the others join with `pets join`."""
    rdzv_endpoint: Annotated[str, Field(pattern=r"^[^\s:/]+:[0-9]{1,5}$")] | None = None
    """Where the other machines reach the first, host:port; needed with several machines."""
    join_timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """How long machines wait for each other."""
    require_gpu: bool = False
    """Refuse to work on a machine without a GPU, which takes hours where a GPU takes minutes."""
    shard_model: bool = False
    """Spread weights, gradients and optimizer state over the ranks (FSDP2): for a backbone whose
    training does not fit one GPU. Slower for one that does."""
    push_gateway: Annotated[str, Field(pattern=r"^[^\s:/]+:[0-9]{1,5}$")] | None = None
    """Prometheus Pushgateway that is told of each stage, host:port."""
    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads of each rank; 0: the machine's cores divided among the ranks."""
    stall_timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Ranks are ended, and tell where they stood, when one of them takes longer over a batch."""
    decode_cache_gib: Annotated[float, Field(ge=0, le=100_000)] | Literal["auto"] = "auto"
    """Most disk that the decoded photos of one split may take under cache_dir, GiB; auto: half of
    what is free, up to 48 GiB. Photos beyond it are decoded anew in every epoch."""
    photos_on_gpu: Literal["auto", "never"] = "auto"
    """auto: the decoded photos are kept on the GPU where they take at most a quarter of its free
    memory."""

    @model_validator(mode="after")
    def _machines_meet(self) -> LaunchConfig:
        if self.num_machines > 1 and self.rdzv_endpoint is None:
            raise ValueError(
                f"num_machines = {self.num_machines} needs rdzv_endpoint: host:port at which the "
                "other machines reach the first"
            )
        return self


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
        targets, of_class = self.source.targets, self.source.targets == "class"
        of_numbers = targets not in ("class", "tags")
        transform, train = self.transform, self.train
        faults = {
            "gate, which asks for an error rate,": self.gate.is_configured and not of_class,
            "source.label_fixes": self.source.label_fixes is not None and not of_class,
            "evaluate.embeddings": self.evaluate.embeddings and not of_class,
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
                self.source.tag_separator is not None and targets != "tags"
            ),
            f"evaluate.threshold = {self.evaluate.threshold}": (
                self.evaluate.threshold != "shared" and targets != "tags"
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


def refuse_sharding(launch: LaunchConfig, train: TrainConfig) -> None:
    """Refuse what a model that is spread over the ranks cannot be trained with.

    Raises:
        ValueError: It is to be.
    """
    faults = {
        f"train.ema_decay = {train.ema_decay:g}": train.ema_decay > 0,
        "train.batch_norm = train": train.batch_norm == "train",
        "train.mixed_precision = fp16": train.mixed_precision == "fp16",
        "train.compile = true": train.compile,
    }
    if launch.shard_model and any(faults.values()):
        named = ", ".join(setting for setting, found in faults.items() if found)
        raise ValueError(
            f"launch.shard_model does not go with {named}: a sharded model is trained as it is, in "
            "fp32 or bf16, with batch norm frozen or sync"
        )
