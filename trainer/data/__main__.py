"""The command `python -m trainer.data`: arguments in, a prepared folder and one line out."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any, NoReturn

from trainer.data.options import DataOptions, SourceOptions
from trainer.data.prepare import RejectedDataError, prepare
from trainer.errors import EXIT_INPUT, TrainerError

_NUM_REJECTED_PRINTED = 20


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"python -m trainer.data: {message}", file=sys.stderr)
        raise SystemExit(EXIT_INPUT)


def main(arguments: list[str] | None = None) -> int:
    """Prepare the data and return the exit code."""
    given = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        sources = tuple(SourceOptions.parse(text) for text in given.pop("source"))
        test_source = given.pop("test_source")
        tests = SourceOptions.parse(test_source) if test_source else None
        manifest = prepare(DataOptions(sources=sources, test_source=tests, **given))
    except TrainerError as error:
        print(error, file=sys.stderr)
        rejected = error.rejected if isinstance(error, RejectedDataError) else []
        for item in rejected[:_NUM_REJECTED_PRINTED]:
            print(f"{item['file']}:{item['line']}: {item['reason']}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted; nothing was written.", file=sys.stderr)
        return 130
    counts = manifest["counts"]
    noted = ", ".join(f"{counts[name]} {name}" for name in ("rejected", "duplicates", "overlap", "trimmed"))
    noted += f", {counts['left_out']} left out" if counts["left_out"] else ""
    sides = f"{counts['train']} train and {counts['test']} test conversations"
    print(f"Prepared {sides} in {given['output_dir']} ({noted})")
    return 0


def _parse(arguments: list[str]) -> dict[str, Any]:
    parser = _Parser(prog="python -m trainer.data", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--source",
        action="append",
        required=True,
        help="a JSONL, JSON, CSV or Parquet file, a folder of them, a pattern, or owner/name on the hub; may be given"
        ' several times, and as JSON: {"source": NAME, "weight": 0.3, "shape": ..., "split": ...}',
    )
    parser.add_argument("--output-dir", required=True, help="written whole or not at all")
    parser.add_argument("--config-name", help="config of the hub dataset")
    parser.add_argument("--split", help="split of the hub dataset, with a slice: train_sft[:1%%]; default: train")
    parser.add_argument("--revision", help="branch, tag or commit of the hub dataset")
    parser.add_argument("--shape", default="auto", help="auto, messages, sharegpt, alpaca or prompt-completion")
    parser.add_argument("--group-by", help="column whose equal values stay on one side of the split")
    parser.add_argument("--test-share", type=float, default=0.2, help="share kept for testing; default: 0.2")
    parser.add_argument(
        "--test-source", help="file, or owner/name#split on the hub, that is the test side instead of a share"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split; default: 0")
    parser.add_argument("--max-rejected-share", type=float, default=0.0, help="share that may be rejected; default: 0")
    parser.add_argument("--streaming", action="store_true", help="keep nothing of hub datasets on the disk")
    parser.add_argument("--deduplicate", action="store_true", help="of equal conversations leave the first of a side")
    parser.add_argument("--max-examples", type=int, help="most conversations of both sides; which is fixed by the seed")
    parser.add_argument("--tokenizer", help="folder or hub id, for token statistics")
    parser.add_argument("--max-length", type=int, help="where training cuts, tokens")
    return vars(parser.parse_args([_dashed(argument) for argument in arguments]))


def _dashed(argument: str) -> str:
    """Accept --output_dir for --output-dir."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if argument.startswith("--") else argument


def _stop(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
