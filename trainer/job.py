"""One training run: what it reads and writes, and what its stages hand on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import TrainConfig
from trainer.files import digest_folder, sha256_file
from trainer.ranks import world_size

if TYPE_CHECKING:
    from trainer.chat_template import EncodedChat
    from trainer.checks import Supervision
    from trainer.events import EventLog
    from trainer.hardware import Hardware
    from trainer.interruption import Interruption
    from trainer.tokens import TokenRows
    from trainer.tracking import Tracker


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What one run reads and writes."""

    base_model: str
    revision: str | None
    train_file: Path
    eval_file: Path
    model_output_dir: Path
    checkpoint_dir: Path
    config: TrainConfig

    def fingerprint(self) -> str:
        """Names what the checkpoints depend on."""
        base = digest_folder(self.base_model) if Path(self.base_model).is_dir() else self.base_model
        files = [sha256_file(self.train_file), sha256_file(self.eval_file)]
        settings = self.config.to_dict()
        if self.config.command_dir:
            settings["command_dir"] = digest_folder(self.config.command_dir)
        parts = [base, self.revision, *files, settings, world_size()]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Reporting:
    """Where a run tells how it goes, and hears that it should end."""

    events: EventLog
    tracker: Tracker
    interruption: Interruption


@dataclass(slots=True, kw_only=True)
class Run:
    """What the stages of one run share; `load_run` makes it.

    Args:
        job: its config has the max_length in use.
        model: in 32 bits, on its device; after training the finished one.
        stored_dtype: precision of the base model's files, which the result keeps.
        train_chats: one conversation a row; `packed()` gives the rows that are trained on when packing.
        stop_token_ids: tokens that end an answer.
        supervision: how much of the training file is learned.
        distribution: single, ddp or fsdp.
    """

    job: TrainJob
    reporting: Reporting
    hardware: Hardware
    tokenizer: Any
    model: Any
    stored_dtype: Any
    train_chats: TokenRows
    eval_chats: list[EncodedChat]
    stop_token_ids: set[int]
    supervision: Supervision
    distribution: str = "single"

    @property
    def config(self) -> TrainConfig:
        """How to train."""
        return self.job.config
