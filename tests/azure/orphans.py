"""Plants in an emulated workspace what a sweep must find, and beside it what looks like it and must stay."""

from __future__ import annotations

import json
import re
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.config import PipelineConfig, ServingConfig
from tasks.config_files import build_config
from tasks.platforms.refs import EnvironmentRef, JobKind, ModelVersion, RolloutRecord
from tasks.platforms.upkeep import LeftoverKind
from tests.azure.workbench import ASSETS, ENDPOINTS, W, Workbench, until
from tests.azure_emulator.server import SCOPE
from tests.contract.places import MADE, NAME_FILE

ENDPOINT, COMPUTES = "support", "?api-version=2023-08-01-preview"
WANTED_RUN, ENDED_RUN = (str(uuid.uuid5(uuid.NAMESPACE_DNS, name)) for name in ("wanted", "ended"))
RETENTION = {"soak_hours": 24, "endpoint_hours": 1000, "checkpoint_hours": 48, "keep_last": 2}
ENDED_JOBS = ("support-5", "support-6", "support-7", "support-gone", "support-young")
_LONG = 100.0
_SERVING = ServingConfig()


def configuration(env: dict[str, str], home: str, **sections: Any) -> PipelineConfig:
    """A run on the emulator."""
    platform = {
        "kind": "azure",
        "subscription_id": env["AZURE_SUBSCRIPTION_ID"],
        "resource_group": env["AZURE_RESOURCE_GROUP"],
        "workspace": env["AZURE_ML_WORKSPACE"],
        "poll_seconds": 0.1,
        "home": home,
    }
    values: dict[str, Any] = {
        "name": "support",
        "platform": platform,
        "data": {"source": "chats.jsonl"},
        "endpoint": {"name": ENDPOINT},
        "compute": {"name": "busy-nodes", "size": "Standard_DS3_v2"},
        "retention": RETENTION,
    }
    return build_config(values | sections, "test")


class Planting:
    """One workspace, and what was planted in it.

    Attributes:
        orphans: kind and location of what must be found.
        bystanders: paths of resources, and of blobs, that must be left exactly as they are.
    """

    def __init__(self, bench: Workbench, platform: Any) -> None:
        self.bench = bench
        self.platform = platform
        self.storage = platform.workspace.storage
        self.orphans: set[tuple[LeftoverKind, str]] = set()
        self.bystanders: list[str] = []
        self.blobs: list[str] = []

    def plant(self) -> None:
        """Everything, the older things first."""
        self.bench.put(f"environments/stand-in/versions/1{ASSETS}", environment())
        self._clusters()
        self._environments()
        self._jobs()
        self._models()
        self._endpoints()
        self._files()
        for name in ENDED_JOBS:
            assert self.bench.ended(name) == "Completed"
        self.bench.age(f"{W}/jobs/support-gone", _LONG)

    def snapshot(self) -> dict[str, Any]:
        """The bystanders as they are now."""
        shown = {path: self.bench.read(path) for path in self.bystanders}
        for path in (path for path in shown if "/jobs/" in path):
            shown[path]["properties"].pop("status")
        return shown | {path: self.storage.read(path) for path in self.blobs}

    def _stays(self, path: str) -> None:
        self.bystanders.append(path)

    def _found(self, kind: LeftoverKind, location: str) -> None:
        self.orphans.add((kind, location))

    # What bills

    def _clusters(self) -> None:
        for name, tags in (("idle-nodes", OURS), ("busy-nodes", OURS), ("their-nodes", {})):
            inner = {"vmSize": "STANDARD_DS3_V2", "scaleSettings": {"minNodeCount": 1, "maxNodeCount": 4}}
            body = {
                "location": SCOPE.location,
                "tags": tags,
                "properties": {"computeType": "AmlCompute", "properties": inner},
            }
            self.bench.put(f"computes/{name}{COMPUTES}", body)
            path = f"{W}/computes/{name}{COMPUTES}"
            until(lambda path=path: self.bench.read(path)["properties"]["provisioningState"] == "Succeeded")
            self.bench.age(f"{W}/computes/{name}", _LONG)
        self._found(LeftoverKind.CLUSTER, "idle-nodes")
        self._stays(f"{W}/computes/busy-nodes{COMPUTES}")
        self._stays(f"{W}/computes/their-nodes{COMPUTES}")

    def _jobs(self) -> None:
        self.job(
            "support-live",
            WANTED_RUN,
            data="data-of-a-job",
            environmentId=f"{W}/environments/phiflow-plain/versions/e2",
        )
        self.job("support-abandoned", ENDED_RUN)
        self._found(LeftoverKind.JOB, "support-abandoned")
        theirs = self.bench.job("sleep 600", f"{W}/computes/busy-nodes")
        self.bench.submit("support-theirs", theirs)
        for name in ("support-live", "support-theirs"):
            self._stays(f"{W}/jobs/{name}?api-version=2024-01-01-preview")
        for name in ENDED_JOBS:
            self.job(name, ENDED_RUN, command="true")

    def job(self, name: str, run: str, *, command: str = "sleep 600", data: str = "d", **more: Any) -> None:
        """Submit a job as phiflow tags it."""
        tags = {
            **OURS,
            "phiflow.key": name,
            "phiflow.attempt": "1",
            "phiflow.kind": str(JobKind.TRAINING),
            "phiflow.data": data,
            "phiflow.name": "support",
            "phiflow.of.support": "1",
            f"phiflow.of.{run}": "1",
        }
        self.bench.submit(name, self.bench.job(command, f"{W}/computes/busy-nodes", tags=tags, **more))

    def _endpoints(self) -> None:
        platform = self.platform
        for name in (ENDPOINT, "rolling", "stale", "frozen"):
            platform.ensure_endpoint(name)
        body = self.bench.read(f"{W}/onlineEndpoints/stale{ENDPOINTS}")
        theirs = {"location": SCOPE.location, "properties": {"authMode": "Key"}, "identity": {"type": "SystemAssigned"}}
        self.bench.put(f"onlineEndpoints/theirs{ENDPOINTS}", theirs)
        assert body["tags"] == OURS
        unused, target, serving = (self.deploy(ENDPOINT, number) for number in ("6", "4", "5"))
        candidate = self.deploy("rolling", "7")
        for endpoint, name in ((ENDPOINT, unused), (ENDPOINT, target), (ENDPOINT, serving), ("rolling", candidate)):
            until(lambda at=(endpoint, name): platform.read_deployment(*at).state == "ready")
        self._deploy_theirs(unused)
        platform.set_traffic(ENDPOINT, {target: 100}, "test")
        platform.set_traffic(ENDPOINT, {serving: 100}, "test")
        self._age_history(60)
        record = RolloutRecord(run_id=WANTED_RUN, candidate=candidate, traffic_before=())
        platform.record_rollout("rolling", record)
        platform.freeze_endpoint("frozen", "by hand")
        for path in (unused, target, serving, "theirs"):
            self.bench.age(f"{W}/onlineEndpoints/{ENDPOINT}/deployments/{path}", _LONG)
        self.bench.age(f"{W}/onlineEndpoints/rolling/deployments/{candidate}", _LONG)
        for name in ("stale", "frozen", "theirs"):
            until(lambda name=name: self._state(f"onlineEndpoints/{name}") == "Succeeded")
            self.bench.age(f"{W}/onlineEndpoints/{name}", 2000)
        self._found(LeftoverKind.ENDPOINT, "stale")
        self._found(LeftoverKind.DEPLOYMENT, f"{ENDPOINT}/{unused}")
        stay = [f"{ENDPOINT}/deployments/{name}" for name in (target, serving, "theirs")]
        for path in (*stay, f"rolling/deployments/{candidate}", ENDPOINT, "rolling", "frozen", "theirs"):
            self._stays(f"{W}/onlineEndpoints/{path}{ENDPOINTS if '/' not in path else ASSETS}")

    def deploy(self, endpoint: str, number: str) -> str:
        """Begin a deployment of a version; its name."""
        environment = EnvironmentRef(name="stand-in", version="1", location="azureml:stand-in:1", origin=MADE)
        deployment = self.platform.deploy(endpoint, self._version(number), _SERVING, environment)
        return str(deployment.name)

    def _deploy_theirs(self, like: str) -> None:
        """A deployment without our tag, made by hand on our endpoint."""
        path = f"onlineEndpoints/{ENDPOINT}/deployments"
        body = self.bench.read(f"{W}/{path}/{like}{ASSETS}")
        body["properties"].pop("provisioningState")
        theirs = {key: body[key] for key in ("location", "sku", "properties")}
        self.bench.put(f"{path}/theirs{ASSETS}", theirs)
        until(lambda: self._state(f"{path}/theirs") == "Succeeded")

    def _state(self, path: str) -> str:
        return str(self.bench.read(f"{W}/{path}{ASSETS}")["properties"]["provisioningState"])

    def _age_history(self, hours: float) -> None:
        """As if the traffic had been moved that much earlier."""
        path = f"phiflow/endpoints/{ENDPOINT}.json"
        notes = json.loads(self.storage.read(path))
        earlier = (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="seconds")
        notes["history"] = [re.sub(r"^\S+", earlier, line) for line in notes["history"]]
        self.storage.write(path, json.dumps(notes).encode())

    # What is kept in versions

    def _environments(self) -> None:
        versions = [("phiflow-plain", name) for name in ("e0", "e1", "e2", "e3", "e4")]
        for age, (name, version) in enumerate(reversed([*versions, *(("phiflow-other", f"o{n}") for n in (1, 2, 3))])):
            body = environment({} if version == "e0" else OURS)
            self.bench.put(f"environments/{name}/versions/{version}{ASSETS}", body)
            self.bench.age(f"{W}/environments/{name}/versions/{version}", _LONG + age)
        for location in ("phiflow-plain:e1", "phiflow-other:o1"):
            self._found(LeftoverKind.ENVIRONMENT, location)
        for version in ("e0", "e2", "e3", "e4"):
            self._stays(f"{W}/environments/phiflow-plain/versions/{version}{ASSETS}")

    def _models(self) -> None:
        """Versions 6 and 7 are the last; 5 serves, 4 may be rolled back to, 2 was rejected, 8 is not ours."""
        for number in range(1, 9):
            path = f"phiflow/jobs/support-{number}/model"
            self.storage.write(f"{path}/{NAME_FILE}", str(number).encode())
            tags = {
                **OURS,
                "phiflow.job": f"support-{number}",
                "phiflow.data": f"data-of-{number}",
                "phiflow.digest": "d",
            }
            if number == 2:
                tags["phiflow.rejected"] = "worse"
            properties = {"modelUri": self.storage.uri(path), "modelType": "custom_model"}
            body = {"properties": {**properties, "tags": tags if number != 8 else {}}}
            self.bench.put(f"models/support/versions/{number}{ASSETS}", body)
            self.bench.age(f"{W}/models/support/versions/{number}", _LONG - number)
        for number in (1, 3):
            self._found(LeftoverKind.MODEL, f"support:{number}")
        for number in (2, 4, 5, 6, 7, 8):
            self._stays(f"{W}/models/support/versions/{number}{ASSETS}")
            self.blobs.append(f"phiflow/jobs/support-{number}/model/{NAME_FILE}")

    def _version(self, number: str) -> ModelVersion:
        location = self.storage.uri(f"phiflow/jobs/support-{number}/model")
        return ModelVersion(
            name="support",
            version=number,
            digest=number * 64,
            job=f"support-{number}",
            data_digest="d",
            location=location,
            origin=MADE,
        )

    def _files(self) -> None:
        """Checkpoints and data; two of each are the last."""
        older = {
            "phiflow/checkpoints/support-5/checkpoint-1/x": (LeftoverKind.CHECKPOINTS, "phiflow/checkpoints/support-5"),
            "phiflow/checkpoints/support-gone/checkpoint-1/x": (
                LeftoverKind.CHECKPOINTS,
                "phiflow/checkpoints/support-gone",
            ),
            "phiflow/checkpoints/support-young/checkpoint-1/x": None,
            "phiflow/checkpoints/support-live/checkpoint-1/x": None,
            "phiflow/data/data-of-1/manifest.json": (LeftoverKind.DATA, "phiflow/data/data-of-1"),
            "phiflow/data/data-of-nobody/manifest.json": (LeftoverKind.DATA, "phiflow/data/data-of-nobody"),
            "phiflow/data/data-of-5/manifest.json": None,
            "phiflow/data/data-of-a-job/manifest.json": None,
            "phiflow/data-keys/k5.json": None,
            "data/data-of-nobody/manifest.json": None,
            "checkpoints/support-gone/checkpoint-1/x": None,
        }
        newer = ("checkpoints/support-6/checkpoint-1/x", "checkpoints/support-7/checkpoint-1/x")
        newer += ("data/data-of-6/manifest.json", "data/data-of-7/manifest.json")
        for path, orphan in older.items():
            self.storage.write(path, json.dumps({"digest": "data-of-5"}).encode())
            if orphan:
                self._found(*orphan)
            else:
                self.blobs.append(path)
        self.storage.write("phiflow/data-keys/k1.json", json.dumps({"digest": "data-of-1"}).encode())
        last = max(blob.modified for blob in self.storage.blobs("phiflow/"))
        for path in newer:
            self.blobs.append(f"phiflow/{path}")
            self._write_later(f"phiflow/{path}", last)

    def _write_later(self, path: str, last: datetime) -> None:
        """Storage tells whole seconds."""
        deadline = time.monotonic() + 10
        while True:
            self.storage.write(path, b"{}")
            if self.storage.blobs(path)[0].modified > last:
                return
            assert time.monotonic() < deadline
            time.sleep(0.1)


OURS = {"phiflow": "1"}


def environment(tags: dict[str, str] | None = None) -> dict[str, Any]:
    """An environment without packages."""
    route = {"path": "/", "port": 5001}
    routes = {"livenessRoute": route, "readinessRoute": route, "scoringRoute": route}
    image = "mcr.microsoft.com/azureml/openmpi5.0-ubuntu24.04:20260901.v1"
    return {"properties": {"image": image, "inferenceConfig": routes, "tags": tags or {}}}


def outcomes(told: dict[str, Any]) -> dict[tuple[str, str], str]:
    """What became of each leftover, by its kind and name."""
    return {(one["kind"], one["name"]): one["outcome"] for one in told["leftovers"]}
