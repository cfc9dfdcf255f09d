"""Data preparation: a source of any known kind and shape becomes canonical train and test files.

`listing` finds files, `local_file` and `hub` open sources, `readers` yields raw records, `shapes` recognises columns,
`conversation` and `tool_calls` make and check canonical records, `split` chooses sides, samples and ranks, `side`
writes one file and leaves out repeats and what is over a cap, `prepare` writes the folder, `inspection` only looks.
Everything but `hub`, Parquet files and `tokens` needs the standard library alone.
"""

from trainer.data.inspection import SourceSummary, inspect_source

__all__ = ["SourceSummary", "inspect_source"]
