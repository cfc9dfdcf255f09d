"""Sample answers during a training, and the picture of its curves."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="runs in the training environment")

from conftest import SETTINGS  # noqa: E402

from trainer.__main__ import main  # noqa: E402
from trainer.config import TrainConfig  # noqa: E402
from trainer.curves import Curves, curves_of, draw_curves  # noqa: E402
from trainer.generation import Answer  # noqa: E402
from trainer.pace import Pace  # noqa: E402
from trainer.sampling import Sampling  # noqa: E402


def train(folder, base, corpus, **settings) -> tuple[dict, list[dict]]:
    """Run the trainer; its result and events."""
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(SETTINGS | {"method": "lora", "lora_dropout": 0.5} | settings))
    arguments = ["--base-model", str(base), "--train-file", str(corpus), "--eval-file", str(corpus)]
    arguments += ["--model-output-dir", str(folder / "model"), "--config", str(folder / "train.json")]
    assert main(arguments) == 0
    logs = folder / "model.logs"
    events = [json.loads(line) for line in (logs / "events.jsonl").read_text().splitlines()]
    return json.loads((logs / "result.json").read_text()), events


def test_asking_changes_nothing(tiny_model, corpus, tmp_path):
    """With dropout, a training that answers questions after each step gives the weights of one that answers none."""
    asked, events = train(tmp_path / "asked", tiny_model, corpus, sample_steps=1, num_samples=2)
    silent, _ = train(tmp_path / "silent", tiny_model, corpus, num_samples=0)
    told = [event for event in events if event["event"] == "sample" and "step" in event]
    assert told and {event["step"] for event in told} <= {1, 2, 3}
    assert len({event["question"] for event in told}) == 2
    assert asked["model_digest"] == silent["model_digest"]


def test_it_stops_where_it_takes_too_long(monkeypatch, caplog):
    """After a round that took more than 5 % of the training's time there is none, and the log says why."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("trainer.sampling.time.monotonic", lambda: clock.now)
    rounds = []

    def answer(*_: object) -> list[Answer]:
        rounds.append(clock.now)
        clock.now += 3.0
        return [Answer("yes", (1,), True)]

    monkeypatch.setattr("trainer.sampling.greedy_answers", answer)
    monkeypatch.setattr("trainer.sampling.generating", lambda _: torch.no_grad())
    told = SimpleNamespace(emit=lambda *_, **__: None, table=lambda *_: None)
    watcher = SimpleNamespace(pace=Pace(0.0), events=told, tracker=told, seconds_left=lambda *_: 100.0 - clock.now)
    chat = SimpleNamespace(prompt_ids=[1], question="Well?", expected="yes")
    sampling = Sampling(TrainConfig(sample_steps=1), None, [chat], watcher)
    args = SimpleNamespace(world_size=1, save_steps=10)
    with caplog.at_level("INFO", "trainer"):
        for step in range(1, 10):
            clock.now += 1.0
            watcher.pace.step(clock.now, 10, 10)
            state = SimpleNamespace(global_step=step, max_steps=50, is_world_process_zero=True)
            sampling.on_step_end(args, state, SimpleNamespace(should_training_stop=False), model=torch.nn.Module())
    assert len(rounds) == 2  # 3 of 100 seconds, then 6
    assert "at most 5% is for them" in caplog.text


def test_the_picture_holds_what_was_logged():
    """A training's log becomes curves by step, and they a PNG; a single point and a strange title are drawn too."""
    from PIL import Image

    log = [{"step": 2, "loss": 1.5, "learning_rate": 1e-3}, {"step": 2, "eval_loss": 1.7}, {"step": 2, "train_loss": 1}]
    curves = curves_of(log, [[2, 900.0]])
    assert curves == Curves(
        loss=[[2, 1.5]], evaluation_loss=[[2, 1.7]], learning_rate=[[2, 1e-3]], tokens_per_second=[[2, 900.0]]
    )
    picture = draw_curves(curves, "a $strange^ {title}")
    image = Image.open(io.BytesIO(picture))
    assert image.format == "PNG" and image.width > 800 and len(picture) < 60_000
    assert draw_curves(Curves(loss=[]), "nothing")[:4] == picture[:4]
