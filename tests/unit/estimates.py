"""Configurations and prepared data to estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fakes import MADE

from tasks.config import PipelineConfig
from tasks.config_files import build_config
from tasks.platforms.refs import DataManifest

PLACE = {"kind": "azure", "subscription_id": "s", "resource_group": "g", "workspace": "w"}
A100 = "Standard_NC24ads_A100_v4"
PHI = "microsoft/Phi-3.5-mini-instruct"


def on_azure(**sections: Any) -> PipelineConfig:
    """Phi-3.5-mini on one A100."""
    values = {
        "name": "support",
        "data": {"source": "d.jsonl"},
        "platform": PLACE,
        "compute": {"size": A100},
        "model": {"base": PHI},
    }
    return build_config(values | sections, "test")


def here(**sections: Any) -> PipelineConfig:
    """The built-in model on this machine."""
    return build_config({"name": "support", "data": {"source": "d.jsonl"}} | sections, "test")


def prepared(folder: Path, lengths: list[int], num_test: int, tokens: dict[str, Any] | None = None) -> DataManifest:
    """Prepared data with conversations of these many characters to train on, the half of each an answer.

    Args:
        tokens: what the manifest says of tokens; without it, no tokenizer was there to count them.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for length in lengths:
            text = "x" * (length // 2 - 16)  # each message has 16 characters of the template
            roles = ("user", "assistant")
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role in roles]}) + "\n")
    manifest = {"rejected": [], **({"tokens": tokens} if tokens else {})}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return DataManifest(
        digest="d" * 64,
        train_file=str(folder / "train.jsonl"),
        test_file=str(folder / "test.jsonl"),
        manifest_file=str(folder / "manifest.json"),
        train_sha256="1" * 64,
        test_sha256="2" * 64,
        num_train=len(lengths),
        num_test=num_test,
        num_rejected=0,
        origin=MADE,
    )
