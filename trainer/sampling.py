"""Sample answers while a model trains, to the same few questions each time; the training is the same without them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from trainer.generation import generating, greedy_answers

if TYPE_CHECKING:
    from trainer.callbacks import ProgressCallback
    from trainer.chat_template import EncodedChat
    from trainer.config import TrainConfig

log = logging.getLogger(__name__)

_NUM_PROMPTS = 3
_MAX_NEW_TOKENS = 64
_MOST = 0.05  # of the training's time
TABLE = "sample_answers.json"


class Sampling(TrainerCallback):
    """Asks the model every sample_steps steps, or with each evaluation; the first process alone does.

    Args:
        chats: conversations whose last questions are asked.
        watcher: what times the training, and where the answers are told.
    """

    def __init__(
        self, config: TrainConfig, tokenizer: Any, chats: Sequence[EncodedChat], watcher: ProgressCallback
    ) -> None:
        self.config, self.tokenizer, self.watcher = config, tokenizer, watcher
        self.chats = list(chats[: min(_NUM_PROMPTS, config.num_samples)])
        self.rows: list[dict[str, Any]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Ask where a round is due by the number of steps."""
        every = self.config.sample_steps
        if every and state.global_step % every == 0 and not control.should_training_stop:
            self._ask(args, state, model)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Ask with each evaluation where the configuration gives no number of steps."""
        if not self.config.sample_steps:
            self._ask(args, state, model)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the answers up to now, for the table."""
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from state_dict()."""
        self.rows = state["rows"]

    def _ask(self, args: Any, state: Any, model: Any) -> None:
        if not (self.chats and state.is_world_process_zero):
            return
        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            self._stop("a model in parts answers only when all processes take part")
            return
        prompts = [chat.prompt_ids for chat in self.chats]
        num_new = min(_MAX_NEW_TOKENS, self.config.max_new_tokens_eval)
        with generating(model):
            answers = greedy_answers(model, self.tokenizer, prompts, num_new)
        for chat, answer in zip(self.chats, answers, strict=True):
            told = {"step": state.global_step, "question": chat.question, "answer": answer.text}
            self.watcher.events.emit("sample", **told, expected=chat.expected)
            log.info("Asked %r step=%d answer=%r", chat.question[:60], state.global_step, answer.text[:100])
            self.rows.append(told | {"expected": chat.expected})
        self.watcher.tracker.table(TABLE, self.rows)
        self._account(args, state)

    def _account(self, args: Any, state: Any) -> None:
        """Stop asking where it takes too much of the training's time, that to come included."""
        pace, now = self.watcher.pace, time.monotonic()
        pace.other(now, "samples")
        left = self.watcher.seconds_left(state.global_step, state.max_steps, args.save_steps)
        share = pace.spent("samples") / max(now - pace.begun + left, 1e-9)
        if share > _MOST:
            self._stop(f"sample answers took {share:.1%} of the training's time, at most {_MOST:.0%} is for them")

    def _stop(self, reason: str) -> None:
        self.chats = []
        log.info("Stopped sampling reason=%s", reason)
