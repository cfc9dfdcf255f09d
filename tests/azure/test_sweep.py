"""The sweep of an emulated workspace, through the real SDK: what nobody uses is found and deleted, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

pytest.importorskip("azure.ai.ml", reason="the packages for Azure are not installed")

from tasks.platforms.connect import connect
from tasks.platforms.errors import ConflictError
from tasks.platforms.refs import RolloutRecord
from tasks.platforms.upkeep import Leftover, LeftoverKind
from tests.azure.orphans import ENDED_RUN, ENDPOINT, WANTED_RUN, Planting, configuration, outcomes
from tests.azure.workbench import ASSETS, W, Workbench
from tests.contract.conftest import emulator_process, reached
from tests.contract.places import MADE, server_source


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A workspace with orphans and bystanders; and the configuration that sweeps it."""
    folder = tmp_path_factory.mktemp("sweep")
    with emulator_process(folder, "--server-source", str(server_source(folder))) as process, reached(process.env):
        config = configuration(process.env, str(folder / "home"))
        planting = Planting(Workbench(process), connect(config.platform))
        planting.plant()
        yield planting, config


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, datetime | None]:
    """What the Prefect server would say of the runs; asked for real in tests/flows."""
    from flows import runs

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    ends: dict[str, datetime | None] = {WANTED_RUN: None, ENDED_RUN: datetime.now(UTC) - timedelta(hours=5)}
    monkeypatch.setattr(runs, "ends_of_runs", lambda ids: {run: ends[run] for run in ids if run in ends})
    return ends


def found(planting: Planting, config: Any) -> set[tuple[LeftoverKind, str]]:
    """Kind and location of what the platform finds, but for jobs, of which it cannot know who wants them."""
    leftovers = planting.platform.find_leftovers(config)
    return {(one.kind, one.location) for one in leftovers if one.kind != LeftoverKind.JOB}


def test_twelve_orphans_are_found_and_nothing_else(planted: Any, runs: Any) -> None:
    """Of 12 orphans and more than 12 things like them, the 12 are found, each with its reason and what it costs."""
    from flows.leftovers import sweep_place

    planting, config = planted
    assert len(planting.orphans) == 12
    assert len(planting.bystanders) + len(planting.blobs) > 24
    jobs = {orphan for orphan in planting.orphans if orphan[0] == LeftoverKind.JOB}
    assert found(planting, config) == planting.orphans - jobs
    told = sweep_place(config, delete=False)
    assert len(told["leftovers"]) == 12, told
    assert [one["name"] for one in told["leftovers"] if one["kind"] == "job"] == ["support-abandoned"]
    by_kind = {one["kind"]: one for one in told["leftovers"]}
    assert by_kind["cluster"]["dollars_an_hour"] > 0
    assert "1 x STANDARD_DS3_V2" in by_kind["cluster"]["cost"]
    assert "no traffic for 4 days" in by_kind["deployment"]["reason"]
    assert "retention.endpoint_hours 1000" in by_kind["endpoint"]["reason"]
    assert "retention.keep_last" in by_kind["model"]["reason"]
    assert by_kind["job"]["reason"].endswith("its last run ended 5.0 h ago")


def test_jobs_of_runs_that_go_on_or_are_unknown_stay(planted: Any, runs: Any) -> None:
    """A job is nobody's only when every run that wants it is known and ended long ago."""
    from flows.leftovers import sweep_place

    _, config = planted
    runs[ENDED_RUN] = datetime.now(UTC) - timedelta(hours=1)
    assert ("job", "support-abandoned") not in outcomes(sweep_place(config, delete=False))
    runs.pop(ENDED_RUN)
    told = sweep_place(config, delete=False)
    assert ("job", "support-abandoned") not in outcomes(told)
    assert "support-abandoned goes on; this Prefect server does not know run" in told["kept"][0]


def leftover(kind: LeftoverKind, location: str) -> Leftover:
    """As an earlier look found it."""
    return Leftover(kind=kind, name=location, reason="found earlier", location=location)


def test_what_is_in_use_again_is_not_deleted(planted: Any) -> None:
    """Deleting looks again: what serves, is in a rollout, is leased, frozen, busy, rejected or not ours stays."""
    planting, _ = planted
    platform, before = planting.platform, planting.snapshot()
    (unused,) = (location for kind, location in planting.orphans if kind == LeftoverKind.DEPLOYMENT)
    status = platform.read_endpoint(ENDPOINT)
    assert status is not None
    refused = [
        (LeftoverKind.DEPLOYMENT, f"{ENDPOINT}/{status.traffic.main}", "takes 100 % of the traffic"),
        (LeftoverKind.DEPLOYMENT, f"{ENDPOINT}/theirs", "not made by phiflow"),
        (LeftoverKind.ENDPOINT, "frozen", "is frozen: by hand"),
        (LeftoverKind.ENDPOINT, "rolling", "has a rollout"),
        (LeftoverKind.ENDPOINT, "theirs", "not made by phiflow"),
        (LeftoverKind.CLUSTER, "busy-nodes", "has a job again"),
        (LeftoverKind.CLUSTER, "their-nodes", "not made by phiflow"),
        (LeftoverKind.MODEL, "support:2", "was rejected, and stays as evidence: worse"),
        (LeftoverKind.MODEL, "support:5", "in use again"),
        (LeftoverKind.CHECKPOINTS, "phiflow/checkpoints/support-live", "an attempt has not ended"),
        (LeftoverKind.ENVIRONMENT, "phiflow-plain:e2", "in use again"),
        (LeftoverKind.DATA, "phiflow/data/data-of-a-job", "in use again"),
    ]
    for kind, location, reason in refused:
        with pytest.raises(ConflictError, match=reason):
            platform.remove_leftover(leftover(kind, location))
    platform.record_rollout(ENDPOINT, RolloutRecord(run_id="r", candidate=unused.split("/")[1], traffic_before=()))
    with pytest.raises(ConflictError, match="part of a rollout again"):
        platform.remove_leftover(leftover(LeftoverKind.DEPLOYMENT, unused))
    platform.record_rollout(ENDPOINT, None)
    assert planting.snapshot() == before


def test_endpoint_that_a_run_changes_is_left_alone(planted: Any) -> None:
    """While a run holds the lease, nothing of its endpoint is found."""
    planting, config = planted
    kinds = {LeftoverKind.DEPLOYMENT, LeftoverKind.ENDPOINT}
    with planting.platform.lease_endpoint(ENDPOINT, "a run", 1), planting.platform.lease_endpoint("stale", "a run", 1):
        assert not [one for one in found(planting, config) if one[0] in kinds]
    assert len([one for one in found(planting, config) if one[0] in kinds]) == 2


def test_swept_workspace_has_the_bystanders_alone(planted: Any, runs: Any) -> None:
    """`--delete` deletes the 12 and says so; the others are as before to the byte, and a second sweep finds nothing."""
    from flows.leftovers import sweep_place

    planting, config = planted
    before = planting.snapshot()
    told = sweep_place(config, delete=True)
    assert set(outcomes(told).values()) == {"deleted"}, told
    assert len(told["leftovers"]) == 12
    assert planting.snapshot() == before
    bench, storage = planting.bench, planting.storage
    assert bench.ended("support-abandoned") == "Canceled"
    cluster = bench.read(f"{W}/computes/idle-nodes?api-version=2023-08-01-preview")
    assert cluster["properties"]["properties"]["scaleSettings"]["minNodeCount"] == 0
    assert bench.emulator.send("GET", f"{W}/models/support/versions/1{ASSETS}").status_code == 404
    archived = bench.read(f"{W}/environments/phiflow-plain/versions/e1{ASSETS}")
    assert archived["properties"]["isArchived"] is True
    gone = ("jobs/support-1/model", "checkpoints/support-gone", "data/data-of-1", "data-keys/k1")
    assert [storage.names(f"phiflow/{path}") for path in gone] == [[], [], [], []]
    assert outcomes(sweep_place(config, delete=True)) == {}


def test_run_uses_a_swept_cluster_and_trains_a_swept_job_again(planted: Any) -> None:
    """A cluster whose nodes were let go is used as it is; a job whose model was deleted is not adopted."""
    from tasks.config import ComputeConfig
    from tasks.platforms.refs import JobKind, JobRef, JobState

    planting, _ = planted
    compute = ComputeConfig(
        name="idle-nodes", size="Standard_DS3_v2", min_instances=1, max_instances=4, idle_seconds=120
    )
    assert planting.platform.ensure_compute(compute).origin.reused
    planting.job("support-swept", ENDED_RUN, command="true")
    assert planting.bench.ended("support-swept") == "Completed"
    job = JobRef(
        name="support-swept",
        key="support-swept",
        attempt=1,
        kind=JobKind.EVALUATION,
        data_digest="d",
        url="",
        origin=MADE,
    )
    assert planting.platform.read_job(job).state == JobState.COMPLETED
    planting.platform._jobs.tag(job.name, {"phiflow.swept": "1"})
    status = planting.platform.read_job(job)
    assert (status.state, status.error) == (JobState.FAILED, "a sweep has deleted its model")
