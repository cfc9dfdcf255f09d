"""Stage: the model registry."""

from __future__ import annotations

import json

from tasks.config import PlatformConfig
from tasks.evaluation import summary
from tasks.platforms.connect import connect
from tasks.platforms.refs import GateReport, ModelVersion, TrainingResult
from tasks.step import log, step


@step()
def register_model(place: PlatformConfig, name: str, result: TrainingResult, gate: GateReport) -> ModelVersion:
    """Register the model that passed the gate, or adopt the version with the same content."""
    assert gate.passed and gate.model_digest == result.model_digest
    model = connect(place).register_model(
        name, result.job, result.model_location, result.model_digest, json.dumps(summary(gate))
    )
    log().info("Registered model name=%s version=%s digest=%s", model.name, model.version, model.digest[:12])
    return model
