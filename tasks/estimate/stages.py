"""The parts of a run, what of each bills, and how long those take that no arithmetic tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.estimate.ranges import Range

if TYPE_CHECKING:
    from tasks.config import PipelineConfig

_MINUTE = 60.0
_IMAGE_SECONDS = (10 * _MINUTE, 45 * _MINUTE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One part of a run.

    Args:
        bills: whose price runs meanwhile: `training`, `serving`, `image`, `idle` (the nodes after a job), or nothing.
        on_job: whether a job that is adopted has done it already.
    """

    name: str
    seconds: Range
    how: str
    bills: str = ""
    on_job: bool = False


def before_job(config: PipelineConfig, num_new_images: int | None) -> list[Stage]:
    """What a job on Azure waits for."""
    if not config.is_remote:
        return []
    low, high = _IMAGE_SECONDS
    most = 2 if num_new_images is None else num_new_images
    images = Range(low=0 if num_new_images is None else low * most, high=high * most)
    how = f"{'0 to ' if num_new_images is None else ''}{most} image(s) of 10 to 45 min, built once for each content"
    return [
        *([Stage(name="build images", seconds=images, how=how, bills="image")] if most else []),
        Stage(name="wait for a node", seconds=Range(low=0, high=600), how="when there is quota", on_job=True),
        Stage(
            name="start the node",
            seconds=Range(low=2 * _MINUTE, high=8 * _MINUTE),
            how="the machine, the image, the data",
            bills="training",
            on_job=True,
        ),
    ]


def after_job(config: PipelineConfig) -> list[Stage]:
    """From the end of the job to an answering chat app."""
    hold = config.rollout.hold_seconds * len(config.rollout.steps)
    held = f"{len(config.rollout.steps)} steps of {config.rollout.hold_seconds:g} s, and the probes"
    if not config.is_remote:
        return [
            Stage(name="deploy", seconds=Range(low=6, high=60), how="the model server loads the model"),
            Stage(name="move traffic", seconds=Range(low=hold + 1, high=hold + 60), how=held),
            Stage(name="serve the chat app", seconds=Range(low=2, high=40), how="its own process"),
        ]
    return [
        Stage(
            name="let the node go",
            seconds=Range(low=0, high=0),
            how=f"bills {config.compute.idle_seconds} s more, after the job",
            bills="idle",
            on_job=True,
        ),
        Stage(
            name="compare",
            seconds=Range(low=0, high=20 * _MINUTE),
            how="a job that scores the version now serving, if there is one",
            bills="training",
        ),
        Stage(
            name="deploy",
            seconds=Range(low=8 * _MINUTE, high=25 * _MINUTE),
            how="a machine that loads the model",
            bills="serving",
        ),
        Stage(name="move traffic", seconds=Range(low=hold + 60, high=hold + 15 * _MINUTE), how=held, bills="serving"),
        Stage(name="serve the chat app", seconds=Range(low=2, high=60), how="on this machine"),
    ]
