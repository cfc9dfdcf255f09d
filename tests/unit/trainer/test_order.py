from __future__ import annotations

import random
import shutil

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

from test_train import Job

from trainer.order import LengthGroups


def test_batches_are_of_like_length_and_every_row_is_in_one():
    """Padding to the batch's longest costs a tenth of what it costs in a random order."""
    rng = random.Random(0)
    lengths = [rng.randint(5, 500) for _ in range(400)]
    order = list(LengthGroups(lengths, 4, seed=0))

    def wasted(rows: list[int]) -> int:
        batches = [[lengths[row] for row in rows[at : at + 4]] for at in range(0, len(rows), 4)]
        return sum(4 * max(batch) - sum(batch) for batch in batches)

    assert sorted(order) == list(range(400))
    assert wasted(order) < 0.1 * wasted(rng.sample(range(400), 400))


def test_an_epochs_order_is_its_own():
    """Another epoch has another order, and the same one when it is asked for again."""
    order = LengthGroups(range(1, 101), 4, seed=3)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    again = LengthGroups(range(1, 101), 4, seed=3)
    again.set_epoch(1)
    assert first != second == list(again)


def test_a_resumed_run_of_padded_rows_finds_its_order_again(tiny_model, corpus, tmp_path):
    """From a checkpoint within the first epoch to the middle of the second: the weights of the unbroken run."""
    settings = {
        "attn_implementation": "sdpa", "packing": False, "per_device_train_batch_size": 2, "max_steps": 6,
        "save_steps": 3, "num_eval_generations": 0,
    }  # fmt: skip
    unbroken = Job(tmp_path / "unbroken", tiny_model, corpus, **settings)
    assert unbroken.run() == 0
    resumed = Job(tmp_path / "resumed", tiny_model, corpus, **settings)
    shutil.copytree(unbroken.folder / "checkpoints", resumed.folder / "checkpoints")
    shutil.rmtree(resumed.folder / "checkpoints" / "checkpoint-6")
    assert resumed.run() == 0
    assert resumed.result()["train"]["resumed_from_step"] == 3
    assert resumed.result()["model_digest"] == unbroken.result()["model_digest"]
