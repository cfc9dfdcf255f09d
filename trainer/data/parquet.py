"""Parquet files as a stream of raw records; needs pyarrow, which only the training environment has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data.shapes import without_null_fields
from trainer.data.values import RejectedRecordError
from trainer.errors import TrainerError

_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20  # without a buffer, a whole column of a row group is read at once


def read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (number of the row, row as a dict)."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TrainerError(f"Reading {path} needs pyarrow.", "Run it in the training environment.") from None
    # The default allocator keeps what was freed, which looks like memory that grows with the file.
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for index in range(batch.num_rows):
                    number += 1
                    yield number, _row(batch, index)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise TrainerError(f"The Parquet file {path} cannot be read: {reason}", "Is it cut off?") from None


def _row(batch: Any, index: int) -> Any:
    try:
        return without_null_fields({name: batch.column(name)[index].as_py() for name in batch.schema.names})
    except UnicodeDecodeError as error:
        return RejectedRecordError(f"not valid UTF-8: {error.reason}")
