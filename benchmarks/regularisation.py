"""Effect of each regulariser on training and validation error, on a subset of the Oxford photos.

    python benchmarks/regularisation.py [FOLDER] [--photos-per-class 15] [--size 96] [--seeds 2]
                                        [--results FILE.parquet] [--picture FILE.png]

Varies one regulariser at a time over several strengths; the others have their defaults. Trains on
the lowest numbers of each breed in trainval and validates on the last 30% of them, since
neighbouring numbers are often one animal; the test list is not used. Both errors are of photos
without augmentation. The results of each training are stored when it ends, so that the same command
resumes after a stop. Set OMP_NUM_THREADS to the number of cores of each of --jobs trainings.
"""

from __future__ import annotations

import argparse
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
_DEFAULT = PipelineConfig()
DEFAULTS = {
    "weight_decay": _DEFAULT.train.weight_decay,
    "dropout": _DEFAULT.model.dropout,
    "augmentation": 1.0,
    "label_smoothing": _DEFAULT.train.label_smoothing,
    "mixup_alpha": _DEFAULT.transform.mixup_alpha,
}
NUM_BREEDS = 37
MEASURED = ["train_error", "train_loss", "valid_error", "valid_loss"]


def settings(strengths: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Return the settings of the strengths of all regularisers, by group."""
    return {
        "train": {name: strengths[name] for name in ("weight_decay", "label_smoothing")},
        "model": {"dropout": strengths["dropout"]},
        "transform": augmentation(strengths["augmentation"])
        | {"mixup_alpha": strengths["mixup_alpha"]},
    }


def augmentation(strength: float) -> dict[str, Any]:
    """Scale the bounds of all transforms: 0 disables, 1 is the default, above 1 also erases."""
    plain = _DEFAULT.transform
    return {
        "flip": strength > 0,
        "max_rotate_degrees": plain.max_rotate_degrees * strength,
        "max_zoom": 1 + (plain.max_zoom - 1) * strength,
        "max_warp": plain.max_warp * strength,
        "max_lighting": plain.max_lighting * strength,
        "erase_probability": 0.5 * max(strength - 1, 0.0),
    }


def trainings(num_seeds: int) -> list[dict[str, float]]:
    """Return strengths and seed of each training: first the defaults, then one change each."""
    changed = [DEFAULTS | {name: value} for name, values in STRENGTHS.items() for value in values]
    distinct = [DEFAULTS, *(strengths for strengths in changed if strengths != DEFAULTS)]
    return [strengths | {"seed": seed} for seed in range(num_seeds) for strengths in distinct]


def ours(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train, and evaluate on training and held-out photos without augmentation."""
    from pets_core.progress import Progress
    from pets_core.runtime.photo_rank import PhotoRank
    from pets_core.training.loop import fit
    from pets_core.training.schedule import fine_tune_phases
    from pets_core.training.validation import validate

    rank = PhotoRank(peer.request("train", arguments))
    recipe, built = rank.config.train, rank.model()
    objective = rank.objective(built)
    loaders = {
        name: rank.eval_loader(rank.photos(split, built.card), built.card.center_crop())
        for name, split in (("train", "train"), ("valid", "test"))
    }
    epochs: list[dict[str, float]] = []
    base_lr = arguments["config"]["train"]["base_lr"]
    num_groups = len(built.model.layer_groups())

    def evaluate(progress: Progress) -> None:
        is_last = progress.done == progress.total
        if progress.unit != "epochs" or not (is_last or arguments["each_epoch"]):
            return
        row: dict[str, float] = {"epoch": progress.done}
        for name, loader in loaders.items():
            loss, error = validate(built.model, objective, loader, rank.accelerator)
            row |= {f"{name}_loss": loss, f"{name}_error": error}
        epochs.append(row)

    fit(
        built.model, objective, rank.train_loader(built), None,
        fine_tune_phases(recipe, base_lr, num_groups), recipe,
        accelerator=rank.accelerator, on_progress=evaluate,
    )  # fmt: skip
    return {"epochs": epochs}


def run_missing(
    recipe: dict[str, Any], options: argparse.Namespace, arguments: dict[str, Any]
) -> Iterator[pd.DataFrame]:
    """Run the trainings missing in `options.results`; yield all rows of the recipe after each."""
    results = options.results
    rows = pd.read_parquet(results).to_dict("records") if results.exists() else []
    planned = [recipe | training for training in trainings(options.seeds)]
    missing = [run for run in planned if not any(run.items() <= row.items() for row in rows)]

    def train(run: dict[str, Any]) -> dict[str, Any]:
        return peer.run_side(__file__, "ours", _arguments(arguments, run))

    with ThreadPoolExecutor(options.jobs) as pool:
        for run, result in zip(missing, pool.map(train, missing), strict=True):
            rows += [run | epoch for epoch in result["epochs"]]
            storage.write_bytes(str(results), pd.DataFrame(rows).to_parquet())
            _print_row(run, rows[-1])
            yield _select_recipe(rows, recipe)
    yield _select_recipe(rows, recipe)


def _select_recipe(rows: list[dict[str, Any]], recipe: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([row for row in rows if recipe.items() <= row.items()])


def _arguments(arguments: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a training; the defaults are evaluated after every epoch."""
    config = arguments["config"].copy()
    for group, values in settings(training).items():
        config[group] = config[group] | values
    config["train"] = config["train"] | {"seed": training["seed"]}
    return arguments | {"config": config, "each_epoch": DEFAULTS.items() <= training.items()}


def _print_row(training: dict[str, Any], row: dict[str, Any]) -> None:
    changed = [name for name, value in DEFAULTS.items() if training[name] != value]
    name = f"{changed[0]} {training[changed[0]]:g}" if changed else "defaults"
    print(
        f"seed {training['seed']}  {name:20s} training {row['train_error']:6.2%}, loss "
        f"{row['train_loss']:.4f}   validation {row['valid_error']:6.2%}, loss "
        f"{row['valid_loss']:.4f}",
        flush=True,
    )


def select_regulariser(found: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the last epochs of the trainings in which only one regulariser differs."""
    ends = found[found.epoch == found.epoch.max()]
    others = [other for other in DEFAULTS if other != name]
    same = (ends[others] == pd.Series(DEFAULTS)[others]).all(axis=1)
    return ends[same].sort_values([name, "seed"])


def table(found: pd.DataFrame) -> str:
    """Return the means over seeds as a Markdown table."""
    lines = [
        "| | strength | seeds | training error | training loss | validation error | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in DEFAULTS:
        for strength, rows in select_regulariser(found, name).groupby(name):
            suffix, mean = " (default)" if strength == DEFAULTS[name] else "", rows[MEASURED].mean()
            lines.append(
                f"| {name.replace('_', ' ')} | {strength:g}{suffix} | {len(rows)} "
                f"| {mean.train_error:.1%} | {mean.train_loss:.3f} "
                f"| {mean.valid_error:.1%} | {mean.valid_loss:.3f} |"
            )
    return "\n".join(lines)


def picture(found: pd.DataFrame) -> bytes:
    """Plot the errors by strength, one panel per regulariser, and by epoch for the defaults."""
    figure = new_figure(9.6, 5.6, dpi=100)
    panels = figure.subplots(2, 3, sharey=True).flat
    for axes, name in zip(panels, DEFAULTS, strict=False):
        ends = select_regulariser(found, name)
        strengths = sorted(ends[name].unique())
        _draw_errors(axes, ends.assign(x=ends[name].map(strengths.index)))
        labels = [f"{s:g}" + ("\ndefault" if s == DEFAULTS[name] else "") for s in strengths]
        axes.set_xticks(range(len(strengths)), labels)
        axes.set_title(name.replace("_", " "), fontsize=11)
    same = (found[list(DEFAULTS)] == pd.Series(DEFAULTS)).all(axis=1)
    axes = figure.axes[-1]
    _draw_errors(axes, found[same].assign(x=found.epoch))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("defaults, by epoch", fontsize=11, color=GREY)
    axes.set_ylim(0, found[["train_error", "valid_error"]].to_numpy().max() * 1.05)
    figure.axes[0].legend(frameon=False, fontsize=9, loc="center left")
    return png(figure)


def _draw_errors(axes: Axes, rows: pd.DataFrame) -> None:
    """Plot a dot per seed and a line through the means."""
    for column, label, colour in (
        ("valid_error", "validation", ORANGE), ("train_error", "training", BLUE),
    ):  # fmt: skip
        axes.plot(
            rows.x, rows[column], ".", color=colour, alpha=0.45, markersize=5, clip_on=False
        )  # fmt: skip
        mean = rows.groupby("x")[column].mean()
        axes.plot(mean.index, mean, color=colour, linewidth=1.8, label=label, clip_on=False)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel("error")
    tidy(axes)


def main() -> None:
    """Train with every strength of every regulariser; print the table and write the plot."""
    parser = peer.command_line(__doc__)
    parser.set_defaults(size=96, batch=16)
    parser.add_argument("--photos-per-class", type=int, default=15, help="training photos")
    parser.add_argument("--freeze-epochs", type=int, default=1, help="frozen epochs")
    parser.add_argument("--epochs", type=int, default=5, help="unfrozen epochs")
    parser.add_argument("--base-lr", type=float, default=3e-3)
    parser.add_argument("--lr-mult", type=float, default=10.0, help="rate of head / stem")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each setting")
    parser.add_argument("--jobs", type=int, default=1, help="parallel trainings")
    parser.add_argument("--results", type=Path, default=Path("regularisation.parquet"))
    parser.add_argument("--picture", type=Path, default=Path("regularisation.png"))
    peer.run(parser, _measure, ours=ours)


def _measure(options: argparse.Namespace, work: Path) -> None:
    names = ("size", "batch", "photos_per_class", "freeze_epochs", "epochs", "base_lr", "lr_mult")
    recipe = {name: getattr(options, name) for name in names}
    arguments = peer.arguments(
        options, work, held_out=True, limit=NUM_BREEDS * options.photos_per_class,
        freeze_epochs=options.freeze_epochs, epochs=options.epochs, base_lr=options.base_lr,
        lr_mult=options.lr_mult,
    )  # fmt: skip
    arguments["config"]["model"]["backbone"] = peer.BACKBONE
    for found in run_missing(recipe, options, arguments):
        options.picture.write_bytes(picture(found))
    print(table(found))


if __name__ == "__main__":
    main()
