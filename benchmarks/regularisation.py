"""What each regulariser does to training and validation error, on few of the real photos.

    python benchmarks/regularisation.py [FOLDER] [--photos-per-class 15] [--size 96] [--seeds 2]
                                        [--results FILE.parquet] [--picture FILE.png]

One regulariser at a time, at several strengths, every other at its default. Trains on
the lowest numbers of each breed in trainval and validates on the last 30% of them, since
neighbouring numbers are often one animal; the test list is not looked at. Both errors are of photos
that are not augmented. Every training is written down when it ends, so that the same command goes
on where it was stopped. OMP_NUM_THREADS says how many cores each of --jobs trainings takes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import peer
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from pets_core import storage
from pets_core.config.pipeline import PipelineConfig
from pets_core.plots.style import BLUE, GREY, ORANGE, new_figure, png, tidy

STRENGTHS: dict[str, tuple[float, ...]] = {
    "weight_decay": (0.0, 0.01, 0.1, 0.9),
    "dropout": (0.0, 0.2, 0.5, 0.8),
    "augmentation": (0.0, 0.5, 1.0, 2.0),
    "label_smoothing": (0.0, 0.1, 0.2, 0.4),
    "mixup_alpha": (0.0, 0.2, 0.5, 1.0),
}
_PLAIN = PipelineConfig()
DEFAULTS = {
    "weight_decay": _PLAIN.train.weight_decay,
    "dropout": _PLAIN.model.dropout,
    "augmentation": 1.0,
    "label_smoothing": _PLAIN.train.label_smoothing,
    "mixup_alpha": _PLAIN.transform.mixup_alpha,
}
NUM_BREEDS = 37
MEASURED = ["train_error", "train_loss", "valid_error", "valid_loss"]


def settings(strengths: dict[str, float]) -> dict[str, dict[str, Any]]:
    """What the strengths of all regularisers mean, by group of settings."""
    return {
        "train": {name: strengths[name] for name in ("weight_decay", "label_smoothing")},
        "model": {"dropout": strengths["dropout"]},
        "transform": augmentation(strengths["augmentation"])
        | {"mixup_alpha": strengths["mixup_alpha"]},
    }


def augmentation(strength: float) -> dict[str, Any]:
    """Bounds of all transforms: none at 0, the defaults at 1; above 1 photos are erased too."""
    plain = _PLAIN.transform
    return {
        "flip": strength > 0,
        "max_rotate_degrees": plain.max_rotate_degrees * strength,
        "max_zoom": 1 + (plain.max_zoom - 1) * strength,
        "max_warp": plain.max_warp * strength,
        "max_lighting": plain.max_lighting * strength,
        "erase_probability": 0.5 * max(strength - 1, 0.0),
    }


def trainings(num_seeds: int) -> list[dict[str, float]]:
    """Strengths and seed of each training: the defaults first, then one of them changed."""
    changed = [DEFAULTS | {name: value} for name, values in STRENGTHS.items() for value in values]
    distinct = [DEFAULTS, *(strengths for strengths in changed if strengths != DEFAULTS)]
    return [strengths | {"seed": seed} for seed in range(num_seeds) for strengths in distinct]


def ours(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train, and judge the photos trained on and those held out, without augmentation."""
    from pets_core.progress import Progress
    from pets_core.runtime.photo_rank import PhotoRank
    from pets_core.training.loop import fit
    from pets_core.training.schedule import fine_tune_phases
    from pets_core.training.validation import validate

    rank = PhotoRank(peer.request("train", arguments))
    recipe, built = rank.config.train, rank.model()
    objective = rank.objective(built)
    judged = {
        name: rank.eval_loader(rank.photos(split, built.card), built.card.center_crop())
        for name, split in (("train", "train"), ("valid", "test"))
    }
    epochs: list[dict[str, float]] = []

    def judge(progress: Progress) -> None:
        ends = progress.done == progress.total
        if progress.unit != "epochs" or not (ends or arguments["each_epoch"]):
            return
        row: dict[str, float] = {"epoch": progress.done}
        for name, loader in judged.items():
            loss, error = validate(built.model, objective, loader, rank.accelerator)
            row |= {f"{name}_loss": loss, f"{name}_error": error}
        epochs.append(row)

    fit(
        built.model, objective, rank.train_loader(built.card), None,
        fine_tune_phases(recipe, arguments["config"]["train"]["base_lr"]), recipe,
        accelerator=rank.accelerator, on_progress=judge,
    )  # fmt: skip
    return {"epochs": epochs}


def run_missing(
    recipe: dict[str, Any], options: argparse.Namespace, arguments: dict[str, Any]
) -> Iterator[pd.DataFrame]:
    """Do the trainings that `options.results` does not hold yet; yields all of the recipe's."""
    results = options.results
    rows = pd.read_parquet(results).to_dict("records") if results.exists() else []
    wanted = [recipe | training for training in trainings(options.seeds)]
    missing = [asked for asked in wanted if not any(asked.items() <= row.items() for row in rows)]

    def train(asked: dict[str, Any]) -> dict[str, Any]:
        return peer.run_side(__file__, "ours", _arguments(arguments, asked))

    with ThreadPoolExecutor(options.jobs) as pool:
        for asked, done in zip(missing, pool.map(train, missing), strict=True):
            rows += [asked | epoch for epoch in done["epochs"]]
            storage.write_bytes(str(results), pd.DataFrame(rows).to_parquet())
            _tell(asked, rows[-1])
            yield _of_recipe(rows, recipe)
    yield _of_recipe(rows, recipe)


def _of_recipe(rows: list[dict[str, Any]], recipe: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([row for row in rows if recipe.items() <= row.items()])


def _arguments(arguments: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """What a training is asked for; the defaults are judged after every epoch."""
    config = arguments["config"].copy()
    for group, values in settings(asked).items():
        config[group] = config[group] | values
    config["train"] = config["train"] | {"seed": asked["seed"]}
    return arguments | {"config": config, "each_epoch": DEFAULTS.items() <= asked.items()}


def _tell(training: dict[str, Any], row: dict[str, Any]) -> None:
    changed = [name for name, value in DEFAULTS.items() if training[name] != value]
    named = f"{changed[0]} {training[changed[0]]:g}" if changed else "defaults"
    print(
        f"seed {training['seed']}  {named:20s} training {row['train_error']:6.2%}, loss "
        f"{row['train_loss']:.4f}   validation {row['valid_error']:6.2%}, loss "
        f"{row['valid_loss']:.4f}",
        flush=True,
    )


def of_one(found: pd.DataFrame, name: str) -> pd.DataFrame:
    """Ends of the trainings in which nothing but one regulariser differs from the defaults."""
    ends = found[found.epoch == found.epoch.max()]
    others = [other for other in DEFAULTS if other != name]
    same = (ends[others] == pd.Series(DEFAULTS)[others]).all(axis=1)
    return ends[same].sort_values([name, "seed"])


def table(found: pd.DataFrame) -> str:
    """The means over seeds, in Markdown."""
    lines = [
        "| | strength | seeds | training error | training loss | validation error | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in DEFAULTS:
        for strength, rows in of_one(found, name).groupby(name):
            mark, mean = " (default)" if strength == DEFAULTS[name] else "", rows[MEASURED].mean()
            lines.append(
                f"| {name.replace('_', ' ')} | {strength:g}{mark} | {len(rows)} "
                f"| {mean.train_error:.1%} | {mean.train_loss:.3f} "
                f"| {mean.valid_error:.1%} | {mean.valid_loss:.3f} |"
            )
    return "\n".join(lines)


def picture(found: pd.DataFrame) -> bytes:
    """A panel a regulariser, errors over its strengths, and one of the default's epochs."""
    figure = new_figure(9.6, 5.6, dpi=100)
    panels = figure.subplots(2, 3, sharey=True).flat
    for axes, name in zip(panels, DEFAULTS, strict=False):
        ends = of_one(found, name)
        strengths = sorted(ends[name].unique())
        _draw_errors(axes, ends.assign(place=ends[name].map(strengths.index)))
        labels = [f"{s:g}" + ("\ndefault" if s == DEFAULTS[name] else "") for s in strengths]
        axes.set_xticks(range(len(strengths)), labels)
        axes.set_title(name.replace("_", " "), fontsize=11)
    same = (found[list(DEFAULTS)] == pd.Series(DEFAULTS)).all(axis=1)
    axes = figure.axes[-1]
    _draw_errors(axes, found[same].assign(place=found.epoch))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("the defaults, epoch by epoch", fontsize=11, color=GREY)
    axes.set_ylim(0, found[["train_error", "valid_error"]].to_numpy().max() * 1.05)
    figure.axes[0].legend(frameon=False, fontsize=9, loc="center left")
    return png(figure)


def _draw_errors(axes: Axes, rows: pd.DataFrame) -> None:
    """Each seed a dot, their mean a line."""
    for column, label, colour in (
        ("valid_error", "validation", ORANGE), ("train_error", "training", BLUE),
    ):  # fmt: skip
        axes.plot(
            rows.place, rows[column], ".", color=colour, alpha=0.45, markersize=5, clip_on=False
        )  # fmt: skip
        mean = rows.groupby("place")[column].mean()
        axes.plot(mean.index, mean, color=colour, linewidth=1.8, label=label, clip_on=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel("error")
    tidy(axes)


def main() -> None:
    """Train with every strength of every regulariser, and write table and picture."""
    parser = peer.command_line(__doc__)
    parser.set_defaults(size=96, batch=16)
    parser.add_argument("--photos-per-class", type=int, default=15, help="to train on")
    parser.add_argument("--freeze-epochs", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=5, help="unfrozen")
    parser.add_argument("--base-lr", type=float, default=3e-3)
    parser.add_argument("--lr-mult", type=float, default=10.0, help="head's rate over the stem's")
    parser.add_argument("--seeds", type=int, default=2, help="how many trainings of each")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--results", type=Path, default=Path("regularisation.parquet"))
    parser.add_argument("--picture", type=Path, default=Path("regularisation.png"))
    options = peer.parse(parser, ours=ours)
    if options is None:
        return
    with tempfile.TemporaryDirectory(prefix="pets-bench-") as name:
        _measure(options, Path(name))


def _measure(options: argparse.Namespace, work: Path) -> None:
    named = ("size", "batch", "photos_per_class", "freeze_epochs", "epochs", "base_lr", "lr_mult")
    recipe = {name: getattr(options, name) for name in named}
    config = peer.prepare_photos(
        options.source, work, held_out=True, limit=NUM_BREEDS * options.photos_per_class,
        batch_size=options.batch, freeze_epochs=options.freeze_epochs, epochs=options.epochs,
        base_lr=options.base_lr, lr_mult=options.lr_mult,
    )  # fmt: skip
    values = config.model_dump(mode="json")
    values["model"] |= {"image_size": options.size, "backbone": peer.BACKBONE}
    arguments = {"work": str(work), "config": values}
    for found in run_missing(recipe, options, arguments):
        options.picture.write_bytes(picture(found))
    print(table(found))


if __name__ == "__main__":
    main()
