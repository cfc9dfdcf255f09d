"""How a training went as one picture: its losses, learning rate and speed by step."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Points = Sequence[Sequence[float]]

_INK, _GRID, _LOSS, _EVALUATION, _RATE, _SPEED = "#333333", "#e6e6e6", "#7aa6f0", "#d1495b", "#5b8c5a", "#8d6cab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Points (step, value) of a training."""

    loss: Points
    evaluation_loss: Points = ()
    learning_rate: Points = ()
    tokens_per_second: Points = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: [list(point) for point in getattr(self, name)] for name in self.__slots__}


def curves_of(log_history: Sequence[dict[str, Any]], rates: Points) -> Curves:
    """The curves from what a training logged, and its tokens a second by step."""

    def points(name: str) -> list[list[float]]:
        return [[entry["step"], entry[name]] for entry in log_history if name in entry]

    return Curves(
        loss=points("loss"),
        evaluation_loss=points("eval_loss"),
        learning_rate=points("learning_rate"),
        tokens_per_second=rates,
    )


def draw_curves(curves: Curves, title: str) -> bytes:
    """The picture as a PNG."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells about fonts
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.6), layout="constrained")
    figure.suptitle(_plain(title), fontsize=13, fontweight="bold", color=_INK)
    losses, (rate, speed) = _panels(figure)
    _draw_losses(losses, curves)
    for axes, points, colour, label in (
        (rate, curves.learning_rate, _RATE, "learning rate"),
        (speed, curves.tokens_per_second, _SPEED, "tokens a second"),
    ):
        axes.plot(*_columns(points), color=colour, linewidth=1.6, marker="." if len(points) < 3 else "")
        axes.set_title(label, fontsize=10, color=_INK, loc="left")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}" if abs(value) >= 1 else f"{value:.3g}")
    for axes in (losses, rate, speed):
        _style(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return _smaller(buffer)


def _panels(figure: Any) -> tuple[Any, tuple[Any, Any]]:
    grid = figure.add_gridspec(2, 2, height_ratios=(2.2, 1))
    losses = figure.add_subplot(grid[0, :])
    return losses, (figure.add_subplot(grid[1, 0], sharex=losses), figure.add_subplot(grid[1, 1], sharex=losses))


def _draw_losses(axes: Any, curves: Curves) -> None:
    steps, values = _columns(curves.loss)
    axes.plot(steps, values, color=_LOSS, linewidth=1.4, marker="." if len(steps) < 3 else "", label="training loss")
    if curves.evaluation_loss:
        steps, values = _columns(curves.evaluation_loss)
        axes.plot(steps, values, color=_EVALUATION, linewidth=1.4, marker="o", markersize=4.5, label="evaluation loss")
        best = min(range(len(values)), key=values.__getitem__)
        axes.annotate(
            f"{values[best]:.3f}",
            (steps[best], values[best]),
            textcoords="offset points",
            xytext=(0, 9),
            ha="center",
            fontsize=9,
            color=_EVALUATION,
        )
    axes.set_title("loss (nats a learned token)", fontsize=10, color=_INK, loc="left")
    axes.set_ylim(bottom=0, top=1.12 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, loc="best")


def _style(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("step", fontsize=9, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.tick_params(labelsize=8.5, colors=_INK, length=0)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    axes.margins(x=0.02)


def _smaller(picture: io.BytesIO) -> bytes:
    """With 64 colours, a third of the size, since the picture travels in result.json."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(picture).convert("RGB").quantize(64).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]


def _plain(text: str) -> str:
    """Without what matplotlib would read as mathematics."""
    return text.replace("$", r"\$")
