"""Which model a training starts from when it goes on from the version that serves.

Every training that passes its gate makes another champion, so a nightly run on unchanged data would train on and on.
Each registered version therefore says what it was trained from. A run that would train the same again - from the
champion's own parent, on this data with these settings gives the very job that made the champion - starts from that
parent, adopts the job, and changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

from tasks.config import ModelConfig
from tasks.platforms.refs import BaseModelRef, EndpointStatus, JobSpec, ModelVersion, Origin


def choose_start(
    model: ModelConfig,
    base: BaseModelRef,
    champion: ModelVersion | None,
    spec_from: Callable[[BaseModelRef], JobSpec],
) -> BaseModelRef:
    """Decide what to start from, and say why.

    Args:
        base: what `model.base` names.
        spec_from: this run's training job, were it to start from another model.
    """
    if champion is None:
        return _because(base, "no version serves yet, so training starts from model.base")
    version = f"version {champion.version}, which serves"
    root, parent = read_lineage(champion, model, base)
    if root != _root(model):
        return _because(base, f"{version}, descends from {root}, and model.base is {_root(model)}")
    key = spec_from(parent).key
    if champion.job == key or champion.job.startswith(f"{key}-a"):
        return _because(parent, f"nothing changed: {version}, was trained from it on this data with these settings")
    return champion_as_base(champion, f"{version}, was trained on other data or with other settings")


def champion_as_base(champion: ModelVersion, reason: str) -> BaseModelRef:
    """A registered version as a model to start from."""
    return BaseModelRef(
        base=f"{champion.name}:{champion.version}",
        revision="",
        digest=champion.digest,
        location=champion.location,
        origin=Origin(reused=True, reason=reason),
    )


def serving_version(endpoint: EndpointStatus | None) -> str:
    """The version that has the endpoint's traffic now, or an empty string."""
    main = endpoint.traffic.main if endpoint else ""
    return next((d.model_version for d in endpoint.deployments if d.name == main), "") if endpoint else ""


def lineage_of(model: ModelConfig, parent: BaseModelRef) -> str:
    """What a version is registered with: `model.base` at the beginning of its line, and its parent, as JSON text."""
    told = {name: getattr(parent, name) for name in ("base", "revision", "digest", "location")}
    return json.dumps({"root": _root(model), "parent": told}, sort_keys=True)


def read_lineage(version: ModelVersion, model: ModelConfig, base: BaseModelRef) -> tuple[str, BaseModelRef]:
    """The beginning of a version's line, and its parent; of one registered without them, what `model.base` names."""
    told = json.loads(version.lineage)
    if not told:
        return _root(model), base
    origin = Origin(reused=True, reason=f"parent of version {version.version}")
    return told["root"], BaseModelRef(**told["parent"], origin=origin)


def _root(model: ModelConfig) -> str:
    return f"{model.base}@{model.revision}" if model.revision else model.base


def _because(start: BaseModelRef, reason: str) -> BaseModelRef:
    return replace(start, origin=Origin(reused=True, reason=reason))
