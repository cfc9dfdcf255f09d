"""Training by several processes: who this one is, and what they agree on. One process agrees with itself.

The service's PyTorch distribution, torchrun or a person sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT. Only rank 0 writes events, results, metrics and the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from trainer.errors import TrainerError

# Rank 0 scores the base model while the others wait for it; the libraries' own patience is ten minutes.
_PATIENCE = timedelta(days=1)


def world_size() -> int:
    """How many processes train together."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """This process's number on its machine, which is its GPU's."""
    return _number("LOCAL_RANK", 0)


def rank() -> int:
    """This process's number among all."""
    return _number("RANK", 0)


def is_first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def on_first_machine() -> bool:
    """Whether this process runs where the one that writes does."""
    return _number("RANK", 0) == local_rank()


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Within, the processes are connected; on a CPU with gloo, on GPUs with NCCL.

    Raises:
        TrainerError: they did not find each other.
    """
    if world_size() == 1:
        yield
        return
    import torch

    if device != "cpu":
        torch.cuda.set_device(local_rank())
    # A process that was given no local rank by its launcher would be taken for a single one by accelerate.
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainerError(
            f"The {world_size()} processes did not find each other: {str(error).splitlines()[0]}",
            "Check MASTER_ADDR and MASTER_PORT, or let the service or torchrun set them.",
            "configuration",
        ) from error
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def summed(values: Sequence[float], device: str) -> list[float]:
    """The sums of each value over all processes."""
    if world_size() == 1:
        return list(values)
    import torch

    # Double precision on a GPU, single is not enough to count tokens.
    sums = torch.tensor(list(values), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return [float(value) for value in sums.tolist()]


def of_first(value: Any) -> Any:
    """The first process's value, in every process: what they read from a shared disk may differ."""
    if world_size() == 1:
        return value
    import torch

    shared = [value]
    torch.distributed.broadcast_object_list(shared, src=0)
    return shared[0]


def gathered(value: Any) -> list[Any]:
    """Each process's value, in every process, by rank."""
    if world_size() == 1:
        return [value]
    import torch

    values = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return list(values)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() else default
