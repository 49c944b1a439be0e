"""Test error over seconds of training: ours (probe, default, long), fastai, and a plain timm loop.

    python benchmarks/time_to_accuracy.py [FOLDER] [--size 160] [--picture FILE.png]

All sides train the same backbone on the same photos, with their own defaults, and are evaluated on
the listed test photos after each epoch. Seconds include decoding, and exclude imports and these
evaluations. The plain loop is what timm's and torchvision's documentation shows: random resized
crops and flips, two loader processes, AdamW under one cycle, the whole model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import peer
from matplotlib.ticker import PercentFormatter

from pets_core.plots.style import BLUE, GREY, ORANGE, new_figure, png, tidy

_BASE_LR = 3e-3
_PLAIN_LR = 5e-4
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SIDES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "probe": ("ours", {"recipe": "probe"}, BLUE, "s"),
    "default recipe": ("ours", {"base_lr": _BASE_LR}, BLUE, "o"),
    "3 + 12 epochs": ("ours", {"base_lr": _BASE_LR, "freeze_epochs": 3, "epochs": 12}, BLUE, "."),
    "fastai, fine_tune(2)": ("fastai", {}, ORANGE, "o"),
    "plain timm loop, 3 epochs": ("plain", {}, GREY, "o"),
}
"""Function, settings of training, colour and marker of each curve."""

Points = list[tuple[float, float]]


class _Clock:
    """Seconds of training so far, and the test error after each epoch."""

    def __init__(self, error: Callable[[], float]) -> None:
        self._error = error
        self._start = time.perf_counter()
        self.points: Points = []

    def record(self) -> None:
        """Evaluate; the time of the evaluation is excluded."""
        began = time.perf_counter()
        self.points.append((began - self._start, self._error()))
        self._start += time.perf_counter() - began


def ours(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train in one rank, as `pets train` does."""
    from pets_core.progress import Progress
    from pets_core.runtime.photo_rank import PhotoRank
    from pets_core.training.loop import fit
    from pets_core.training.schedule import fine_tune_phases
    from pets_core.training.validation import validate

    rank = PhotoRank(peer.request("train", arguments))
    recipe, built = rank.config.train, rank.model()
    objective = rank.objective(built)
    test = rank.eval_loader(rank.photos("test", built.card), built.card.center_crop())
    clock = _Clock(lambda: validate(built.model, objective, test, rank.accelerator)[1])
    if recipe.recipe == "probe":
        probe = rank.fit_probe(built)
        assert probe is not None
        built.model.head.load_state_dict(probe.state)
        clock.record()
        return {"points": clock.points}

    def record(progress: Progress) -> None:
        if progress.unit == "epochs":
            clock.record()

    assert recipe.base_lr is not None
    frozen = rank.frozen_inputs(built)
    fit(
        built.model, objective, rank.train_loader(built), None,
        fine_tune_phases(recipe, recipe.base_lr, len(built.model.layer_groups())), recipe,
        accelerator=rank.accelerator, on_progress=record,
        frozen_inputs=frozen and replace(frozen, valid=None),
    )  # fmt: skip
    return {"points": clock.points}


def fastai(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train with `fine_tune(2, 3e-3)`."""
    from fastai.callback.core import Callback
    from fastai.torch_core import set_seed

    set_seed(0)
    learner = peer.fastai_learner(arguments, evaluate_on="test")
    points: Points = []
    start = time.perf_counter()

    class Clock(Callback):
        order = 60  # after the recorder

        def before_validate(self) -> None:
            self.began = time.perf_counter()

        def after_epoch(self) -> None:
            nonlocal start
            points.append((self.began - start, float(learner.recorder.values[-1][-1])))
            start += time.perf_counter() - self.began

    learner.add_cb(Clock())
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(2, _BASE_LR)
    return {"points": points}


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train with a loop of timm, torchvision and torch."""
    import timm
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader
    from torchvision import transforms

    from pets_core.models.backbones import create_body

    torch.manual_seed(0)
    work, size, batch = Path(arguments["work"]), arguments["size"], arguments["batch"]
    frame = pd.read_csv(work / "photos.csv")
    classes = {label: index for index, label in enumerate(sorted(frame.label.unique()))}
    model = timm.create_model(peer.BACKBONE, num_classes=len(classes))
    # The pretrained weights, without a classifier.
    model.load_state_dict(create_body(peer.BACKBONE, "auto", size).state_dict(), strict=False)
    normalise = [transforms.ToTensor(), transforms.Normalize(_MEAN, _STD)]
    augment = [transforms.RandomResizedCrop(size, (0.35, 1)), transforms.RandomHorizontalFlip()]
    crop = [transforms.Resize(round(size / 0.875)), transforms.CenterCrop(size)]

    def loader(split: str, steps: list[Any], *, shuffle: bool) -> DataLoader[Any]:
        transform = transforms.Compose([*steps, *normalise])
        rows = frame[frame.split == split]
        samples = list(zip(rows.name, rows.label.map(classes), strict=True))

        class Photos(torch.utils.data.Dataset[Any]):
            def __len__(self) -> int:
                return len(samples)

            def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
                name, label = samples[index]
                return transform(Image.open(work / "photos" / name).convert("RGB")), label

        return DataLoader(Photos(), batch, shuffle=shuffle, num_workers=2)

    train, test = loader("train", augment, shuffle=True), loader("test", crop, shuffle=False)
    epochs = 3
    optimizer = torch.optim.AdamW(model.parameters(), _PLAIN_LR)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PLAIN_LR, epochs * len(train))

    @torch.no_grad()
    def error() -> float:
        model.eval()
        wrong = sum(int((model(x).argmax(1) != y).sum()) for x, y in test)
        return wrong / len(test.dataset)  # type: ignore[arg-type]

    clock = _Clock(error)
    for _ in range(epochs):
        model.train()
        for inputs, labels in train:
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        clock.record()
    return {"points": clock.points}


def draw(curves: dict[str, Points]) -> bytes:
    """Draw error over seconds as PNG."""
    figure = new_figure(7.5, 4.2, 110)
    axes = figure.subplots()
    for name, points in curves.items():
        side, _, colour, marker = _SIDES[name]
        seconds, errors = zip(*points, strict=True)
        axes.plot(seconds, errors, marker=marker, color=colour)
        axes.annotate(
            f"pets: {name}" if side == "ours" else name, (seconds[-1], errors[-1]),
            xytext=(0, 18 if name == "probe" else -18), textcoords="offset points",
            color=colour, fontsize=9,
            ha="right" if seconds[-1] > 200 else "left",
        )  # fmt: skip
    axes.set(xlim=0, ylim=0, xlabel="seconds of training", ylabel="test error")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    tidy(axes)
    return png(figure)


def main() -> None:
    """Run each side in a process of its own, print its curve, and draw all of them."""
    parser = peer.command_line(__doc__)
    parser.add_argument("--picture", type=Path, help="PNG of the curves")
    peer.run(parser, _measure, ours=ours, fastai=fastai, plain=plain)


def _measure(options: argparse.Namespace, work: Path) -> None:
    curves = _curves(options, work)
    ours_best, theirs = curves["default recipe"][-1], curves["fastai, fine_tune(2)"][-1]
    print(f"fastai takes {theirs[0] / ours_best[0]:.1f} times as long as the default recipe")
    if options.picture:
        options.picture.write_bytes(draw(curves))


def _curves(options: argparse.Namespace, work: Path) -> dict[str, Points]:
    arguments = peer.arguments(options, work)
    curves: dict[str, Points] = {}
    for number, (name, (side, settings, _, _)) in enumerate(_SIDES.items()):
        config = arguments["config"] | {"train": arguments["config"]["train"] | settings}
        # Each decodes the photos itself.
        config["cache_dir"] = str(work / f"cache-{number}")
        result = peer.run_side(__file__, side, arguments | {"config": config})
        curves[name] = result["points"]
        text = ", ".join(f"{error:.1%} after {seconds:.0f} s" for seconds, error in curves[name])
        print(f"{name}: {text}", flush=True)
    return curves


if __name__ == "__main__":
    main()
