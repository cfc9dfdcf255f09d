"""Jobs as real detached processes, with a tiny stand-in for the trainer that obeys its command line."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import ENVIRONMENT, MADE, data_manifest, job_ref, job_spec

from tasks.platforms.errors import JobFailedError, NotFoundError
from tasks.platforms.local import jobs as jobs_module
from tasks.platforms.local.jobs import Jobs
from tasks.platforms.local.state import Home
from tasks.platforms.refs import ComputeRef, JobKind, JobRef, JobSpec, JobState

# Goes on until CONTROL/go is there; CONTROL/fail makes it fail, CONTROL/stubborn deaf to SIGTERM.
TRAINER = """
import argparse, json, os, pathlib, signal, sys, time
control = pathlib.Path(os.environ["CONTROL"])
parser = argparse.ArgumentParser()
for name in ("base-model", "train-file", "eval-file", "model-output-dir", "checkpoint-dir", "log-dir", "config"):
    parser.add_argument("--" + name, required=True)
parser.add_argument("--num-processes", type=int)
options = parser.parse_args()
logs = pathlib.Path(options.log_dir)

def say(**event):
    with (logs / "events.jsonl").open("a") as file:
        file.write(json.dumps(event) + "\\n")

def stop(number, frame):
    pathlib.Path(options.checkpoint_dir, "checkpoint-7").mkdir(exist_ok=True)
    sys.exit(1)

signal.signal(signal.SIGTERM, signal.SIG_IGN if (control / "stubborn").exists() else stop)
with (control / "started").open("a") as file:
    file.write(f"{os.getpid()}\\n")
say(event="stage", name="training")
say(event="progress", step=3, num_steps=10, loss=2.5, tokens_per_second=100.0, seconds_left=7.0)
if (control / "fail").exists():
    (logs / "error.json").write_text(json.dumps({"message": "Loss is not a number at step 3.", "fix": "Lower it."}))
    sys.exit(4)
if (control / "crash").exists():
    sys.exit("Segmentation of the fault")
deadline = time.monotonic() + 60
while not (control / "go").exists() and time.monotonic() < deadline:
    time.sleep(0.02)
pathlib.Path(options.model_output_dir).mkdir()
(logs / "result.json").write_text(json.dumps(
    {"settings": json.loads(open(options.config).read()), "num_processes": options.num_processes}
))
"""
EVALUATE = """
import argparse, pathlib
parser = argparse.ArgumentParser()
for name in ("model-dir", "eval-file", "config", "output"):
    parser.add_argument("--" + name, required=True)
options = parser.parse_args()
pathlib.Path(options.output).write_text('{"metrics": {"loss": 1.5}}')
"""
RUN = "run-1"


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Poll until the condition holds and return its value; fail when it never does."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {seconds:g} s")
        time.sleep(0.02)
    return value


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder through which a test steers the trainer."""
    folder = tmp_path / "control"
    folder.mkdir()
    monkeypatch.setenv("CONTROL", str(folder))
    return folder


@pytest.fixture
def jobs(tmp_path: Path, control: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    """The jobs of an empty state folder; what still runs at the end is killed."""
    package = tmp_path / "source" / "trainer"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(TRAINER)
    (package / "evaluate.py").write_text(EVALUATE)
    monkeypatch.setattr(jobs_module, "project_folder", lambda *parts: tmp_path.joinpath("source", *parts))
    home = Home.open(str(tmp_path / "home"))
    yield Jobs(home, lambda name, experiment: {"MLFLOW_RUN_ID": f"mlflow-{name}"})
    runners = [json.loads(path.read_text())["pid"] for path in home.root.glob("jobs/*/process.json")]
    for pid in [*runners, *pids(control)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    """A training job whose environment has this Python."""
    python = tmp_path / "env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    return job_spec(environment=replace(ENVIRONMENT, location=str(tmp_path / "env")))


def pids(control: Path) -> list[int]:
    """The trainer processes that ever started."""
    try:
        return [int(line) for line in (control / "started").read_text().splitlines()]
    except FileNotFoundError:
        return []


def runner(jobs: Jobs, job: JobRef) -> int:
    """The process that runs a job."""
    return int(json.loads((jobs._folder(job) / "process.json").read_text())["pid"])


def wait_for_state(jobs: Jobs, job: JobRef, state: JobState) -> None:
    """Poll until the job is in the state; fail at once when it ended in another."""
    status = wait_for(lambda: (s := jobs.read(job)).state in (state, *([s.state] if s.state.ended else [])) and s)
    assert status.state == state, status


def other(spec: JobSpec, seed: int) -> JobSpec:
    """The same job with another seed, and so another name."""
    return replace(spec, settings=json.dumps({"seed": seed}))


def test_job_runs_to_its_result(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """A submitted job runs with its settings and processes, shows its progress, and leaves its result."""
    spec = replace(spec, processes_per_node=2)
    job = jobs.submit(spec, RUN)
    assert (job.name, job.attempt, job.origin.reused) == (spec.key, 1, False)
    wait_for(lambda: jobs.read(job).step == 3)
    status = jobs.read(job)
    assert (status.state, status.stage, status.num_steps, status.loss) == (
        JobState.RUNNING,
        "training",
        10,
        2.5,
    )
    with pytest.raises(JobFailedError, match="left no result"):
        jobs.result(job)
    (control / "go").touch()
    wait_for_state(jobs, job, JobState.COMPLETED)
    result = jobs.result(job)
    assert (result["settings"], result["num_processes"]) == ({"learning_rate": 0.003}, 2)
    assert Path(result["model_location"]).is_dir()
    assert len(jobs.events(job)) == 2
    assert jobs.mlflow_run(job) == f"mlflow-{job.name}"
    assert jobs.data_of(job) == spec.data.train_file


def test_running_job_is_adopted(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """A second submission of a running job starts nothing and says why."""
    first = jobs.submit(spec, RUN)
    wait_for(lambda: pids(control))
    second = jobs.submit(spec, "run-2")
    assert second == first
    assert second.origin.reused
    assert second.origin.reason == f"job {first.name} is running: adopted"
    assert len(pids(control)) == 1


def submit_and_hang(jobs: Jobs, spec: JobSpec, run_id: str, named: Any) -> None:
    """What a flow does in a process of its own: submit, tell the name, and wait for ever."""
    job = jobs.submit(spec, run_id)
    named.put((job.name, job.origin.reused))
    signal.pause()


def test_job_outlives_its_killed_submitter(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """kill -9 of the submitter leaves the job running; the next one adopts it: one process ever, one attempt."""
    context = multiprocessing.get_context("fork")
    named = context.Queue()
    submitter = context.Process(target=submit_and_hang, args=(jobs, spec, RUN, named))
    submitter.start()
    name, _ = named.get(timeout=20)
    wait_for(lambda: pids(control))
    submitter.kill()
    submitter.join(10)
    assert submitter.exitcode == -signal.SIGKILL
    job = jobs.submit(spec, "run-2")
    assert (job.name, job.attempt, job.origin.reused) == (name, 1, True)
    (control / "go").touch()
    wait_for_state(jobs, job, JobState.COMPLETED)
    assert len(pids(control)) == 1


def test_two_submitters_at_once_start_one_process(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """Submitting from two processes at the same time makes one job; one of them adopts it."""
    context = multiprocessing.get_context("fork")
    named = context.Queue()
    submitters = [context.Process(target=submit_and_hang, args=(jobs, spec, f"run-{n}", named)) for n in (1, 2)]
    for submitter in submitters:
        submitter.start()
    told = sorted(named.get(timeout=20) for _ in submitters)
    for submitter in submitters:
        submitter.kill()
        submitter.join(10)
    assert told == [(spec.key, False), (spec.key, True)]
    (control / "go").touch()
    job = jobs.latest(spec.key)
    assert job is not None
    wait_for_state(jobs, job, JobState.COMPLETED)
    assert len(pids(control)) == 1


def test_completed_job_is_reused(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """A completed job is never run again."""
    (control / "go").touch()
    wait_for_state(jobs, jobs.submit(spec, RUN), JobState.COMPLETED)
    again = jobs.submit(spec, "run-2")
    assert again.origin.reused
    assert "has completed with the same content" in again.origin.reason
    assert len(pids(control)) == 1


def test_failed_job_is_followed_by_attempt_2(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """A failure does not poison the name: the next submission is attempt 2, and says what happened before."""
    (control / "fail").touch()
    first = jobs.submit(spec, RUN)
    wait_for_state(jobs, first, JobState.FAILED)
    assert jobs.read(first).error == "Loss is not a number at step 3."
    assert jobs.read(first).fix == "Lower it."
    (control / "fail").unlink()
    (control / "go").touch()
    second = jobs.submit(spec, "run-2")
    assert (second.name, second.key, second.attempt) == (f"{spec.key}-a2", spec.key, 2)
    assert second.origin.reason == (
        "attempt 1 failed (Loss is not a number at step 3.); attempt 2 starts from the base model"
    )
    wait_for_state(jobs, second, JobState.COMPLETED)
    assert jobs.latest(spec.key) == second
    assert jobs.submit(spec, "run-3") == second


def test_crash_tells_its_last_line(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """A trainer that dies without a word of its own: exit code and last line of its log."""
    (control / "crash").touch()
    job = jobs.submit(spec, RUN)
    wait_for_state(jobs, job, JobState.FAILED)
    assert jobs.read(job).error == "it ended with exit code 1: Segmentation of the fault"
    assert jobs.read(job).log_tail[-1] == "Segmentation of the fault"


def test_killed_trainer_is_a_failure(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """A trainer that was killed, as when memory runs out, fails its job with the signal."""
    job = jobs.submit(spec, RUN)
    os.kill(wait_for(lambda: pids(control))[0], signal.SIGKILL)
    wait_for_state(jobs, job, JobState.FAILED)
    assert jobs.read(job).error == "its process was killed by signal 9"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_killed_runner_ends_its_trainer_with_a_checkpoint(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """kill -9 of the runner ends the trainer too, and the next attempt starts from the checkpoint it left."""
    job = jobs.submit(spec, RUN)
    wait_for(lambda: jobs.read(job).step == 3)
    os.kill(runner(jobs, job), signal.SIGKILL)
    wait_for_state(jobs, job, JobState.FAILED)
    assert jobs.read(job).error == "its process was killed"
    (control / "go").touch()
    second = jobs.submit(spec, "run-2")
    assert second.attempt == 2
    assert second.origin.reason.endswith("attempt 2 starts from checkpoint step 7")
    wait_for_state(jobs, second, JobState.COMPLETED)
    assert len(pids(control)) == 2


def test_cancelled_job_leaves_a_checkpoint(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """Cancelling stops the job with a checkpoint and says who did it; an ended job is left as it is."""
    job = jobs.submit(spec, RUN)
    wait_for(lambda: jobs.read(job).step == 3)
    status = jobs.cancel(job, "the user")
    assert (status.state, status.error) == (JobState.CANCELLED, "cancelled by the user")
    assert jobs.cancel(job, "somebody else").error == "cancelled by the user"
    second = jobs.submit(spec, "run-2")
    assert second.attempt == 2
    assert "attempt 1 cancelled (cancelled by the user)" in second.origin.reason
    assert "checkpoint step 7" in second.origin.reason


def test_deaf_job_is_killed(jobs: Jobs, spec: JobSpec, control: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that ignores the request to stop is killed after a grace, with nothing left running."""
    monkeypatch.setattr(jobs_module, "_CANCEL_GRACE_SECONDS", 0.3)
    (control / "stubborn").touch()
    job = jobs.submit(spec, RUN)
    pid = wait_for(lambda: pids(control))[0]
    assert jobs.cancel(job, "the user").state == JobState.CANCELLED
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_second_job_waits_for_a_slot(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """One slot: the second job is queued until the first has ended, and can be cancelled while it waits."""
    first = jobs.submit(spec, RUN)
    wait_for_state(jobs, first, JobState.RUNNING)
    second, third = jobs.submit(other(spec, 2), RUN), jobs.submit(other(spec, 3), RUN)
    wait_for_state(jobs, second, JobState.QUEUED)
    assert jobs.submit(other(spec, 2), "run-2").origin.reason == f"job {second.name} is queued: adopted"
    assert jobs.cancel(third, "the user").state == JobState.CANCELLED
    assert len(pids(control)) == 1
    (control / "go").touch()
    wait_for_state(jobs, first, JobState.COMPLETED)
    wait_for_state(jobs, second, JobState.COMPLETED)
    assert len(pids(control)) == 2


def test_two_slots_run_two_jobs(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """compute.max_instances is how many jobs run at the same time."""
    two = ComputeRef(name="this-machine", size="local", max_instances=2, origin=MADE)
    for seed in (1, 2):
        jobs.submit(replace(other(spec, seed), compute=two), RUN)
    wait_for(lambda: len(pids(control)) == 2)


def test_jobs_are_found_by_run_and_by_name(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """Unended jobs are found by the id of any run that submitted or adopted them, and by the run's name."""
    job = jobs.submit(spec, RUN)
    wait_for(lambda: pids(control))
    jobs.submit(spec, "run-2")
    for run in (RUN, "run-2", "support", ""):
        assert jobs.running(run) == (job,), run
    assert jobs.running("run-3") == ()
    assert jobs.running("suppor") == ()
    jobs.cancel(job, "the user")
    assert jobs.running() == ()


def test_half_made_job_does_not_poison_its_name(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """What a crash left of a job that never started is taken over: nobody has paid for it yet."""
    folder = jobs._home.folder("jobs", spec.key)
    (folder / "logs").mkdir()
    (folder / "train.json").write_text("{}")
    (control / "go").touch()
    assert jobs.latest(spec.key) is None
    job = jobs.submit(spec, RUN)
    assert job.attempt == 1
    wait_for_state(jobs, job, JobState.COMPLETED)
    for name in ("process.json", "slot.json", "exit.json", "alive.lock", "logs/result.json"):
        (folder / name).unlink()
    shutil.rmtree(folder / "model")
    assert jobs.read(job).state == JobState.QUEUED  # somebody may be starting it right now
    long_ago = time.time() - 60
    os.utime(folder / "job.json", (long_ago, long_ago))
    assert jobs.read(job).state == JobState.FAILED
    second = jobs.submit(spec, "run-2")
    assert second.attempt == 1
    assert "never started" in second.origin.reason
    wait_for_state(jobs, second, JobState.COMPLETED)


def test_eleventh_attempt_follows_the_tenth(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """Attempts are ordered as numbers, not as text."""
    for attempt in (1, 2, 9, 10):
        name = spec.key if attempt == 1 else f"{spec.key}-a{attempt}"
        record = {"name": name, "key": spec.key, "attempt": attempt, "kind": "training", "data_digest": "d"}
        (folder := jobs._home.folder("jobs", name)).joinpath("job.json").write_text(
            json.dumps(record | {"url": "", "runs": [], "run_name": "support"})
        )
        (folder / "process.json").write_text('{"pid": 1}')
    assert jobs.submit(spec, RUN).name == f"{spec.key}-a11"


def test_line_in_the_middle_of_being_written_is_left_out(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """Events are read while the trainer writes them."""
    job = jobs.submit(spec, RUN)
    wait_for(lambda: len(jobs.events(job)) == 2)
    with (jobs._folder(job) / "logs" / "events.jsonl").open("a") as file:
        file.write('{"event": "progr')
    assert len(jobs.events(job)) == 2
    assert jobs.read(job).step == 3


def test_evaluation_needs_no_model_of_its_own(jobs: Jobs, spec: JobSpec, control: Path) -> None:
    """An evaluation job is complete with its result, and named apart from the training job."""
    evaluation = replace(spec, kind=JobKind.EVALUATION, data=data_manifest(digest="other"))
    job = jobs.submit(evaluation, RUN)
    assert job.name != spec.key
    wait_for_state(jobs, job, JobState.COMPLETED)
    assert jobs.result(job)["metrics"] == {"loss": 1.5}


def test_unknown_job_is_not_found(jobs: Jobs) -> None:
    """A job that is not in this state folder is named."""
    with pytest.raises(NotFoundError, match="support-0"):
        jobs.read(job_ref())
