"""What the service's states of a job mean to a person: a queue, an image build and a preparation are no training."""

from __future__ import annotations

from tasks.platforms.azure.run_history import RunDetails
from tasks.platforms.refs import JobState, JobStatus

COMMAND = "starting the command"
_USER_LOGS = "user_logs/"


def stage_of(details: RunDetails) -> JobStatus:
    """State and stage of a job that has not ended."""
    cluster = f"cluster {details.compute}" if details.compute else "its cluster"
    is_building = any(path.endswith("image_build_log.txt") for path in details.logs)
    match details.status:
        case "Queued":
            return JobStatus(state=JobState.QUEUED, stage=f"waiting for a node of {cluster}")
        case "Provisioning":
            return JobStatus(state=JobState.QUEUED, stage=f"{cluster} is being started")
        case "Preparing":
            stage = "building the environment's image" if is_building else "looking for the environment's image"
            return JobStatus(state=JobState.PREPARING, stage=stage)
        case "Running":
            if any(path.startswith(_USER_LOGS) for path in details.logs):
                return JobStatus(state=JobState.RUNNING, stage=COMMAND)
            return JobStatus(state=JobState.PREPARING, stage="loading image, data and code onto the node")
        case "Finalizing":
            return JobStatus(state=JobState.RUNNING, stage="uploading the results")
        case "CancelRequested":
            return JobStatus(state=JobState.RUNNING, stage="being cancelled")
        case "NotResponding":
            return JobStatus(state=JobState.RUNNING, stage="without a sign of life from its node")
        case "Paused":
            return JobStatus(state=JobState.QUEUED, stage="paused in the workspace")
        case _:
            return JobStatus(state=JobState.QUEUED, stage="accepted by the service")
