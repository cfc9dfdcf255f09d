"""Data preparation: a source of any known kind and shape becomes canonical train and test files.

`readers` yields raw records, `hub` loads dataset ids, `shapes` recognises columns, `conversation` makes
and checks canonical records, `split` chooses sides, `prepare` writes the folder, `inspection` only looks.
Everything but `hub`, Parquet files and `tokens` needs the standard library alone.
"""

from trainer.data.inspection import SourceSummary, inspect_source

__all__ = ["SourceSummary", "inspect_source"]
