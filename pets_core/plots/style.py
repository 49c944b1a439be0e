"""Colours, axes style and PNG encoding of all plots."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from pets_core.records.training import MetricInfo

__all__ = [
    "BLUE",
    "GREY",
    "INK",
    "ORANGE",
    "RED",
    "Floats",
    "format_metric",
    "new_figure",
    "note",
    "plain",
    "png",
    "shorten",
    "tidy",
]

BLUE, ORANGE, RED, INK, GREY = "#1b5e9e", "#d9730d", "#b3202a", "#1c2530", "#6b7785"

Floats = NDArray[np.float64]


def new_figure(width: float, height: float, dpi: int) -> Figure:
    return Figure((width, height), dpi=dpi, facecolor="white", layout="constrained")


def png(figure: Figure) -> bytes:
    """Render a figure as PNG with 256 colours, cropped to its content."""
    canvas, encoded = FigureCanvasAgg(figure), io.BytesIO()
    # `savefig` draws the figure twice.
    canvas.draw()  # type: ignore[no-untyped-call]
    rendered = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    pixels = _crop(Image.fromarray(rendered).convert("RGB"))
    # A palette takes a third of the bytes, and anti-aliased lines and text need few colours.
    pixels.quantize(256).save(encoded, "PNG", optimize=True)
    return encoded.getvalue()


def _crop(pixels: Image.Image, pad: int = 12) -> Image.Image:
    """Crop the empty margins that square axes leave in a figure."""
    box = ImageChops.invert(pixels).getbbox()
    if box is None:
        return pixels
    left, top, right, bottom = box
    return ImageOps.expand(pixels.crop((left, top, right, bottom)), pad, "white")


def plain(text: str) -> str:
    """Return a label that Matplotlib shows as it is: without formulas, and not hidden by "_"."""
    escaped = text.replace("$", r"\$")
    return f"\N{ZERO WIDTH SPACE}{escaped}" if escaped.startswith("_") else escaped


def shorten(text: str, max_length: int) -> str:
    """Return a text of at most `max_length` characters; "…" replaces the end of a longer one."""
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def tidy(axes: Axes) -> None:
    """Apply the common style to axes: grid, colours, no top and right spines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b9c1ca")
    axes.grid(color="#dfe4ea", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", color="#b9c1ca", labelcolor=INK, labelsize=9)


def format_metric(axis: Axis, metric: MetricInfo, decimals: int | None = None) -> None:
    """Show the values of an axis in percent if the unit of their metric begins with "%".

    Args:
        axis: Axis of values of `metric`.
        metric: Metric, whose unit is "%" or, for example, "% of a side".
        decimals: Decimals of the percentages; None: chosen from the range of the axis.
    """
    if metric.unit.startswith("%"):
        axis.set_major_formatter(PercentFormatter(1.0, decimals))


def note(axes: Axes, text: str) -> None:
    """Draw text in the centre of axes that have no data."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
