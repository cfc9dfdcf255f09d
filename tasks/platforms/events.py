"""The trainer's events, as text -> what a job is doing now; the same on every platform."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tasks.platforms.refs import JobStatus


def parse_events(lines: Sequence[str]) -> list[dict[str, Any]]:
    """Whole lines only: the last one may be in the middle of being written."""
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                events.append(event)
    return events


def with_progress(status: JobStatus, events: Sequence[dict[str, Any]]) -> JobStatus:
    """The status with the last stage and the last progress among the events."""
    last: dict[str, Any] = {}
    stage = status.stage
    for event in events:
        if event.get("event") == "stage":
            stage = str(event.get("name", ""))
        elif event.get("event") == "progress":
            last = event
    return replace(
        status,
        stage=stage,
        step=last.get("step"),
        num_steps=last.get("num_steps"),
        loss=last.get("loss"),
        tokens_per_second=last.get("tokens_per_second"),
        supervised_tokens_per_second=last.get("supervised_tokens_per_second"),
        mfu=last.get("mfu"),
        seconds_left=last.get("seconds_left"),
    )
