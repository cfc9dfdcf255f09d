"""What a training tells while it goes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="runs in the training environment")

from trainer.callbacks import ProgressCallback, progress_line  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.evaluations import Evaluations  # noqa: E402


class Told:
    """An event log and a tracker that remember."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict]] = []

    def emit(self, event: str, **fields) -> None:
        self.events.append((event, fields))

    def point(self, name: str, value: float, step: int) -> None:
        self.events.append((name, {"value": value, "step": step}))


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The time, in seconds, moved by the test."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("trainer.callbacks.time.monotonic", lambda: clock.now)
    return clock


def forward(num_tokens: int, num_supervised: int) -> dict:
    """A batch with that many tokens, some of which are learned."""
    labels = torch.tensor([[-100] * (num_tokens - num_supervised) + [1] * num_supervised])
    return {"input_ids": torch.zeros(1, num_tokens, dtype=torch.int64), "labels": labels}


def test_progress_counts_learned_tokens_and_foresees_evaluations(clock):
    """Four steps of two passes: rates, utilisation, the step's whole loss, and a time left with evaluations in it."""
    told = Told()
    evaluations = Evaluations(TrainConfig(eval_strategy="steps", eval_steps=4))
    watcher = ProgressCallback(told, told, evaluations, evaluation_tokens=3000)
    watcher.flops_per_token, watcher.peak_flops = 2e9, 4e12
    args = SimpleNamespace(device="cpu", world_size=1, save_steps=100, gradient_accumulation_steps=2)
    state = SimpleNamespace(global_step=0, max_steps=12, log_history=[], epoch=0.5, best_global_step=None)
    state.is_world_process_zero = True
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}])
    evaluations.on_train_begin(args, state, SimpleNamespace(), train_dataloader=range(10))
    watcher.on_train_begin(args, state, None)
    for _ in range(3):
        state.global_step += 1
        clock.now += 2.0
        watcher.saw(forward(1500, 200), torch.tensor(0.5))
        watcher.saw(forward(500, 100), torch.tensor(0.25))
        watcher.grad_norm = torch.tensor(1.5)
        watcher.on_optimizer_step(args, state, None, optimizer=optimizer)
        watcher.on_step_end(args, state, None)
    event = told.events[-1][1]
    assert (event["tokens_per_second"], event["supervised_tokens_per_second"]) == (1000, 150)
    assert (event["loss"], event["grad_norm"], event["learning_rate"]) == (0.75, 1.5, 1e-3)
    assert event["mfu"] == pytest.approx(0.5) and event["memory_bytes"] > 2**20
    # 9 steps of 2 s; 3 evaluations of 3,000 tokens, forward alone, at three times 1,000 tokens a second
    assert event["seconds_left"] == pytest.approx(9 * 2 + 3 * 1)
    clock.now += 40.0
    watcher.on_evaluate(args, state, None)
    assert watcher.seconds_left(4, 12, 100) == pytest.approx(8 * 2 + 2 * 40)
    assert (watcher.num_tokens, watcher.num_supervised_tokens) == (6000, 900)
    assert "mfu=50.0%" in progress_line(event) and len(progress_line(event)) < 160


def test_unknown_hardware_has_no_utilisation(clock):
    """Where nobody knows what the device could do, there is no mfu, neither in events nor for a person."""
    watcher = ProgressCallback(Told(), Told(), Evaluations(TrainConfig()), 0)
    assert watcher.mfu is None
