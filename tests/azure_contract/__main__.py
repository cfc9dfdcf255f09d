"""Print what is wrong with the exchanges of an emulator's log, what nobody judged, and how often it was called.

    python -m tests.azure_contract EXCHANGES.jsonl [--calls]

Ends with 1 when there are findings and with 2 when the descriptions are not on this machine.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tests.azure_contract.calls import count_calls
from tests.azure_contract.exchange import logged
from tests.azure_contract.judge import Judge, contract_folder, unjudged


def main(arguments: list[str]) -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.azure_contract", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--calls", action="store_true", help="only the table of calls, which needs no descriptions")
    options = parser.parse_args(arguments)
    if not options.log.is_file():
        parser.error(f"There is no log {options.log}: give the file that the emulator's --log names.")
    exchanges = list(logged(options.log))
    if not options.calls:
        folder = contract_folder()
        if folder is None:
            print("Microsoft's descriptions are not on this machine: set PHIFLOW_AZURE_CONTRACT.", file=sys.stderr)
            return 2
        findings = Judge(folder).findings(exchanges)
        reasons = Counter(why for exchange in exchanges if (why := unjudged(exchange)) is not None)
        for finding in findings:
            print(finding)
        print(f"{len(exchanges) - reasons.total()} exchanges judged, {len(findings)} kinds of findings.")
        for why, count in reasons.most_common():
            print(f"{count} not judged: {why}.")
        print()
    else:
        findings = []
    print(count_calls(exchanges).table())
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
