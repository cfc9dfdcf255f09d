"""What a run tells of its model beside the package: answers before and after, paired differences, curves."""

from __future__ import annotations

import base64
import json
import logging
import os
from typing import TYPE_CHECKING, Any

from trainer.curves import Curves, draw_curves
from trainer.files import write_atomic
from trainer.paired import METRICS, compare

if TYPE_CHECKING:
    from trainer.evaluate import Evaluation
    from trainer.job import Run

log = logging.getLogger(__name__)

_CURVES, _ANSWERS = "curves.png", "answers.json"


def tell_outcome(run: Run, base: Evaluation, candidate: Evaluation, curves: Curves) -> dict[str, Any]:
    """Leave answers and curves in the log folder and in MLflow, and return what result.json says of them."""
    answers = _answers(run, base, candidate)
    events, tracker = run.reporting.events, run.reporting.tracker
    samples = answers[: run.config.num_samples]
    for sample in samples:
        events.emit("sample", **sample)
        log.info("Asked %r answer=%r", sample["question"][:80], sample["answer"][:120])
    write_atomic(events.folder / _ANSWERS, json.dumps(answers, ensure_ascii=False, indent=1) + "\n")
    told = ("question", "expected", "base", "answer")
    tracker.table(_ANSWERS, [{name: answer[name] for name in told} for answer in answers])
    tracker.metrics(_all_metrics(base, candidate))
    return {
        "paired": {name: compare(name, candidate.per_example, base.per_example).to_dict() for name in METRICS},
        "samples": samples,
        "loss_curve": curves.to_dict()["loss"],
        "curves": {name: points for name, points in curves.to_dict().items() if name != "loss"},
        "curves_png": _picture(run, curves),
    }


def _answers(run: Run, base: Evaluation, candidate: Evaluation) -> list[dict[str, Any]]:
    answers = []
    for index in sorted(candidate.answers):
        chat = run.eval_chats[index]
        answer: dict[str, Any] = {"messages": list(chat.prompt)} | ({"tools": list(chat.tools)} if chat.tools else {})
        answer |= {"question": chat.question, "expected": chat.expected}
        answers.append(answer | {"base": base.answers.get(index, ""), "answer": candidate.answers[index]})
    return answers


def _all_metrics(base: Evaluation, candidate: Evaluation) -> dict[str, float]:
    return {
        f"{who}_{name}": float(value)
        for who, evaluation in (("base", base), ("candidate", candidate))
        for name, value in evaluation.metrics.items()
        if isinstance(value, float)
    }


def _picture(run: Run, curves: Curves) -> str | None:
    """The curves as a PNG in the log folder and in MLflow, and in base64 for reports; None where it cannot be drawn."""
    title = os.environ.get("PHIFLOW_JOB_NAME") or run.job.model_output_dir.name
    try:
        picture = draw_curves(curves, title)
    except Exception as error:  # a picture that fails costs no training
        log.warning("Drew no curves: %s: %s", type(error).__name__, error)
        return None
    path = run.reporting.events.folder / _CURVES
    write_atomic(path, picture)
    run.reporting.tracker.picture(_CURVES, picture)
    log.info("Drew curves file=%s", path)
    return base64.b64encode(picture).decode("ascii")
