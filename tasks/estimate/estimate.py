"""What one run takes, put together: work, memory, time and money as ranges, with what was assumed.

Nothing here asks a platform: the arithmetic is that of the configuration, the prepared data and the price table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.estimate import duration, memory
from tasks.estimate.bills import Bill, bills_after
from tasks.estimate.cap import job_timeout_seconds
from tasks.estimate.duration import job_stages
from tasks.estimate.machines import Hardware, training_hardware
from tasks.estimate.memory import MemoryNeed, estimate_memory
from tasks.estimate.model_shapes import ModelShape, find_shape
from tasks.estimate.prices import Prices, load_prices
from tasks.estimate.ranges import NOTHING, Range, exactly
from tasks.estimate.stages import Stage, after_job, before_job
from tasks.estimate.work import Work, measure_work, stand_in_work

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.refs import BaseModelRef, DataManifest

_IMAGE_VCPUS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PricedStage:
    """One part of a run; dollars are None where no price is known."""

    name: str
    seconds: Range
    dollars: Range | None
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """What a run takes; what could not be estimated is None, and `unknown` says why.

    Args:
        work: of the data; of a thousand conversations where `work.is_stand_in`.
        stages: in order; those that an adopted job has behind it are left out.
        job_stages: what the training job does, adopted or not.
        seconds: from its start to an answering chat app.
        dollars: once, for this run; None where a size has no price.
        bills: what goes on billing after the run.
        job_dollars_an_hour: of the training job's nodes.
        unpriced: sizes that no table has a price of.
    """

    shape: ModelShape | None
    work: Work | None
    memory: MemoryNeed | None
    stages: tuple[PricedStage, ...]
    job_stages: tuple[PricedStage, ...]
    seconds: Range
    dollars: Range | None
    bills: tuple[Bill, ...]
    prices: str
    job_dollars_an_hour: float | None
    unpriced: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    job_exists: bool = False

    @property
    def dollars_an_hour_after(self) -> float | None:
        """What goes on billing by the hour; None where a size has no price."""
        hourly = [bill.hourly for bill in self.bills]
        return None if None in hourly else sum(hour for hour in hourly if hour is not None)

    @property
    def job_seconds(self) -> Range:
        """Of the training job, from its trainer's start to its end."""
        return sum((stage.seconds for stage in self.job_stages), start=NOTHING)

    @property
    def job_dollars(self) -> Range | None:
        """Of that; None where its size has no price."""
        hourly = self.job_dollars_an_hour
        return None if hourly is None else self.job_seconds.times(hourly / 3600)


def estimate_run(
    config: PipelineConfig,
    base: BaseModelRef | None = None,
    data: DataManifest | None = None,
    *,
    job_exists: bool = False,
    num_new_images: int | None = None,
) -> RunEstimate:
    """Estimate a run, as far as what is known of it allows; asks no platform.

    Args:
        base: without it, the shape is looked for by `model.base`.
        data: without it, the work is that of a thousand conversations.
        job_exists: its training job has completed, or runs already; what it took is not spent again.
        num_new_images: environment images that no run has built yet; None: not known.
    Raises:
        ConfigError: `cost.prices` is no price table.
    """
    prices = load_prices(config)
    machine = prices.machine(config.compute.size)
    shape = find_shape(
        config.model.base, base.revision if base else config.model.revision, base.location if base else ""
    )
    hardware = training_hardware(config, machine, shape.num_parameters if shape else 0)
    is_packed, context = config.train.packing, shape.context_tokens if shape else 0
    work = measure_work(config, data, context, is_packed) if data else stand_in_work(config, context, is_packed)
    memory = None
    if shape and hardware:
        memory, config = estimate_memory(config, shape, work, hardware)
    job = job_stages(config, shape, None if work.is_stand_in else work, hardware)
    planned = [*before_job(config, num_new_images), *job, *after_job(config)]
    priced, unpriced = _priced(config, prices, _left(planned, job_exists))
    priced_job, _ = _priced(config, prices, job)
    hourly = machine.hourly(config.compute.tier)
    return RunEstimate(
        shape=shape,
        work=work,
        memory=memory,
        stages=tuple(priced),
        job_stages=tuple(priced_job),
        seconds=sum((stage.seconds for stage in priced), start=NOTHING),
        dollars=None if unpriced else sum((stage.dollars for stage in priced if stage.dollars), start=NOTHING),
        bills=bills_after(config, shape, prices),
        prices=prices.about() if config.is_remote else "nothing on this machine costs",
        job_dollars_an_hour=_per_job(config, hourly),
        unpriced=unpriced,
        unknown=_unknown(config, shape, hardware, work),
        assumptions=_assumptions(config, hardware),
        warnings=_warnings(config, prices, hardware, priced_job),
        job_exists=job_exists,
    )


def per_thousand(config: PipelineConfig, estimate: RunEstimate) -> Stage | None:
    """Training on a thousand conversations of any length up to `train.max_length`, where the data is not known."""
    machine = load_prices(config).machine(config.compute.size)
    hardware = training_hardware(config, machine, estimate.shape.num_parameters if estimate.shape else 0)
    if not (estimate.shape and estimate.work and hardware):
        return None
    return duration.training_seconds(config, estimate.shape, estimate.work, hardware)


def _per_job(config: PipelineConfig, hourly: float | None) -> float | None:
    if not config.is_remote:
        return 0.0
    return None if hourly is None else hourly * config.compute.num_nodes


def _left(planned: list[Stage], job_exists: bool) -> list[Stage]:
    return [stage for stage in planned if not (job_exists and stage.on_job)]


def _priced(config: PipelineConfig, prices: Prices, planned: list[Stage]) -> tuple[list[PricedStage], tuple[str, ...]]:
    """Each stage with its dollars, and the sizes without a price."""
    if not config.is_remote:
        free = [PricedStage(name=s.name, seconds=s.seconds, dollars=exactly(0), how=s.how) for s in planned]
        return free, ()
    compute, serving = config.compute, config.serving
    training = prices.machine(compute.size).hourly(compute.tier)
    served = prices.machine(serving.instance_type).hourly("dedicated")
    image = _IMAGE_VCPUS * prices.standing("container_registry_task_vcpu_second") * 3600
    hourly = {
        "training": None if training is None else training * compute.num_nodes,
        "serving": None if served is None else served * serving.instance_count,
        "image": image,
        "": 0.0,
    }
    hourly["idle"] = hourly["training"]
    told, missing = [], set()
    for stage in planned:
        price = hourly[stage.bills]
        if price is None:
            missing.add(serving.instance_type if stage.bills == "serving" else compute.size)
        billed = exactly(compute.idle_seconds) if stage.bills == "idle" else stage.seconds
        cost = None if price is None else billed.times(price / 3600)
        told.append(PricedStage(name=stage.name, seconds=stage.seconds, dollars=cost, how=stage.how))
    return told, tuple(sorted(missing))


def _unknown(
    config: PipelineConfig, shape: ModelShape | None, hardware: Hardware | None, work: Work
) -> tuple[str, ...]:
    told = []
    if shape is None:
        told.append(f"memory and time: the shape of {config.model.base} is not known (no config.json here, nor a hub)")
    if hardware is None:
        told.append(
            f"memory and time: nothing is known of {config.compute.size}; name its vCPUs or GPUs in cost.prices"
        )
    if work.is_stand_in:
        told.append("time and money of the training: the data was not read")
    return tuple(told)


def _assumptions(config: PipelineConfig, hardware: Hardware | None) -> tuple[str, ...]:
    told = []
    if hardware:
        told.append(f"The training reaches {hardware.why}.")
    if config.is_remote:
        told += [
            "No attempt is interrupted, and nobody waits for quota.",
            "Network, disks, key vault and transactions are left out; storage is in what bills afterwards.",
        ]
        if config.compute.tier == "low_priority":
            told.append("Low-priority nodes may be taken away; each attempt after that starts from a checkpoint.")
    told += [f"{memory.SOURCES}; {duration.SOURCES}."]
    return tuple(told)


def _warnings(
    config: PipelineConfig, prices: Prices, hardware: Hardware | None, job: list[PricedStage]
) -> tuple[str, ...]:
    told = [hardware.warning] if hardware and hardware.warning else []
    if not config.is_remote:
        return tuple(told)
    assert config.platform.kind == "azure"
    sizes = (config.compute.size, config.serving.instance_type)
    told += prices.warnings(config.platform.location, sizes)
    limit = job_timeout_seconds(config)
    if sum(stage.seconds.high for stage in job) > limit:
        by = "compute.timeout_seconds" if limit == config.compute.timeout_seconds else "cost.max_run"
        told.append(f"The job may be ended by {by}, after {limit} s; the next attempt starts from its last checkpoint.")
    return tuple(told)
