"""Jobs of a workspace: submitted by name, adopted by name, read from run history and storage.

The service keeps what a job is as its tags. What it leaves is below `phiflow/` in the default datastore:
`jobs/<job>/model` and `jobs/<job>/result`, and `checkpoints/<key>` for all attempts under a key.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.failures import Diagnosis, diagnose
from tasks.platforms.azure.job_request import CHECKPOINTS, EVENTS, JOBS, command_job, write_snapshot
from tasks.platforms.azure.resources import SWEPT
from tasks.platforms.azure.run_history import RunDetails, RunHistory
from tasks.platforms.azure.secrets import clean
from tasks.platforms.azure.stages import COMMAND, stage_of
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import ConfigError, ConflictError, JobFailedError, NotFoundError, PhiflowError
from tasks.platforms.events import parse_events, with_progress
from tasks.platforms.refs import JobKind, JobRef, JobSpec, JobState, JobStatus, Origin

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

_log = logging.getLogger(__name__)
_API = "2024-01-01-preview"
_CANCEL_API = "2023-04-01-preview"
_SUBMIT_SECONDS = 180
_ENDED = {"Completed": JobState.COMPLETED, "Failed": JobState.FAILED, "Canceled": JobState.CANCELLED}
_CHECKPOINT = re.compile(r"/checkpoint-(\d+)/")
# A cluster that cannot grow says why on itself alone; a job in its queue goes on waiting.
_LOOK_AT_CLUSTER_SECONDS = 30.0


class Jobs:
    """The jobs of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._history = RunHistory(workspace)
        self._cluster_trouble: dict[str, tuple[float, str]] = {}

    def submit(self, spec: JobSpec, run_id: str) -> JobRef:
        """Start the next attempt, unless one runs or has completed."""
        if adopted := self._adopt(spec, run_id):
            return adopted
        # Whoever finds nothing starts it under this lease, so two that start at once start one.
        with self._workspace.storage.lease(f"{JOBS}/{spec.key}.lease", run_id, _SUBMIT_SECONDS):
            last = self._last(spec.key)
            if last is None:
                return self._start(spec, 1, run_id, "there was no job with this content")
            if adopted := self._adopt(spec, run_id):
                return adopted
            attempt, status = _ref(last).attempt, self.read(_ref(last))
            step = self._last_checkpoint(spec.key)
            start = f"starts from checkpoint step {step}" if step else "starts from the base model"
            reason = f"attempt {attempt} {status.state} ({status.error}); attempt {attempt + 1} {start}"
            return self._start(spec, attempt + 1, run_id, reason)

    def latest(self, key: str) -> JobRef | None:
        """The last attempt under a key."""
        last = self._last(key)
        return _ref(last) if last else None

    def find(self, name: str) -> JobRef | None:
        """A job of phiflow's by its name; None when there is none."""
        found = self._find(name) if name else None
        return _ref(found) if found and "phiflow.key" in _tags(found) else None

    def tag(self, name: str, tags: Mapping[str, str]) -> None:
        """Add tags to those that a job has."""
        self._history.add_tags(name, tags)

    def running(self, run: str = "") -> tuple[JobRef, ...]:
        """Jobs that have not ended, all or those of one run, by its id or its configuration's name."""
        tag = _label(run) if run else "phiflow"
        return tuple(_ref(job) for job in self._list(tag) if _status(job) not in _ENDED)

    def read(self, job: JobRef) -> JobStatus:
        """Say what a job is doing; one look at run history, and at the trainer's events while it trains."""
        try:
            details = self._history.details(job.name)
        except NotFoundError:
            self._get(job.name)  # raises when there is no such job; else run history has yet to hear of it
            return JobStatus(state=JobState.QUEUED, stage="accepted by the service")
        state = _ENDED.get(details.status)
        if state == JobState.COMPLETED and SWEPT in _tags(self._get(job.name)):
            return JobStatus(state=JobState.FAILED, error="a sweep has deleted its model")
        if state == JobState.FAILED:
            return self._failed(job, details)
        if state == JobState.CANCELLED:
            return self._cancelled(job, details)
        status = stage_of(details) if state is None else JobStatus(state=state)
        if job.kind == JobKind.EVALUATION and status.stage == COMMAND:
            return replace(status, stage="evaluating")
        if status.state == JobState.QUEUED and details.compute:
            return self._with_cluster_trouble(status, details.compute)
        if status.state in (JobState.RUNNING, JobState.COMPLETED) and job.kind == JobKind.TRAINING:
            told = with_progress(status, self._events(job, details))
            # What the service does after the command has ended is no stage of the trainer.
            return replace(told, stage=status.stage) if details.status not in ("Running", "Completed") else told
        return status

    def cancel(self, job: JobRef, by: str = "phiflow") -> None:
        """Ask for the job's end; the trainer uses the service's grace to write a checkpoint."""
        path = f"{self._id(job.name)}/cancel"
        if _status(self._get(job.name)) in _ENDED:
            return
        self._history.add_tags(job.name, {"phiflow.cancelled_by": by})
        self._workspace.send("POST", path, params={"api-version": _CANCEL_API}, what=f"Job {job.name}", idempotent=True)

    def result(self, job: JobRef) -> dict[str, Any]:
        """`result.json` of the job, with where its model lies in the workspace's storage."""
        path = f"{JOBS}/{job.name}/result/result.json"
        try:
            result: dict[str, Any] = json.loads(self._workspace.storage.read(path))
        except NotFoundError as error:
            raise JobFailedError(
                f"Job {job.name} left no result.", fix=f"Look at {job.url}, and run the same command again."
            ) from error
        result["model_location"] = self._workspace.storage.uri(f"{JOBS}/{job.name}/model")
        result["result_file"] = self._workspace.storage.uri(path)
        # The job is its own run in the workspace's MLflow.
        result["mlflow_run_id"] = result.get("mlflow_run_id") or job.name
        return result

    def events(self, job: JobRef) -> tuple[dict[str, Any], ...]:
        """The trainer's events so far."""
        return tuple(self._events(job, self._history.details(job.name)))

    # What there is

    def _adopt(self, spec: JobSpec, run_id: str) -> JobRef | None:
        """The attempt that has completed, or that goes on; None when another must be started."""
        last = self._last(spec.key)
        if last is None:
            return None
        job, state = _ref(last), _ENDED.get(_status(last))
        if state == JobState.COMPLETED and SWEPT not in _tags(last):
            return _with_reason(job, f"job {job.name} has completed with the same content")
        if state is not None:
            return None
        if _label(run_id) not in _tags(last):
            self._history.add_tags(job.name, {_label(run_id): "1"})
        return _with_reason(job, f"job {job.name} is {_status(last).lower()}: adopted")

    def _last(self, key: str) -> dict[str, Any] | None:
        """The resource of the last attempt; attempts follow one another without a gap."""
        last, attempt = None, 1
        while found := self._find(_name(key, attempt)):
            last, attempt = found, attempt + 1
        return last

    def _find(self, name: str) -> dict[str, Any] | None:
        try:
            return self._get(name)
        except NotFoundError:
            return None

    def _get(self, name: str) -> dict[str, Any]:
        response = self._workspace.send("GET", self._id(name), params={"api-version": _API}, what=f"Job {name}")
        job: dict[str, Any] = response.json()
        return job

    def _list(self, tag: str) -> Iterator[dict[str, Any]]:
        url = f"{self._workspace.resource_id}/jobs"
        params: dict[str, str] | None = {"api-version": _API, "tag": tag, "listViewType": "All"}
        while url:
            page = self._workspace.send("GET", url, params=params, what="The workspace's jobs").json()
            yield from (job for job in page.get("value") or () if "phiflow.key" in _tags(job))
            url, params = str(page.get("nextLink") or ""), None

    def _id(self, name: str) -> str:
        return f"{self._workspace.resource_id}/jobs/{name}"

    def _events(self, job: JobRef, details: RunDetails) -> list[dict[str, Any]]:
        return parse_events(self._history.follow(job.name, details, EVENTS))

    def _last_checkpoint(self, key: str) -> int | None:
        found = (_CHECKPOINT.search(name) for name in self._workspace.storage.names(f"{CHECKPOINTS}/{key}/"))
        return max((int(match[1]) for match in found if match), default=None)

    # What begins

    def _start(self, spec: JobSpec, attempt: int, run_id: str, reason: str) -> JobRef:
        name = _name(spec.key, attempt)
        tags = {
            "phiflow": "1",
            "phiflow.key": spec.key,
            "phiflow.attempt": str(attempt),
            "phiflow.kind": str(spec.kind),
            "phiflow.data": spec.data.digest,
            "phiflow.name": spec.run_name,
            _label(spec.run_name): "1",
            _label(run_id): "1",
        }
        try:
            with tempfile.TemporaryDirectory(prefix="phiflow-") as folder, translated(f"Job {name}"):
                code = write_snapshot(spec, Path(folder))
                job = command_job(self._workspace, spec, name, tags, code)
                submitted = self._workspace.ml.jobs.create_or_update(job)
        except ConfigError:
            raise
        except PhiflowError as error:
            return self._after_refusal(name, spec, run_id, reason, error)
        _log.info("Submitted job name=%s compute=%s", name, spec.compute.name)
        return _with_reason(_made(spec, name, attempt, submitted.studio_url or ""), reason, reused=False)

    def _after_refusal(self, name: str, spec: JobSpec, run_id: str, reason: str, error: PhiflowError) -> JobRef:
        """The job when it is there all the same: the answer was lost, or another was faster."""
        found = self._find(name)
        if found is None:
            raise error
        _require_ours(found, spec.key)
        ours = _label(run_id) in _tags(found)
        if not ours:
            self._history.add_tags(name, {_label(run_id): "1"})
        _log.info("Found job name=%s although its submission failed: %s", name, error.message)
        return _with_reason(
            _ref(found), reason if ours else f"job {name} was submitted by another run: adopted", reused=not ours
        )

    # How it ended

    def _failed(self, job: JobRef, details: RunDetails) -> JobStatus:
        told = diagnose(details.code, details.message, tuple(details.logs), self._said(job))
        return _ended(JobState.FAILED, told, self._history.tail(job.name, details, told.log) if told.log else ())

    def _cancelled(self, job: JobRef, details: RunDetails) -> JobStatus:
        resource = self._get(job.name)
        if by := _tags(resource).get("phiflow.cancelled_by"):
            return JobStatus(state=JobState.CANCELLED, error=f"cancelled by {by}")
        if "user_logs/time_limit.txt" in details.logs or "timeout" in details.message.lower():
            limit = ((resource["properties"].get("limits") or {}).get("timeout")) or "its limit"
            return JobStatus(
                state=JobState.FAILED,
                error=f"it ran longer than {limit}",
                fix="Raise compute.timeout_seconds; the next attempt continues from the last checkpoint.",
            )
        return JobStatus(state=JobState.CANCELLED, error=clean(details.message) or "cancelled in the workspace")

    def _said(self, job: JobRef) -> dict[str, Any] | None:
        """The trainer's own account of its failure."""
        try:
            said = json.loads(self._workspace.storage.read(f"{JOBS}/{job.name}/result/error.json"))
        except (PhiflowError, ValueError):  # it explains a failure, and must not replace it
            return None
        return said if isinstance(said, dict) else None

    def _with_cluster_trouble(self, status: JobStatus, compute: str) -> JobStatus:
        looked, trouble = self._cluster_trouble.get(compute, (0.0, ""))
        if time.monotonic() - looked > _LOOK_AT_CLUSTER_SECONDS or not looked:
            trouble = self._read_cluster_trouble(compute)
            self._cluster_trouble[compute] = (time.monotonic(), trouble)
        if not trouble:
            return status
        told = diagnose("", trouble, (), None)
        return replace(
            status, stage=f"{status.stage}: {trouble}", error=told.cause, fix=told.fix, failure=str(told.failure)
        )

    def _read_cluster_trouble(self, compute: str) -> str:
        url = f"{self._workspace.resource_id}/computes/{compute}"
        try:
            found = self._workspace.send("GET", url, params={"api-version": _API}, what=f"Compute cluster {compute}")
        except PhiflowError:  # a look at why a job waits must not end the wait
            return ""
        cluster = found.json()["properties"]
        errors = [*(cluster.get("provisioningErrors") or ()), *((cluster.get("properties") or {}).get("errors") or ())]
        told = [entry.get("error") or entry for entry in errors]
        return clean("; ".join(f"{error.get('code', '')}: {error.get('message', '')}" for error in told))


def _ended(state: JobState, told: Diagnosis, tail: tuple[str, ...]) -> JobStatus:
    return JobStatus(
        state=state,
        error=told.cause,
        fix=told.fix,
        failure=str(told.failure),
        is_input_error=told.is_input_error,
        log_tail=(f"Last lines of {told.log}:", *tail) if tail else (),
    )


def _name(key: str, attempt: int) -> str:
    return key if attempt == 1 else f"{key}-a{attempt}"


def _label(run: str) -> str:
    """The tag by which the jobs of a run, or of a configuration, are listed: the service finds tags by key alone."""
    return f"phiflow.of.{run}"


def _tags(job: Mapping[str, Any]) -> dict[str, str]:
    return job["properties"].get("tags") or {}


def _status(job: Mapping[str, Any]) -> str:
    return str(job["properties"].get("status") or "")


def _require_ours(job: Mapping[str, Any], key: str) -> None:
    if _tags(job).get("phiflow.key") != key:
        raise ConflictError(
            f"The workspace has a job {job['name']} that phiflow did not submit.", fix="Change `name`, or delete it."
        )


def _ref(job: Mapping[str, Any]) -> JobRef:
    tags = _tags(job)
    _require_ours(job, tags.get("phiflow.key") or "?")
    studio = (job["properties"].get("services") or {}).get("Studio") or {}
    return JobRef(
        name=str(job["name"]),
        key=tags["phiflow.key"],
        attempt=int(tags["phiflow.attempt"]),
        kind=JobKind(tags["phiflow.kind"]),
        data_digest=tags["phiflow.data"],
        url=str(studio.get("endpoint") or ""),
        origin=Origin(reused=True, reason="found"),
    )


def _made(spec: JobSpec, name: str, attempt: int, url: str) -> JobRef:
    return JobRef(
        name=name,
        key=spec.key,
        attempt=attempt,
        kind=spec.kind,
        data_digest=spec.data.digest,
        url=url.partition("&tid=")[0],  # the SDK adds whose tenant it signed in to
        origin=Origin(reused=False, reason="submitted now"),
    )


def _with_reason(job: JobRef, reason: str, *, reused: bool = True) -> JobRef:
    return replace(job, origin=Origin(reused=reused, reason=reason))
