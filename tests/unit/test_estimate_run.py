"""Memory, time and money of a run, the cost cap, and what the job took beside that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from estimates import A100, PHI, on_azure, prepared
from estimates import here as on_this_machine

from tasks.estimate.actual import compare, spent_document, spent_lines, spent_table
from tasks.estimate.cap import job_timeout_seconds, require_within_cap
from tasks.estimate.documents import estimate_document
from tasks.estimate.duration import flops_per_token
from tasks.estimate.estimate import RunEstimate, estimate_run, per_thousand
from tasks.estimate.model_shapes import KNOWN
from tasks.estimate.ranges import Range
from tasks.estimate.text import estimate_markdown
from tasks.platforms.errors import GateRefusedError
from trainer.memory import Load, Plan, need

TOKENS = {"tokenizer": "t", "mean": 1100.0, "p50": 1000, "p95": 2000, "max": 2500, "truncated_share": 0.04}
PHI_SHAPE = KNOWN[PHI.lower()]
N = PHI_SHAPE.num_parameters


@pytest.fixture
def estimate(tmp_path: Path) -> RunEstimate:
    """Phi-3.5-mini on 1 % of ultrachat on one A100."""
    config = on_azure(train={"packing": False, "gradient_checkpointing": True})
    return estimate_run(config, None, prepared(tmp_path, [4000, 6000] * 820, 439, TOKENS))


def sizes(estimate: RunEstimate) -> dict[str, Range]:
    """The parts of the memory by name."""
    assert estimate.memory is not None
    return {part.name: part.size for part in estimate.memory.parts}


def test_full_training_is_sixteen_bytes_a_parameter(estimate: RunEstimate) -> None:
    """Weights, gradients and AdamW's moments in 32 bits are 16 bytes a parameter, and the lines show it."""
    parts = sizes(estimate)
    assert parts["weights"].low + parts["gradients"].low + parts["optimizer"].low == 16 * N
    assert parts["bf16 copies"] == Range(low=0, high=2 * N)
    assert estimate.memory is not None
    assert estimate.memory.parts[0].how == "3.82 billion parameters x 4 bytes (32 bits)"
    assert estimate.memory.fits == "yes"
    assert 60e9 < estimate.memory.total.low < estimate.memory.total.high < 80e9


@pytest.mark.parametrize(
    ("train", "size", "fits", "advice"),
    [
        (
            {"gradient_checkpointing": False, "optim": "adamw_torch", "max_length": 8192},
            A100,
            "no",
            "checkpointing null",
        ),
        ({"optim": "adamw_torch"}, "Standard_ND96asr_v4", "no", "a compute.size with more memory"),
        ({"per_device_train_batch_size": 16}, A100, "yes", ""),
        ({}, "Standard_NC4as_T4_v3", "no", "train.method lora"),
        ({"method": "lora", "max_length": 512}, A100, "yes", ""),
        ({}, "Standard_ND96asr_v4", "tight", "train.method lora"),
        ({}, "Standard_E16s_v3", "yes", ""),
        ({}, "Standard_E4s_v3", "no", "a smaller"),
    ],
)
def test_fit_and_what_to_change(tmp_path: Path, train: dict[str, Any], size: str, fits: str, advice: str) -> None:
    """Whether it fits follows method, batch, checkpointing and machine; where it does not, there is something to do."""
    config = on_azure(train=train, compute={"size": size})
    need = estimate_run(config, None, prepared(tmp_path, [6000] * 8, 4, TOKENS)).memory
    assert need is not None
    assert need.fits == fits
    assert advice in need.advice
    assert bool(need.advice) == (fits != "yes")


@pytest.mark.parametrize(
    ("train", "chosen"),
    [
        ({"max_length": 1024}, "1 rows a pass x 4 passes, no gradient checkpointing"),
        ({}, "4 rows a pass x 1 passes, gradient checkpointing"),
        ({"max_length": 8192}, "1 rows a pass x 4 passes, gradient checkpointing"),
        ({"max_length": 32768}, "8-bit optimizer"),
        ({"method": "lora"}, "4 rows a pass x 1 passes, no gradient checkpointing"),
    ],
)
def test_the_plan_says_what_would_be_chosen(tmp_path: Path, train: dict[str, Any], chosen: str) -> None:
    """Where the configuration leaves the choice, the least that makes the run fit is said; its batch stays."""
    tokens = TOKENS | {"max": 40000}
    need = estimate_run(on_azure(train=train), None, prepared(tmp_path, [6000] * 8, 4, tokens)).memory
    assert need is not None and chosen in need.chosen
    rows, passes = (int(part.split()[0]) for part in need.chosen.split(", ")[0].split(" x "))
    assert rows * passes == 4


def test_lora_trains_little(tmp_path: Path) -> None:
    """LoRA keeps gradients and moments of its own matrices alone, on weights of 16 bits, or of 4 with qlora."""
    data = prepared(tmp_path, [6000] * 8, 4, TOKENS)
    lora = estimate_run(on_azure(train={"method": "lora"}), None, data)
    parts, own = sizes(lora), PHI_SHAPE.lora_parameters(16)
    assert parts["weights"].low == 2 * N
    assert parts["gradients"].low + parts["optimizer"].low + parts["LoRA weights"].low == 16 * own
    qlora = sizes(estimate_run(on_azure(train={"method": "qlora"}), None, data))
    assert N / 2 < qlora["weights"].low < 0.7 * N
    assert {name: size for name, size in qlora.items() if name != "weights"} == {
        name: size for name, size in parts.items() if name != "weights"
    }


def test_activations_grow_with_batch_and_shrink_by_checkpointing() -> None:
    """Twice the rows are twice the activations; checkpointing keeps one value a layer and one layer whole."""

    def activations(rows: int, checkpointing: bool, is_eager: bool = False) -> float:
        load = Load(method="full", num_trained=N, row_tokens=2048, bf16=True, is_gpu=True, is_eager=is_eager)
        parts = need(PHI_SHAPE, load, Plan(rows=rows, accumulation=1, checkpointing=checkpointing))
        return next(part.low for part in parts if part.name == "activations")

    tokens = 4 * 2048
    assert activations(4, False) == tokens * 32 * 2 * (8 * 3072 + 4 * 8192)
    assert activations(4, True) == tokens * 2 * (32 * 3072 + 8 * 3072 + 4 * 8192)
    assert activations(8, True) == 2 * activations(4, True)
    assert activations(4, True, is_eager=True) > activations(4, True)


def test_flops_are_the_known_floor() -> None:
    """6 N + 6 L h s is 23.5 GFLOP for Phi-3.5-mini at 2,048 tokens; a third more when recomputing; less with LoRA."""
    plain = flops_per_token(on_azure(train={"gradient_checkpointing": False}), PHI_SHAPE, 2048)
    assert plain == pytest.approx(23.5e9, rel=0.002)
    recomputing = {"gradient_checkpointing": True}
    assert flops_per_token(on_azure(train=recomputing), PHI_SHAPE, 2048) == pytest.approx(plain * 4 / 3)
    assert flops_per_token(on_azure(train={"method": "lora"} | recomputing), PHI_SHAPE, 2048) < plain * 4 / 3


@pytest.mark.parametrize(
    ("train", "formula"),
    [
        ({"gradient_checkpointing": True}, "6 x 3.72 billion + 6 x 32 layers x 3,072 x 1,200 x 4/3 for recomputing"),
        ({"gradient_checkpointing": False}, "6 x 3.72 billion + 6 x 32 layers x 3,072 x 1,200)"),
        (
            {"method": "lora", "gradient_checkpointing": True},
            "6 x 3.72 billion + 8 x 32 layers x 3,072 x 1,200, recomputing included",
        ),
        ({"method": "lora", "gradient_checkpointing": False}, "4 x 3.72 billion + 6 x 32 layers x 3,072 x 1,200)"),
    ],
)
def test_arithmetic_shown_is_the_arithmetic_done(tmp_path: Path, train: dict[str, Any], formula: str) -> None:
    """The line's own numbers give the FLOPs that it says."""
    tokens = TOKENS | {"mean": 1200.0, "max": 1200, "truncated_share": 0.0}
    config = on_azure(train=train)
    estimate = estimate_run(config, None, prepared(tmp_path, [4800] * 8, 4, tokens))
    how = next(stage.how for stage in estimate.stages if stage.name == "train")
    assert formula in how
    weights, attention = (float(formula.split(" x ")[0]), float(formula.split(" + ")[1].split(" x ")[0]))
    flops = weights * PHI_SHAPE.num_multiplied_parameters + attention * 32 * 3072 * 1200
    flops *= 4 / 3 if "4/3" in formula else 1
    assert flops == pytest.approx(flops_per_token(config, PHI_SHAPE, 1200))


def test_time_is_flops_over_the_data_sheet(estimate: RunEstimate) -> None:
    """1.8 million tokens and their padding, three times, at 20 to 45 % of 312 TFLOP/s; the arithmetic is shown."""
    train = next(stage for stage in estimate.stages if stage.name == "train")
    assert 15 * 60 < train.seconds.low < train.seconds.high < 120 * 60
    assert "20% to 45% of 312 TFLOP/s" in train.how
    assert "x 4/3 for recomputing" in train.how
    assert "nvidia.com" in train.how
    assert "1,230 passes" in train.how


def test_money_is_time_at_the_price(estimate: RunEstimate) -> None:
    """The training's dollars are its hours at the size's price; two nodes cost twice, low priority a fifth."""
    train = next(stage for stage in estimate.stages if stage.name == "train")
    assert train.dollars is not None
    assert train.dollars.high == pytest.approx(train.seconds.high / 3600 * 3.673)
    assert estimate.dollars is not None
    assert estimate.dollars.high == pytest.approx(sum(s.dollars.high for s in estimate.stages if s.dollars))
    low = estimate_run(on_azure(compute={"size": A100, "tier": "low_priority"}))
    assert low.job_dollars_an_hour == pytest.approx(0.7346)
    two = estimate_run(on_azure(compute={"size": A100, "num_nodes": 2, "max_instances": 2}))
    assert two.job_dollars_an_hour == pytest.approx(2 * 3.673)


def test_what_bills_afterwards_comes_first(estimate: RunEstimate) -> None:
    """The page begins with the price by the hour and by the month, then the run, and cites its sources."""
    page = estimate_markdown(estimate)
    assert page.startswith("### Afterwards\n\n0.25 dollars an hour while it serves")
    assert page.index("### Afterwards") < page.index("### This run, once") < page.index("### Memory")
    for wanted in ("phiflow down --scope endpoint", "arXiv:2205.05198", "arXiv:1910.02054", "arXiv:2001.08361"):
        assert wanted in page
    assert "| ---" not in page


def test_kept_nodes_bill_by_the_hour() -> None:
    """A cluster that keeps nodes is in the hourly price; on this machine nothing bills, and nothing costs."""
    kept = estimate_run(on_azure(compute={"size": A100, "min_instances": 2, "max_instances": 2}))
    assert kept.dollars_an_hour_after == pytest.approx(2 * 3.673 + 0.252)
    local = estimate_run(on_this_machine(cost={"max_run": 0.01}))
    assert local.bills == ()
    assert local.dollars == Range(low=0, high=0)
    require_within_cap(on_this_machine(cost={"max_run": 0.01}), local)


def test_adopted_job_costs_nothing_again(tmp_path: Path, estimate: RunEstimate) -> None:
    """With the job there already, only what comes after it takes time and money."""
    data = prepared(tmp_path, [4000, 6000] * 820, 439, TOKENS)
    config = on_azure(train={"packing": False, "gradient_checkpointing": True})
    adopted = estimate_run(config, None, data, job_exists=True, num_new_images=0)
    names = {stage.name for stage in adopted.stages}
    assert names == {"compare", "deploy", "move traffic", "serve the chat app"}
    assert adopted.dollars is not None and estimate.dollars is not None
    assert adopted.dollars.high < estimate.dollars.low
    assert adopted.job_seconds == estimate.job_seconds


# The cap


def test_cap_stops_what_may_cost_more(estimate: RunEstimate) -> None:
    """The high end decides: just below it the run is refused, with estimate, cap and what to change; at it, it goes."""
    assert estimate.dollars is not None
    high = estimate.dollars.high
    require_within_cap(on_azure(), estimate)
    require_within_cap(on_azure(cost={"max_run": high}), estimate)
    with pytest.raises(GateRefusedError) as told:
        require_within_cap(on_azure(cost={"max_run": high - 0.01}), estimate)
    assert told.value.exit_code == 3
    assert "cost.max_run is" in str(told.value)
    assert f"to {high:.2f} dollars" in str(told.value)
    assert "\n" not in str(told.value)


def test_cap_refuses_a_size_without_price() -> None:
    """Without a price nobody can say that the cap holds; the line says what to add to which table."""
    config = on_azure(compute={"size": "Standard_X9", "tier": "low_priority"}, cost={"max_run": 1000})
    estimate = estimate_run(config)
    assert (estimate.dollars, estimate.unpriced) == (None, ("Standard_X9",))
    with pytest.raises(GateRefusedError, match=r'"Standard_X9": \{"low_priority": DOLLARS_AN_HOUR\}'):
        require_within_cap(config, estimate)


def test_line_to_add_is_enough(tmp_path: Path) -> None:
    """The table made from the line that the refusal tells is read, and prices the size."""
    own = tmp_path / "own.json"
    sizes_ = {"Standard_X9": {"dedicated": 2.0, "vcpus": 8, "memory_gib": 256}}
    own.write_text(json.dumps({"date": "2026-11-01", "region": "eastus", "source": "ours", "sizes": sizes_}))
    config = on_azure(compute={"size": "Standard_X9", "timeout_seconds": 3600}, cost={"max_run": 9, "prices": str(own)})
    estimate = estimate_run(config)
    assert estimate.unpriced == ()
    assert estimate.memory is not None and estimate.memory.fits == "yes"
    require_within_cap(config, estimate)


@pytest.mark.parametrize(
    ("cap", "nodes", "limit", "seconds"),
    [
        (None, 1, 86400, 86400),
        (3.673, 1, 86400, 3600),
        (3.673, 2, 86400, 1800),
        (3.673, 1, 600, 600),
        (1e-6, 1, 600, 60),
    ],
)
def test_job_ends_when_the_cap_is_spent(cap: float | None, nodes: int, limit: int, seconds: int) -> None:
    """The job's wall-clock limit is the configured one, or sooner what the cap buys of its nodes."""
    compute = {"size": A100, "num_nodes": nodes, "max_instances": nodes, "timeout_seconds": limit}
    assert job_timeout_seconds(on_azure(compute=compute, cost={"max_run": cap})) == seconds
    assert job_timeout_seconds(on_this_machine(cost={"max_run": cap}, compute={"timeout_seconds": limit})) == limit


def test_job_that_its_limit_may_end_is_warned_of(tmp_path: Path) -> None:
    """A limit below the high end of the job is named with its seconds."""
    config = on_azure(compute={"size": A100, "timeout_seconds": 1200})
    estimate = estimate_run(config, None, prepared(tmp_path, [6000] * 1640, 439, TOKENS))
    assert any("compute.timeout_seconds, after 1200 s" in line for line in estimate.warnings)


# What is not known


def test_unknown_model_is_bounded_by_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an unknown model no memory is told, the training costs at most its time limit, and that is said."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = on_azure(model={"base": "azureml:mine:3"}, compute={"size": A100, "timeout_seconds": 7200})
    estimate = estimate_run(config)
    assert estimate.memory is None
    train = next(stage for stage in estimate.stages if stage.name == "train")
    assert train.seconds == Range(low=0, high=7200)
    assert any("shape of azureml:mine:3 is not known" in line for line in estimate.unknown)
    assert per_thousand(config, estimate) is None


def test_unknown_data_gives_memory_and_a_thousand_conversations() -> None:
    """Without the data, memory is that of full rows, and time that of a thousand conversations."""
    config = on_azure()
    estimate = estimate_run(config)
    assert estimate.memory is not None and estimate.memory.fits == "yes"
    thousand = per_thousand(config, estimate)
    assert thousand is not None
    assert 60 < thousand.seconds.low < thousand.seconds.high < 7200
    assert any("the data was not read" in line for line in estimate.unknown)


@pytest.mark.parametrize("size", ["Standard_NC24s_v3", "Standard_NC48ads_A100_v4"])
def test_machine_that_is_not_used_well_is_warned_of(size: str) -> None:
    """GPUs that no process uses, and such without bfloat16, are named."""
    (warning, *_) = estimate_run(on_azure(compute={"size": size})).warnings
    assert "GPUs; compute.processes_per_node uses 1" in warning
    assert ("no bfloat16" in warning) == ("NC24s_v3" in size)


def test_packing_saves_steps(tmp_path: Path) -> None:
    """Packed, conversations of about 1,100 tokens share rows of 2,048, so that there are fewer steps."""
    data = prepared(tmp_path, [4000, 6000] * 820, 439, TOKENS)
    steps = [estimate_run(on_azure(train={"packing": packing}), None, data).work for packing in (True, False)]
    assert steps[0] and steps[1] and steps[0].num_steps.high < 0.6 * steps[1].num_steps.low


def machines_of(size: str) -> Any:
    """What the shipped table knows of a size."""
    from tasks.estimate.prices import load_prices

    return load_prices().machine(size)


# Beside what it took

RESULT = {"train": {"num_tokens": 5_400_000, "num_steps": 1230, "seconds": 2400.0, "resumed_from_step": None}}
EVENTS = [{"time": "2026-11-21T10:00:00+00:00"}, {"event": "x"}, {"time": "2026-11-21T11:00:00+00:00"}]


def test_job_is_put_beside_its_estimate(estimate: RunEstimate) -> None:
    """Tokens, steps, seconds and dollars of the job, from its result and its events, stand beside what was thought."""
    spent = compare(estimate, RESULT, EVENTS, adopted=False)
    told = spent_document(spent)
    assert told["tokens"]["actual"] == 5_400_000
    assert told["tokens"]["estimated"]["low"] == pytest.approx(3 * 1640 * 1100)
    assert told["steps"] == {"estimated": {"low": 1230, "high": 1230}, "actual": 1230}
    assert told["job_seconds"]["actual"] == 3600
    assert told["job_dollars"]["actual"] == pytest.approx(3.673)
    assert "job: 60 min, estimated" in "\n".join(spent_lines(spent))
    assert "| steps | 1,230 | 1,230 |" in spent_table(spent)
    json.dumps(told)


def test_adopted_job_spent_nothing(estimate: RunEstimate) -> None:
    """A run that adopts its job says that it spent nothing on it; the report still shows what the job took."""
    spent = compare(estimate, RESULT, EVENTS, adopted=True)
    assert spent_lines(spent) == ["nothing for the training job: it was adopted"]
    assert "this run spent nothing on it" in spent_table(spent)


def test_what_a_job_does_not_say_is_not_known(estimate: RunEstimate) -> None:
    """A result without numbers, and no events, leave the comparison without an actual, not without a page."""
    spent = compare(estimate, {}, (), adopted=False)
    assert "not known" in spent_table(spent)
    resumed = compare(estimate, {"train": {"resumed_from_step": 500}}, (), adopted=False)
    assert "first 500 steps" in spent_lines(resumed)[0]


def test_estimate_is_a_json_document(estimate: RunEstimate) -> None:
    """The whole estimate survives JSON, with totals that programs need."""
    told = json.loads(json.dumps(estimate_document(estimate)))
    assert told["shape"]["num_parameters"] == N
    assert told["memory"]["total"]["low"] > 60e9
    assert told["dollars_an_hour_after"] == pytest.approx(0.252)
    assert told["dollars_a_month_after"]["low"] > 180
