"""What the service's states of a job are called."""

from __future__ import annotations

import pytest

from tasks.platforms.azure.run_history import RunDetails
from tasks.platforms.azure.stages import stage_of
from tasks.platforms.refs import JobState

BUILD_LOG, USER_LOG = "azureml-logs/20_image_build_log.txt", "user_logs/std_log.txt"


@pytest.mark.parametrize(
    ("status", "logs", "state", "stage"),
    [
        ("NotStarted", (), JobState.QUEUED, "accepted"),
        ("Starting", (), JobState.QUEUED, "accepted"),
        ("Provisioning", (), JobState.QUEUED, "cluster gpu is being started"),
        ("Queued", (), JobState.QUEUED, "waiting for a node of cluster gpu"),
        ("Preparing", (), JobState.PREPARING, "image"),
        ("Preparing", (BUILD_LOG,), JobState.PREPARING, "building the environment's image"),
        ("Running", (BUILD_LOG,), JobState.PREPARING, "loading image, data and code"),
        ("Running", (BUILD_LOG, USER_LOG), JobState.RUNNING, "starting the command"),
        ("Finalizing", (USER_LOG,), JobState.RUNNING, "uploading"),
        ("CancelRequested", (USER_LOG,), JobState.RUNNING, "cancelled"),
        ("NotResponding", (USER_LOG,), JobState.RUNNING, "sign of life"),
        ("Paused", (), JobState.QUEUED, "paused"),
        ("SomethingNew", (), JobState.QUEUED, "accepted"),
    ],
)
def test_state_has_a_name_for_people(status: str, logs: tuple[str, ...], state: JobState, stage: str) -> None:
    """Queue, image build and preparation are told as such; training is what the trainer says itself."""
    details = RunDetails(
        status=status, code="", message="", warnings=(), compute="gpu", has_ended=False, logs=dict.fromkeys(logs, "u")
    )
    told = stage_of(details)
    assert told.state == state
    assert stage in told.stage
    assert not told.state.ended
    assert "sig" not in repr(replace_url(details))


def replace_url(details: RunDetails) -> RunDetails:
    """The same with signed addresses of its logs, which its text must not show."""
    return RunDetails(
        status=details.status,
        code="",
        message="",
        warnings=(),
        compute="",
        has_ended=False,
        logs={USER_LOG: "https://a/b?sig=x"},
    )
