"""Values as JSON documents: what `--json` prints. No Prefect here, so that looking is fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.platforms.refs import DataManifest, EndpointStatus, ModelVersion

_SHOWN_REJECTS = 100
_SHOWN_SOURCES = 100


def data_document(data: DataManifest) -> dict[str, Any]:
    """The prepared data, with the rejected records by file, line and reason."""
    manifest = json.loads(Path(data.manifest_file).read_text(encoding="utf-8"))
    return {
        "sha256": data.digest,
        "counts": manifest.get("counts", {}) | {"train": data.num_train, "test": data.num_test},
        "sources": manifest.get("sources", [])[:_SHOWN_SOURCES],
        "is_deduplicated": manifest.get("is_deduplicated", False),
        "num_rejected": data.num_rejected,
        "rejected": manifest["rejected"][:_SHOWN_REJECTS],
        "train_file": data.train_file,
        "test_file": data.test_file,
    }


def model_document(model: ModelVersion | None) -> dict[str, Any] | None:
    """A model version for a JSON document."""
    if model is None:
        return None
    return {
        "name": model.name,
        "version": model.version,
        "digest": model.digest,
        "rejected": model.rejected,
        "job": model.job,
    }


def endpoint_document(endpoint: EndpointStatus | None) -> dict[str, Any] | None:
    """An endpoint for a JSON document."""
    if endpoint is None:
        return None
    return {
        "name": endpoint.name,
        "url": endpoint.url,
        "deployments": [
            {"name": d.name, "model_version": d.model_version, "state": d.state, "percent": d.percent}
            for d in endpoint.deployments
        ],
        "traffic": dict(endpoint.traffic.percents),
        "frozen": endpoint.frozen,
    }
