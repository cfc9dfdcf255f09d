"""The registry's numbers; the rest is tested through the emulator in tests/contract/test_azure_endpoints.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.platforms.azure.models import Models, next_number
from tasks.platforms.errors import DataError
from tasks.platforms.refs import JobKind, JobRef, Origin

MADE = Origin(reused=False, reason="made in a test")
JOB = JobRef(
    name="job-1", key="job-1", attempt=1, kind=JobKind.TRAINING, data_digest="d", url="https://studio", origin=MADE
)


@pytest.mark.parametrize(
    ("versions", "number"), [([], "1"), (["1"], "2"), (["9", "10", "2"], "11"), (["3", "2024-beta"], "4")]
)
def test_the_next_number_is_after_the_highest(versions: list[str], number: str) -> None:
    """Numbers are compared as numbers, and other people's names for versions do not count."""
    assert next_number(versions) == number


def test_a_job_without_a_model_registers_nothing(storage: Any) -> None:
    """Where the job left no MLmodel, the error names the job and where it should be."""
    workspace: Any = SimpleNamespace(storage=storage)  # nothing else of a workspace is needed to find that out
    with pytest.raises(DataError, match="Job job-1 left no MLflow model at azureml://"):
        Models(workspace).register("support", JOB, storage.uri("phiflow/jobs/job-1/model"), "d" * 64, "{}")
