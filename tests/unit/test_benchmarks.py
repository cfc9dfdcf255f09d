"""What the benchmarks measure by: turns, ratios with their spread, and generated conversations."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import BENCHMARKS
from tests.benchmarks.conversations import conversations
from tests.benchmarks.runner import BenchmarkError, Side, alternate, ratio, run_process

ROOT = Path(__file__).resolve().parents[2]


def test_sides_take_turns_and_each_begins_once(tmp_path: Path) -> None:
    """Every round has every side once, and begins with another one, each in a folder of its own."""
    order: list[tuple[str, Path]] = []

    def side(name: str) -> Side:
        return Side(name, lambda folder: order.append((name, folder)) or {"seconds": float(len(order))})

    seen = alternate([side("a"), side("b"), side("c")], 3, tmp_path)
    assert "".join(name for name, _ in order) == "abcbcacab"
    assert len({folder for _, folder in order}) == 9
    assert [numbers["seconds"] for numbers in seen["a"]] == [1.0, 6.0, 8.0]


def test_ratio_is_of_medians_with_its_spread() -> None:
    """One slow round moves the spread and not the ratio."""
    ours, theirs = ([{"rate": value} for value in values] for values in ([8.0, 9.0, 2.0], [2.0, 2.0, 2.0]))
    found = ratio(ours, theirs, "rate")
    assert (found.value, found.least, found.most) == (4.0, 1.0, 4.5)
    assert str(found) == "4.00 (1.00 to 4.50)"


def test_failed_side_is_told_with_its_last_words(tmp_path: Path) -> None:
    """A side that fails ends the benchmark, with what it said."""
    with pytest.raises(BenchmarkError, match=r"(?s)exit code 3.*no such model"):
        run_process([sys.executable, "-c", "print('no such model'); raise SystemExit(3)"], tmp_path)


def test_memory_of_a_side_is_its_own(tmp_path: Path) -> None:
    """The peak is of the process that was run: one that holds 300 MB is seen to, by one as small as the benchmark's."""
    code = (
        "import sys; from pathlib import Path; from tests.benchmarks.runner import run_process; "
        "side = [sys.executable, '-c', \"x = bytearray(b'1') * 300_000_000\"]; "
        f"print(run_process(side, Path({str(tmp_path)!r}))[1])"
    )
    # A process begins with the peak of the one that started it, which this one's size would hide.
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert 300e6 < float(ran.stdout) < 350e6


def test_conversations_are_ultrachats_shape() -> None:
    """The same seed gives the same text; turns alternate; the longest is what was asked for."""
    first, again, other = (list(islice(conversations(60, seed), 60)) for seed in (0, 0, 1))
    assert first == again != other
    words = [sum(len(message["content"].split()) for message in record["messages"]) for record in first]
    assert 500 < sum(words) / 60 < 1000
    for record in conversations(60, 0, max_words=600):
        roles = [message["role"] for message in record["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert sum(len(message["content"].split()) for message in record["messages"]) <= 600 or len(roles) == 2


def test_every_benchmark_is_named() -> None:
    """The commands are those that the README names."""
    assert set(BENCHMARKS) == {"trainer", "data", "help"}
