"""Chats to packed, masked tokens: trainer.tokens against TRL's own preparation, and whether they agree.

Both sides begin at JSONL and end at packed rows on disk; imports are not counted. TRL's rate hardly depends on the
number of conversations, so it gets a part of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.runner import (
    BenchmarkError,
    Numbers,
    Report,
    Side,
    alternate,
    machine,
    machine_line,
    median,
    ratio,
    say,
    side_environment,
    training_python,
)

_SIDES = "tests.benchmarks.preparation_sides"
_MEMORY_SECONDS = 0.25


def add_options(parser: argparse.ArgumentParser) -> None:
    """The benchmark's options."""
    parser.add_argument("--chats", type=int, default=200_000, help="conversations that ours prepares (default 200,000)")
    parser.add_argument("--trl-chats", type=int, default=6_000, help="conversations that TRL prepares (default 6,000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of both (default 3)")


def run(options: argparse.Namespace) -> Report:
    """Generate, prepare on both sides in turn, compare.

    Raises:
        BenchmarkError: a side failed, or they do not agree.
    """
    python = training_python()
    with tempfile.TemporaryDirectory(prefix="phiflow-preparation-") as name:
        folder = Path(name)
        num_trl = min(options.trl_chats, options.chats)
        corpus, part, tokenizer = _inputs(python, folder, options.chats, num_trl)
        say(f"wrote {options.chats} conversations, {corpus.stat().st_size / 1e6:.0f} MB")
        sides = [
            Side("ours", _measure(python, "ours", corpus, tokenizer)),
            Side("trl", _measure(python, "trl", part, tokenizer)),
        ]
        seen = alternate(sides, options.rounds, folder)
        for number in range(1, options.rounds + 1):
            _run(python, ["compare", "--folder", folder / f"round-{number}" / "ours", "--number", num_trl], folder)
            _require_equal(folder / f"round-{number}", num_trl)
    return _report(seen, machine(python), options.chats, num_trl)


def _inputs(python: Path, folder: Path, num_chats: int, num_trl: int) -> tuple[Path, Path, Path]:
    corpus, part, tokenizer = folder / "chats.jsonl", folder / "part.jsonl", folder / "tokenizer"
    _run(python, ["corpus", "--file", corpus, "--number", num_chats], folder)
    _run(python, ["tokenizer", "--file", corpus, "--tokenizer-dir", tokenizer], folder)
    with corpus.open("rb") as lines, part.open("wb") as file:
        file.writelines(line for line, _ in zip(lines, range(num_trl), strict=False))
    return corpus, part, tokenizer


def _measure(python: Path, side: str, corpus: Path, tokenizer: Path) -> Callable[[Path], Numbers]:
    def measure(folder: Path) -> Numbers:
        options: list[Any] = ["--file", corpus, "--tokenizer-dir", tokenizer, "--folder", folder]
        values = _run(python, [side, *options], folder)
        number = values["num_chats"]
        return values | {
            "seconds_a_chat": values["seconds"] / number,
            "cpu_seconds_a_chat": values["cpu_seconds"] / number,
        }

    return measure


def _run(python: Path, arguments: list[Any], folder: Path) -> dict[str, Any]:
    """Run one part, and return what it printed with the peak memory of all its processes together."""
    command = [str(python), "-m", _SIDES, *map(str, arguments)]
    peak = [0]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(command, env=side_environment(), stdout=subprocess.PIPE, stderr=log)
        watch = threading.Thread(target=_watch, args=(process, peak), daemon=True)
        watch.start()
        output, _ = process.communicate()
        watch.join()
    if process.returncode:
        said = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        raise BenchmarkError(f"exit code {process.returncode} of {arguments[0]}\n" + "\n".join(said))
    values: dict[str, Any] = json.loads(output.splitlines()[-1])
    return values | {"peak_memory_bytes": peak[0]}


def _watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], sum(_memory_bytes(pid) for pid in _tree(process.pid)))
        time.sleep(_MEMORY_SECONDS)


def _tree(root: int) -> list[int]:
    """A process and all below it; none where there is no /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it has ended meanwhile
            continue
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


def _memory_bytes(pid: int) -> int:
    """Resident memory, what is shared counted in parts (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _require_equal(folder: Path, num_compared: int) -> None:
    ours, theirs = (json.loads((folder / side / "digests.json").read_text()) for side in ("ours", "trl"))
    if ours != theirs or len(ours) != num_compared:
        alike = len(set(ours) & set(theirs))
        raise BenchmarkError(f"of {num_compared} conversations {alike} have the same tokens and labels on both sides")


def _report(seen: dict[str, list[Numbers]], where: dict[str, Any], num_chats: int, num_trl: int) -> Report:
    ours, trl = seen["ours"], seen["trl"]
    faster = ratio(trl, ours, "seconds_a_chat")
    cheaper = ratio(trl, ours, "cpu_seconds_a_chat")
    memory = {side: max(int(numbers["peak_memory_bytes"]) for numbers in seen[side]) for side in seen}
    rates = {side: 1 / median(seen[side], "seconds_a_chat") for side in seen}
    lines = [
        machine_line(where),
        f"ours: {num_chats} conversations, {ours[0]['num_tokens'] / ours[0]['num_chats']:.0f} tokens each, in "
        f"{median(ours, 'seconds'):.1f} s ({rates['ours']:.0f} a second), all cores, "
        f"rows {100 * ours[0]['fill_share']:.1f} % full",
        f"TRL: {num_trl} conversations in {median(trl, 'seconds'):.1f} s ({rates['trl']:.0f} a second), one process",
        f"times as fast: {faster}; of processor time per conversation: {cheaper}",
        f"peak memory of all processes: ours {memory['ours'] / 1e9:.2f} GB, TRL {memory['trl'] / 1e9:.2f} GB",
        f"same tokens and labels: {num_trl} of {num_trl} conversations",
    ]
    values = {
        "machine": where,
        "times_as_fast": {"value": faster.value, "least": faster.least, "most": faster.most},
        "times_less_processor_time": {"value": cheaper.value, "least": cheaper.least, "most": cheaper.most},
        "chats_per_second": rates,
        "peak_memory_bytes": memory,
        "rounds": seen,
    }
    return Report(lines, values)
