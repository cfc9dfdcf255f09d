"""Two processes learn what one does: the loss is a mean over all supervised tokens of a step, whoever computed them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SETTINGS, chat, write_chats

pytest.importorskip("torch", reason="runs in the training environment")

from trainer.batches import Row, flatten
from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.sharding import choose_distribution
from trainer.shares import EvenRows

HERE = Path(__file__).parent
# The same rows a step: two passes of one row each in one process, one pass in each of two.
SHARED = SETTINGS | {"max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 1, "num_eval_generations": 0}
SHARED |= {"packing": False, "warmup_ratio": 0.0}
# Sums in another order: the last bits of float32, which six steps of AdamW carry on. Seen: 0 and 4e-7.
LOSS_TOLERANCE, WEIGHT_TOLERANCE = 1e-6, 1e-5


class Runs:
    """Trainer runs of one or two processes in folders of their own, all forked from one process."""

    def __init__(self, folder: Path, base: Path, chats: Path) -> None:
        self.folder, self.base, self.chats = folder, base, chats
        self.groups: list[list] = []

    def add(self, name: str, num_processes: int, **settings) -> None:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        accumulation = {"gradient_accumulation_steps": 2 // num_processes}
        (folder / "train.json").write_text(json.dumps(SHARED | accumulation | settings))
        arguments = [
            "--base-model", str(self.base), "--train-file", str(self.chats), "--eval-file", str(self.chats),
            "--model-output-dir", str(folder / "model"), "--checkpoint-dir", str(folder / "checkpoints"),
            "--log-dir", str(folder / "logs"), "--config", str(folder / "train.json"),
        ]  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"} | place for rank in range(2)]
        self.groups.append([[environment, arguments] for environment in (ranks if num_processes == 2 else [{}])])

    def run(self) -> None:
        environment = os.environ | {"PYTHONPATH": str(HERE.parents[2]), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        done = subprocess.run(
            [sys.executable, HERE / "forked.py"],
            input=json.dumps(self.groups), env=environment, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        codes = json.loads(done.stdout.rpartition("codes ")[2])
        assert all(code == 0 for group in codes for code in group), done.stdout[-4000:] + done.stderr[-6000:]
        self.groups = []

    def result(self, name: str) -> dict:
        return json.loads((self.folder / name / "logs" / "result.json").read_text())

    def difference(self, one: str, other: str) -> tuple[float, float]:
        """The largest between two runs: of the steps' losses, relative, and of the weights."""
        from safetensors.torch import load_file

        losses = [[loss for _, loss in self.result(name)["loss_curve"]] for name in (one, other)]
        assert len(losses[0]) == len(losses[1]) == 6
        weights = [load_file(self.folder / name / "model" / "model" / "model.safetensors") for name in (one, other)]
        assert weights[0].keys() == weights[1].keys()
        return (
            max(abs(a - b) / a for a, b in zip(*losses, strict=True)),
            max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0]),
        )


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory) -> Runs:
    """One process and two, each way of sharing the model, on conversations with unequal numbers of learned tokens."""
    folder = tmp_path_factory.mktemp("shared")
    answers = ["Yes.", "The sky is blue.", "Bees make honey. Cows eat grass. Fish live in water."]
    records = [chat(f"What colour is number {i}?", answers[i % 3] * (1 + i % 2)) for i in range(8)]
    runs = Runs(folder, tiny_model, write_chats(folder / "chats.jsonl", records))
    lora = {"method": "lora", "lora_dropout": 0.0}
    runs.add("one", 1)
    runs.add("ddp", 2, distribution="ddp")
    runs.add("fsdp", 2, distribution="fsdp")
    runs.add("recomputed", 2, distribution="fsdp", gradient_checkpointing=True)
    runs.add("one-lora", 1, **lora)
    runs.add("fsdp-lora", 2, distribution="fsdp", **lora)
    runs.run()
    return runs


@pytest.mark.slow
@pytest.mark.parametrize(
    ("one", "other"),
    [("one", "ddp"), ("one", "fsdp"), ("one", "recomputed"), ("one-lora", "fsdp-lora")],
)
def test_two_processes_learn_what_one_does(runs, one, other):
    """Losses of all steps and the final weights are those of one process with two passes a step."""
    loss, weight = runs.difference(one, other)
    print(f"\n{other}: largest difference of a loss {loss:.1e}, of a weight {weight:.1e}")
    assert loss < LOSS_TOLERANCE and weight < WEIGHT_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp", "fsdp-lora"])
def test_a_sharded_checkpoint_is_gone_on_from(runs, name):
    """Resumed from its parts, a run ends with the same model; a broken part gives way to the checkpoint before."""
    before = runs.result(name)
    checkpoints = runs.folder / name / "checkpoints"
    parts = json.loads((checkpoints / "checkpoint-6" / "complete.json").read_text())["files"]
    assert {"pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__1_0.distcp", "rng_state_1.pth"} <= set(parts)
    part = checkpoints / "checkpoint-6" / "optimizer_0" / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    settings = json.loads((runs.folder / name / "train.json").read_text())
    runs.add(name, 2, **settings)
    runs.run()
    after = runs.result(name)
    assert after["train"]["resumed_from_step"] == 3
    assert after["model_digest"] == before["model_digest"] and after["loss_curve"] == before["loss_curve"]


def test_shares_are_even_without_a_row_learned_twice():
    """Seven rows for two processes of two a pass become eight; the eighth has nothing to learn."""
    rows = [Row((5, 6, 7), (-100, 6, 7), (3,), (line,)) for line in range(1, 8)]
    even = EvenRows(rows, 4)
    assert len(even) == 8 and [row.lines for row in even] == [*((line,) for line in range(1, 8)), ()]
    batch = flatten([even[6], even[7]])
    assert (batch["labels"] != -100).sum() == 2 and batch["lines"] == (7,)


@pytest.mark.parametrize(
    ("method", "distribution", "num_parameters", "gpu_gb", "chosen"),
    [
        ("full", "auto", 3.8e9, 80, "ddp"),
        ("full", "auto", 3.8e9, 48, "fsdp"),
        ("lora", "auto", 3.8e9, 24, "ddp"),
        ("full", "auto", 2e6, 0, "ddp"),
        ("full", "fsdp", 2e6, 0, "fsdp"),
        ("qlora", "auto", 70e9, 24, "ddp"),
    ],
)
def test_a_model_is_sharded_where_a_gpu_cannot_hold_it(
    monkeypatch, method, distribution, num_parameters, gpu_gb, chosen
):
    """auto takes fsdp when weights and optimizer are too large for one GPU, and ddp otherwise."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    config = TrainConfig(method=method, distribution=distribution)
    weights_bytes = num_parameters * (4 if method == "full" else 2)
    assert choose_distribution(config, int(num_parameters), int(weights_bytes), int(gpu_gb * 1e9))[0] == chosen


def test_four_bits_are_not_sharded(monkeypatch):
    """fsdp with qlora is refused, with what to set."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainerError, match=r"Set train\.distribution to ddp"):
        choose_distribution(TrainConfig(method="qlora", distribution="fsdp"), 10, 40, 0)
