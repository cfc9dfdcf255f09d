"""Tokens, rows and steps of a training, counted as the trainer counts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from estimates import here, on_azure, prepared

from tasks.estimate.work import measure_work, stand_in_work
from tasks.platforms.refs import DataManifest

TOKENS = {"tokenizer": "t", "max_length": 2048, "total": 0, "mean": 250.0, "p50": 250, "p95": 400, "max": 500}


@pytest.mark.parametrize(
    ("num_train", "train", "compute", "steps", "epochs"),
    [
        # The trainer's own result.json: 133 rows, batch 8, 500 steps, 29.412 epochs.
        (133, {"per_device_train_batch_size": 8, "max_steps": 500}, {}, 500, 29.412),
        (1640, {}, {}, 1230, 3.0),
        (1640, {"num_train_epochs": 0.5}, {}, 205, 0.5),
        (10, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8, "num_train_epochs": 2}, {}, 2, 2.0),
        (1640, {"gradient_accumulation_steps": 3}, {}, 411, 3.0),
        (1640, {}, {"num_nodes": 2, "processes_per_node": 4, "max_instances": 2}, 156, 3.0),
    ],
)
def test_steps_are_the_trainers(
    tmp_path: Path, num_train: int, train: dict[str, Any], compute: dict[str, Any], steps: int, epochs: float
) -> None:
    """Without packing the steps follow from rows, batch, accumulation and processes alone, exactly."""
    config = on_azure(train=train, compute={"size": "Standard_NC96ads_A100_v4", **compute})
    work = measure_work(config, prepared(tmp_path, [1000] * num_train, 20), 0, packs=False)
    assert (work.num_steps.low, work.num_steps.high) == (steps, steps)
    assert work.num_epochs.low == pytest.approx(epochs, abs=0.001)


def test_tokens_are_the_manifests(tmp_path: Path) -> None:
    """The manifest's mean is the mean of the rows; characters say only how it spreads, and what is learned."""
    data = prepared(tmp_path, [500, 1500] * 50, 25, TOKENS | {"truncated_share": 0.0})
    work = measure_work(here(), data, 0, packs=False)
    assert work.tokens.low == work.tokens.high == pytest.approx(250 * 100)
    assert work.test_tokens.low == pytest.approx(250 * 25)
    assert work.answer_share == pytest.approx(0.5)
    assert work.tokens.low < work.positions.low < 375 * 100
    assert work.longest_row == 500
    assert "tokenizer" in work.counted


def test_rows_are_cut(tmp_path: Path) -> None:
    """What is longer than max_length, or than the model's context, is cut there and no token more is computed."""
    data = prepared(tmp_path, [500, 1500] * 50, 25, TOKENS | {"truncated_share": 0.5})
    work = measure_work(here(train={"max_length": 200}), data, 0, packs=False)
    assert work.max_length == work.longest_row == 200
    assert work.tokens.high == pytest.approx(50 * 125 + 50 * 200)
    assert work.truncated_share.low == 0.5
    assert measure_work(here(), data, 128, packs=False).max_length == 128


def test_without_tokenizer_tokens_are_a_range(tmp_path: Path) -> None:
    """Characters alone give a range of tokens, and the output says that no tokenizer counted them."""
    work = measure_work(here(), prepared(tmp_path, [900] * 10, 5), 0, packs=False)
    assert work.tokens.low == pytest.approx(10 * 900 / 4.5)
    assert work.tokens.high == pytest.approx(10 * 900 / 3.3)
    assert "without the tokenizer" in work.counted


def test_without_the_file_percentiles_are_enough(tmp_path: Path) -> None:
    """Data that somebody else prepared in the workspace is told by its manifest alone."""
    data = prepared(tmp_path, [1000] * 10, 5, TOKENS | {"truncated_share": 0.1, "max": 4000})
    (tmp_path / "train.jsonl").unlink()
    work = measure_work(on_azure(), data, 0, packs=False)
    assert 0 < work.tokens.low <= work.tokens.high == 2500
    assert work.positions.high == 10 * 400
    assert work.longest_row == 2048
    assert work.answer_share is None


def test_packing_makes_fewer_rows(tmp_path: Path) -> None:
    """Packed rows are as many as the tokens fill, and what is computed has no padding."""
    data = prepared(tmp_path, [1000] * 100, 25, TOKENS | {"truncated_share": 0.0})
    work = measure_work(on_azure(), data, 0, packs=True)
    assert (work.num_rows.low, work.num_rows.high) == (13, 13)
    assert work.positions == work.tokens
    assert work.longest_row == 2048
    assert work.num_steps.high == 3 * 4


def test_unknown_data_is_a_thousand_conversations() -> None:
    """Nothing is known of the data, so rows may be short or full, and a fifth is kept for the test."""
    work = stand_in_work(on_azure(), 0, packs=False)
    assert work.is_stand_in
    assert (work.num_train, work.num_test) == (800, 200)
    assert (work.tokens.low, work.tokens.high) == (800 * 512, 800 * 2048)


def test_manifest_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """Neither manifest nor file: the range is wide, and nothing breaks."""
    data: DataManifest = prepared(tmp_path, [1000] * 10, 5)
    (tmp_path / "train.jsonl").unlink()
    (tmp_path / "manifest.json").unlink()
    assert measure_work(here(), data, 0, packs=False).tokens.low > 0
