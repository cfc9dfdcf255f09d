"""The sweep as a Prefect flow, for a schedule: what nobody uses, as a table in the UI; deleted when told to."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from flows.leftovers import sweep_place
from tasks.config import PipelineConfig

_COLUMNS = ("kind", "name", "reason", "cost", "outcome")


@flow(name="sweep", flow_run_name="sweep of {config.name}")
def sweep(config: PipelineConfig, delete: bool = False) -> dict[str, Any]:
    """Find what phiflow made in the configuration's place and nobody uses, and delete it when told to."""
    told = sweep_place(config, delete=delete)
    rows = [{column: one[column] for column in _COLUMNS} for one in told["leftovers"]]
    description = "\n\n".join([told["total"] or "Nothing that is unused bills by the hour.", *told["kept"]])
    create_table_artifact(rows, key="leftovers", description=description)
    for row in rows:
        get_run_logger().info(
            "Leftover kind=%s name=%s outcome=%s: %s", *(row[k] for k in ("kind", "name", "outcome", "reason"))
        )
    return told
