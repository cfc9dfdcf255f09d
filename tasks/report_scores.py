"""A run's scores and curves as Markdown, data URIs and JSON. No Prefect here."""

from __future__ import annotations

import base64
import math
from dataclasses import asdict
from typing import Any

from tasks.platforms.refs import GateReport, Scores, TrainingResult

_CURVE_WIDTH, _CURVE_HEIGHT, _MARGIN = 640, 240, 40
_LARGEST_PICTURE = 400_000  # base64 characters; the picture is a few ten thousand, and goes into an artifact
# Label, field of Scores, format.
_ROWS = (
    ("loss", "loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:.2f}"),
    ("token accuracy", "token_accuracy", "{:.1%}"),
    ("word for word", "exact_match", "{:.1%}"),
    ("chrF", "chrf", "{:.1f}"),
    ("ended by itself", "stop_rate", "{:.1%}"),
    ("answer length, tokens", "mean_answer_tokens", "{:.1f}"),
    ("repeated 4-grams", "repetition", "{:.1%}"),
)
_UNITS = {"loss": "nats a token", "exact_match": "as a share", "chrf": "points of chrF"}


def scores_table(result: TrainingResult, gate: GateReport) -> list[str]:
    """Lines of a Markdown table: base, candidate, and the version now serving as far as it was scored."""
    lines = ["| | base | candidate | now serving |", "|---|---|---|---|"]
    for label, field, form in _ROWS:
        serving = getattr(gate.champion_scores, field, None)
        if serving is None and field == gate.metric:
            serving = gate.champion
        values = (getattr(result.base, field), getattr(result.candidate, field), serving)
        if any(value is not None for value in values):
            cells = ("" if value is None else form.format(value) for value in values)
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def interval_lines(gate: GateReport) -> list[str]:
    """What the gate was decided on, one line a comparison, where the interval has ends."""
    lines, unit = [], _UNITS[gate.metric]
    if ends := _ends(gate.improvement_low, gate.improvement_high):
        lines.append(f"- against the base: {ends} {unit}, 95 % interval, above 0 is better")
    worse_low, worse_high = gate.champion_worse_low, gate.champion_worse_high
    if worse_low is not None and worse_high is not None and (ends := _ends(-worse_high, -worse_low)):
        lines.append(f"- against version {gate.champion_version}: {ends} {unit}, 95 % interval, above 0 is better")
    return lines


def scores_document(result: TrainingResult | None) -> dict[str, dict[str, Any]]:
    """The scores of base and candidate for a JSON document."""
    pairs: tuple[tuple[str, Scores], ...] = (("base", result.base), ("candidate", result.candidate)) if result else ()
    return {label: asdict(scores) for label, scores in pairs}


def curves_uri(details: dict[str, Any]) -> str:
    """The training's picture as a data URI: the trainer's PNG, or the loss alone where another trainer drew none."""
    picture = details.get("curves_png")
    if isinstance(picture, str) and 0 < len(picture) <= _LARGEST_PICTURE:
        return f"data:image/png;base64,{picture}"
    return svg_data_uri(details["loss_curve"])


def _ends(low: float | None, high: float | None) -> str:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"{low:+.4f} to {high:+.4f}"


def svg_data_uri(points: list[list[float]]) -> str:
    """Draw [step, loss] points as an SVG line in a data URI."""
    body = ""
    if points:
        steps, losses = [p[0] for p in points], [p[1] for p in points]
        span = max(1, max(steps) - min(steps))
        top, height = max(*losses, 1e-9), _CURVE_HEIGHT - 2 * _MARGIN
        path = " ".join(
            f"{_MARGIN + (_CURVE_WIDTH - 2 * _MARGIN) * (s - min(steps)) / span:.1f},"
            f"{_CURVE_HEIGHT - _MARGIN - height * loss / top:.1f}"
            for s, loss in points
        )
        floor = _CURVE_HEIGHT - _MARGIN
        body = (
            f'<polyline fill="none" stroke="#1860f2" stroke-width="2" points="{path}"/>'
            f'<line x1="{_MARGIN}" y1="{floor}" x2="{_CURVE_WIDTH - _MARGIN}" y2="{floor}" stroke="#888"/>'
            f'<line x1="{_MARGIN}" y1="{_MARGIN}" x2="{_MARGIN}" y2="{floor}" stroke="#888"/>'
            f'<text x="4" y="{_MARGIN}" font-size="12">{top:.2f}</text><text x="22" y="{floor}" font-size="12">0</text>'
            f'<text x="{_CURVE_WIDTH - 2 * _MARGIN}" y="{floor + 18}" font-size="12">step {max(steps)}</text>'
        )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_CURVE_WIDTH}" height="{_CURVE_HEIGHT}" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>{body}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
