"""What happens when a run is cancelled in the Prefect UI: its jobs are cancelled, its traffic is restored.

Prefect calls a hook in another process than the run's, so it finds everything from the platform.
"""

from __future__ import annotations

import logging
from typing import Any

_log = logging.getLogger(__name__)


def cancel_what_the_run_started(flow: Any, flow_run: Any, state: Any) -> None:
    """Cancel the run's jobs and undo its rollout."""
    from tasks.config import PipelineConfig
    from tasks.platforms.connect import connect
    from tasks.restore import undo_recorded_rollout

    config = PipelineConfig.model_validate(flow_run.parameters["config"])
    platform = connect(config.platform)
    run_id = str(flow_run.id)
    for job in platform.find_jobs(run_id):
        status = platform.cancel_job(job)
        _log.warning("Cancelled job=%s state=%s", job.name, status.state)
    if undo_recorded_rollout(platform, config.endpoint_name, run_id):
        _log.warning("Undid the rollout of run %s on endpoint %s", run_id, config.endpoint_name)
