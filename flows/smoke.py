"""A cheap run on a real workspace, step by step, under a cost cap; everything that bills is deleted at the end.

    python -m flows.smoke deployments/azure-cpu.yaml --max-cost 5 --evidence azure-smoke

The cap is a limit on time: the cap over what the machines cost by the hour. The names of this run are its own, so
nothing that was there before is touched. The evidence, EVIDENCE.md and EVIDENCE.json, has no secret and no
subscription id, and may be attached to a report. After a kill -9: the same command with --tear-down NAME.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests

from tasks.config import PipelineConfig
from tasks.config_files import load_config
from tasks.estimate.prices import hourly_cost, load_prices
from tasks.platforms.connect import connect, require_runnable, tear_down
from tasks.platforms.errors import EXIT_INPUT, EXIT_PLATFORM, ConfigError, PhiflowError

# Disks, the registry and storage cost too, regions differ, and tearing down takes its time.
_MARGIN = 1.5
_QUESTION = "What is phiflow?"
_PACKAGES = ("phiflow", "azure-ai-ml", "azure-identity", "azure-storage-blob", "prefect", "mlflow-skinny")


@dataclass
class Step:
    """One thing that was tried, and what was seen."""

    name: str
    outcome: str = "failed"
    seconds: float = 0.0
    seen: dict[str, Any] = field(default_factory=dict)


class Smoke:
    """The run, and what it has seen so far."""

    def __init__(self, config_path: Path, config: PipelineConfig, overrides: list[str], limit_seconds: float) -> None:
        self.path, self.config, self.overrides = config_path, config, overrides
        self.deadline = time.monotonic() + limit_seconds
        self.steps: list[Step] = []

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Time one step and keep what it saw; a failure is kept too, and ends the run."""
        step = Step(name)
        self.steps.append(step)
        started = time.monotonic()
        print(f"{datetime.now(UTC):%H:%M:%S} {name} ...", file=sys.stderr, flush=True)
        try:
            yield step.seen
            step.outcome = "ok"
        except BaseException as error:
            step.outcome = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            step.seen["error"] = str(error) or type(error).__name__
            raise
        finally:
            step.seconds = round(time.monotonic() - started, 1)
            print(f"         {step.outcome} after {step.seconds} s {_line(step.seen)}", file=sys.stderr, flush=True)

    def phiflow(self, *arguments: str) -> dict[str, Any]:
        """Run the command as a person would, within the time that is left, and return its document."""
        command = [sys.executable, "-m", "flows", *arguments, "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            output, _ = process.communicate(timeout=max(1.0, self.deadline - time.monotonic()))
        except BaseException as error:
            process.send_signal(signal.SIGINT)  # what it started is found and deleted below
            process.wait(60)
            if isinstance(error, subprocess.TimeoutExpired):
                raise PhiflowError(f"The time that --max-cost buys was over during phiflow {arguments[0]}.") from None
            raise
        if process.returncode:
            raise PhiflowError(f"phiflow {arguments[0]} ended with exit code {process.returncode}{_error_of(output)}.")
        document: dict[str, Any] = json.loads(output)
        return document


def run_steps(smoke: Smoke) -> None:
    """Everything a user does on a first day, each thing checked."""
    config = smoke.config
    pipeline = [str(smoke.path), *(part for override in smoke.overrides for part in ("--set", override))]
    with smoke.step("sign in and read the workspace") as seen:
        require_runnable(config)
        place = connect(config.platform)
        seen["tracking"] = place.tracking_url()
    with smoke.step("look for what has these names already") as seen:
        _require(place.read_endpoint(config.endpoint_name) is None, f"endpoint {config.endpoint_name} exists")
        _require(not place.find_jobs(config.name), f"a job of {config.name} runs")
        seen["endpoint"] = config.endpoint_name
    with smoke.step("fine-tune, register, deploy, serve") as seen:
        first = smoke.phiflow("run", *pipeline)
        seen |= {key: first[key] for key in ("job", "gate", "model", "endpoint", "chat", "steps")}
        _require(first["run"]["state"] == "Completed", f"the run ended {first['run']['state']}")
        _require(list(first["endpoint"]["traffic"].values()) == [100], f"traffic is {first['endpoint']['traffic']}")
    with smoke.step("ask the endpoint") as seen:
        answer = place.invoke(config.endpoint_name, [{"role": "user", "content": _QUESTION}], max_tokens=32)
        seen |= {"question": _QUESTION, "answer": answer.text, "seconds": answer.seconds, "by": answer.deployment}
        _require(bool(answer.text.strip()), "the answer is empty")
    with smoke.step("ask the chat app") as seen:
        response = requests.post(f"{first['chat']['url']}/score", json={"question": _QUESTION}, timeout=180)
        response.raise_for_status()
        seen["answer"] = response.json()["answer"]
        _require(bool(str(seen["answer"]).strip()), "the answer is empty")
    with smoke.step("run again: nothing is made twice") as seen:
        again = smoke.phiflow("run", *pipeline)
        seen |= {"job": again["job"]["name"], "deployments": [d["name"] for d in again["endpoint"]["deployments"]]}
        _require(again["job"] == first["job"], f"the second run has job {again['job']['name']}")
        _require(again["endpoint"]["traffic"] == first["endpoint"]["traffic"], "the second run moved traffic")
    with smoke.step("read the service's counters") as seen:
        seen["metrics"] = [asdict(counted) for counted in place.read_metrics(config.endpoint_name, 900)]


def tear_down_everything(smoke: Smoke) -> None:
    """Cancel the jobs and delete what bills; a second Ctrl-C does not stop it."""
    signal.signal(signal.SIGINT, lambda *_: print("Deleting what bills, please wait ...", file=sys.stderr))
    with smoke.step("cancel the jobs and delete what bills") as seen:
        place = connect(smoke.config.platform)
        for job in place.find_jobs(smoke.config.name):
            place.cancel_job(job)
            seen[job.name] = "cancelled"
        seen["deleted"] = list(tear_down(smoke.config))
        _require(place.read_endpoint(smoke.config.endpoint_name) is None, "the endpoint is still there")


def main(arguments: list[str]) -> int:
    """Run, tear down whatever happened, and write the evidence; 0 when every step was ok."""
    options = _options(arguments)
    try:
        return _main(options)
    except PhiflowError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _main(options: argparse.Namespace) -> int:
    name = options.tear_down or f"smoke-x{secrets.token_hex(3)}"
    overrides = [f"name={name}", f"compute.name={name}", "rollout.keep_previous=0", *options.set]
    config = load_config(options.config, overrides)
    if config.platform.kind != "azure":
        raise ConfigError(f"{options.config} does not run on Azure: platform.kind is {config.platform.kind}.")
    price = options.price_per_hour or _price(config)
    limit = options.max_cost / (price * _MARGIN) * 3600
    print(
        f"{price:.2f} dollars an hour assumed, so at most {limit / 3600:.1f} hours. Names begin with {name}.",
        file=sys.stderr,
    )
    smoke = Smoke(options.config, config, overrides, limit)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started, failed = time.monotonic(), False
    try:
        if not options.tear_down:
            run_steps(smoke)
    except KeyboardInterrupt:
        failed = True
    except Exception as error:  # whatever it was, what bills must go, and the evidence must say it
        failed = True
        print(f"error: {error}", file=sys.stderr)
    failed = not _tried(tear_down_everything, smoke) or failed
    hours = (time.monotonic() - started) / 3600
    evidence = {
        "configuration": str(options.config),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "outcome": "failed" if failed else "ok",
        "hours": round(hours, 2),
        "at_most_dollars": round(hours * price, 2),
        "assumed_dollars_an_hour": price,
        "sizes": {"training": config.compute.size, "serving": config.serving.instance_type},
        "versions": {package: version(package) for package in _PACKAGES} | {"python": platform.python_version()},
        "steps": [asdict(step) for step in smoke.steps],
    }
    _write(options.evidence, evidence, config)
    print(f"{evidence['outcome']}: evidence in {options.evidence}.md and {options.evidence}.json", file=sys.stderr)
    return EXIT_PLATFORM if failed else 0


def _tried(what: Callable[[Smoke], None], smoke: Smoke) -> bool:
    try:
        what(smoke)
    except Exception as error:  # the evidence must be written, and say that something may still bill
        print(f"error: {error}\nSomething may still bill. Try --tear-down {smoke.config.name}", file=sys.stderr)
        return False
    return True


def _price(config: PipelineConfig) -> float:
    """What the machines of a run cost by the hour when all of them are there."""
    compute, serving, prices = config.compute, config.serving, load_prices(config)
    training = hourly_cost(compute.size, compute.max_instances, compute.tier, prices)
    served = hourly_cost(serving.instance_type, serving.instance_count, prices=prices)
    if training is None or served is None:
        known = {compute.size: training, serving.instance_type: served}
        sizes = [size for size, price in known.items() if price is None]
        raise ConfigError(
            f"No price is known for {', '.join(sizes)}.",
            fix="Say it with --price-per-hour, or ask for it: phiflow plan --refresh-prices",
        )
    return training + served


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise PhiflowError(f"Not as expected: {otherwise}.")


def _error_of(output: str) -> str:
    try:
        return f": {json.loads(output)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return ""


def _line(seen: dict[str, Any]) -> str:
    text = json.dumps(seen.get("error", seen), default=str)
    return text if len(text) < 160 else text[:157] + "..."


def _write(evidence_path: Path, evidence: dict[str, Any], config: PipelineConfig) -> None:
    """The evidence for programs and for people, without the subscription's id."""
    place = config.platform
    text = json.dumps(evidence, indent=2, default=str, ensure_ascii=False)
    if place.kind == "azure":
        text = re.sub(re.escape(place.subscription_id), "<subscription>", text, flags=re.IGNORECASE)
    evidence_path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    lines = [
        f"# phiflow on Azure Machine Learning: {evidence['outcome']}",
        f"{evidence['when']}, {evidence['configuration']}, {evidence['hours']} hours, at most "
        f"{evidence['at_most_dollars']} dollars at the assumed {evidence['assumed_dollars_an_hour']:.2f} an hour.",
        "| step | outcome | seconds |\n|---|---|---|\n"
        + "\n".join(f"| {step['name']} | {step['outcome']} | {step['seconds']} |" for step in evidence["steps"]),
        f"```json\n{text}\n```",
    ]
    evidence_path.with_suffix(".md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m flows.smoke", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, help="configuration file")
    parser.add_argument("--max-cost", type=float, required=True, metavar="DOLLARS", help="cap on what it may cost")
    parser.add_argument("--price-per-hour", type=float, metavar="DOLLARS", help="instead of the assumed prices")
    parser.add_argument("--evidence", type=Path, default=Path("azure-smoke"), help="where to write, without suffix")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value")
    parser.add_argument(
        "--tear-down", metavar="NAME", default="", help="only delete what a smoke run of that name left"
    )
    options = parser.parse_args(arguments)
    if options.max_cost <= 0 or (options.price_per_hour is not None and options.price_per_hour <= 0):
        print("error: costs must be above 0", file=sys.stderr)
        sys.exit(EXIT_INPUT)
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
