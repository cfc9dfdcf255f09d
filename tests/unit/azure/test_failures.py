"""The service's words for failures, as they are reported in public, and the class that each has."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.platforms.azure.failures import diagnose, signature_of
from tasks.platforms.errors import Failure

LOGS = ("azureml-logs/20_image_build_log.txt", "system_logs/lifecycler/lifecycler.log", "user_logs/std_log.txt")
DATA = (
    '{"NonCompliant":"DataAccessError(NotFound)"}\n{"code": "data-capability.UriMountSession.PyFuseError",'
    ' "target": "", "category": "UserError",'
    ' "error_details": [{"key": "NonCompliantReason", "value": "DataAccessError(NotFound)"}]}'
)


@pytest.mark.parametrize(
    ("message", "failure"),
    [
        (
            "JobNodeCountExceedsCoreQuota, The specified subscription has a Standard DSv2 family vCPU quota of 2",
            "QUOTA",
        ),
        ("ClusterCoreQuotaReached: Operation results in exceeding quota limits of Core", "QUOTA"),
        ("ClusterMinNodesExceedCoreQuota", "QUOTA"),
        ("The specified subscription has a total vCPU quota of 0 and cannot accomodate for at least 1 node", "QUOTA"),
        ("OutOfQuota: Not enough cluster CPU quota. The amount of additional CPU quota requested is 8", "QUOTA"),
        ("Not enough quota available for Standard_E4s_v3 in SubscriptionId 0. Current usage/limit: 24/24", "QUOTA"),
        ("OutOfCapacity: The specified VM Size [Standard_NC24ads_A100_v4] cannot be provisioned", "CAPACITY"),
        ("AllocationFailed. We do not have sufficient capacity for the requested VM size in this region.", "CAPACITY"),
        ("AzureMLCompute job failed.\nPreemptionError: Nodes of this job got pre-empted.", "PREEMPTION"),
        ("JobPreempted: the low priority node was preempted", "PREEMPTION"),
        ("Image build failed. For more details, check log file azureml-logs/20_image_build_log.txt.", "IMAGE_BUILD"),
        ("ImageBuildFailure: Environment image build failed", "IMAGE_BUILD"),
        ("The client 'a' does not have authorization to perform action 'x/write' over scope '/y'", "AUTHORISATION"),
        (
            "ScopeLocked: the scope cannot perform delete operation because following scope(s) are locked",
            "AUTHORISATION",
        ),
        ("ScriptExecution.StreamAccess.Authentication: permission denied when access stream", "AUTHORISATION"),
        ("Error Code: ScriptExecution.StreamAccess.NotFound", "DATA"),
        (DATA, "DATA"),
        ("Execution failed. User process 'python' exited with status code 1. Error: quota 403 preempted", "USER_CODE"),
        ("Execution failed. User process 'python' exited with status code 75.", "PREEMPTION"),
        ("Received 429 TooManyRequests from the registry", "THROTTLING"),
        ("InternalServerError: An internal error occurred", "SERVICE"),
        ("", "SERVICE"),
    ],
)
def test_class_of_a_failed_job(message: str, failure: str) -> None:
    """A job's message has its class, and everything has a cause on one line and something to do."""
    told = diagnose("UserError" if "User" in message else "", message, LOGS, None)
    assert told.failure == Failure[failure]
    assert told.cause
    assert "\n" not in told.cause
    assert told.fix


def test_right_log_by_class() -> None:
    """An image build is explained by its own log, a command by what it printed."""
    assert diagnose("", "Image build failed.", LOGS, None).log == LOGS[0]
    ended = diagnose("UserError", "Execution failed. User process 'python' exited with status code 1.", LOGS, None)
    assert ended.log == LOGS[2]
    several = ("user_logs/std_log_process_01.txt", "user_logs/std_log_process_00.txt")
    assert diagnose("UserError", "User process exited with status code 1.", several, None).log == several[1]


def test_killed_command_is_told_as_out_of_memory() -> None:
    """Exit code 137 is how a container without memory ends."""
    told = diagnose("UserError", "Execution failed. User process 'python' exited with status code 137.", LOGS, None)
    assert "memory" in told.cause
    assert "train.max_length" in told.fix


@pytest.mark.parametrize(
    ("kind", "failure", "is_input_error"),
    [
        ("configuration", Failure.USER_CODE, True),
        ("data", Failure.DATA, True),
        ("out_of_memory", Failure.USER_CODE, False),
        ("preempted", Failure.PREEMPTION, False),
        ("bug", Failure.USER_CODE, False),
    ],
)
def test_trainer_knows_best(kind: str, failure: Failure, is_input_error: bool) -> None:
    """What the trainer said of itself is the cause, and decides the class."""
    said: dict[str, Any] = {"kind": kind, "message": "It went wrong at step 3.", "fix": "Do otherwise."}
    told = diagnose("UserError", "User process 'python' exited with status code 1.", LOGS, said)
    assert (told.failure, told.is_input_error) == (failure, is_input_error)
    assert (told.cause, told.fix) == ("It went wrong at step 3.", "Do otherwise.")


def test_platform_knows_of_itself() -> None:
    """A trainer that was stopped by a preemption says so, and the service's reason stays the cause."""
    said = {"kind": "preempted", "message": "Stopped by a signal.", "fix": ""}
    told = diagnose("UserError", "PreemptionError: Nodes of this job got pre-empted.", LOGS, said)
    assert told.failure == Failure.PREEMPTION
    assert "pre-empted" in told.cause


def test_secrets_of_a_message_stay_out() -> None:
    """A signed URL in the service's message is told without its signature."""
    message = "StreamAccess.NotFound: https://a.blob.core.windows.net/c/x?sv=1&sig=Planted was not found"
    assert "Planted" not in diagnose("UserError", message, (), None).cause


def test_unknown_words_have_no_class() -> None:
    """Words that nobody knows are nobody's class."""
    assert signature_of("The quick brown fox") is None
