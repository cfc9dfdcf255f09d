"""Stage: the model registry."""

from __future__ import annotations

import json

from tasks.config import PipelineConfig
from tasks.evaluation import summary
from tasks.lineage import lineage_of
from tasks.platforms.connect import connect
from tasks.platforms.refs import GateReport, JobSpec, ModelVersion, TrainingResult
from tasks.step import log, step


@step()
def register_model(config: PipelineConfig, spec: JobSpec, result: TrainingResult, gate: GateReport) -> ModelVersion:
    """Register the model that passed the gate, or adopt the version with the same content."""
    assert gate.passed and gate.model_digest == result.model_digest
    model = connect(config.platform).register_model(
        config.model_name,
        result.job,
        result.model_location,
        result.model_digest,
        json.dumps(summary(gate)),
        lineage_of(config.model, spec.model),
    )
    log().info("Registered model name=%s version=%s digest=%s", model.name, model.version, model.digest[:12])
    return model
