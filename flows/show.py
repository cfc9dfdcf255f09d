"""How outcomes look in a terminal."""

from __future__ import annotations

from typing import Any

from flows.billing import what_bills
from tasks.config import PipelineConfig
from tasks.platforms.upkeep import Check, Outcome


def show_run(told: dict[str, Any], config: PipelineConfig) -> None:
    """The end of a run: what was trained, how much better it is, where it serves."""
    gate, model = told["gate"], told["model"]
    print(
        f"\n{told['run']['state']}: {told['run']['message'] if told['run']['state'] == 'Refused' else gate['reason']}"
    )
    if told["job"]:
        _show_training(told, config.model.base)
    else:
        print("  trained   nothing: no job was submitted")
    if model:
        print(f"  model     {model['name']} version {model['version']} ({model['digest'][:12]})")
    if told["endpoint"]:
        show_endpoint(told["endpoint"])
    if told["chat"]:
        print(f"  chat      {told['chat']['url']}")
    for line in told["spent"]["lines"] if told["spent"] else ():
        print(f"  took      {line}")
    print(f"  Prefect   {told['run']['url']}")
    if told["mlflow"]:
        print(f"  {_tracking_label(told):<9} {told['mlflow']['url']}")
    for line in what_bills(config):
        print(f"  costs     {line}")


def _show_training(told: dict[str, Any], base_model: str) -> None:
    data, base, candidate = told["data"], told["scores"]["base"], told["scores"]["candidate"]
    print(f"  trained   {base_model} on {data['counts']['train']} conversations ({told['job']['name']})")
    print(f"  tested    on {data['counts']['test']} others{_rejected(data)}")
    print(f"  before    {_scores(base)}")
    print(f"  after     {_scores(candidate)}")
    gate = told["gate"] or {}
    low, high = gate.get("improvement_low"), gate.get("improvement_high")
    if low is not None and high is not None:
        print(f"  better    by {low:+.3f} to {high:+.3f} in {gate['metric']}, 95 % interval")
    if told["curves"]:
        print(f"  curves    {told['curves']}")


def _scores(scores: dict[str, Any]) -> str:
    chrf = "" if scores["chrf"] is None else f", chrF {scores['chrf']:.1f}"
    return f"loss {scores['loss']:.3f}, word for word {scores['exact_match']:.0%}{chrf}"


def show_endpoint(endpoint: dict[str, Any]) -> None:
    """An endpoint with its traffic, one line, and its deployments."""
    frozen = f", frozen: {endpoint['frozen']}" if endpoint["frozen"] else ""
    print(f"  endpoint  {endpoint['url']}{frozen}")
    for deployment in endpoint["deployments"]:
        line = f"{deployment['percent']:>3} %  {deployment['name']}  version {deployment['model_version']}"
        print(f"            {line}, {deployment['state']}")


def show_status(told: dict[str, Any]) -> None:
    """What serves now."""
    if told["jobs"]:
        print(f"  jobs      {', '.join(told['jobs'])}")
    if told["endpoint"] is None:
        print("  Nothing serves. Start it with: phiflow run")
        _show_services(told)
        return
    model = told["model"]
    print(f"  model     {model['name']} version {model['version']}" if model else "  model     none serves")
    if told["gate"]:
        print(f"  gate      {told['gate'].get('reason', '')}")
    if told["endpoint"]:
        show_endpoint(told["endpoint"])
    print(f"  chat      {told['chat']['url'] if told['chat'] else 'not served'}")
    if told["mlflow"]:
        print(f"  {_tracking_label(told):<9} {told['mlflow']['url']}")
    for line in told["history"][-5:]:
        print(f"  traffic   {line}")
    _show_services(told)


def _tracking_label(told: dict[str, Any]) -> str:
    """Whose page the link opens: MLflow's own, or on Azure the studio, which has its runs."""
    return "Studio" if "?wsid=" in told["mlflow"]["url"] else "MLflow"


def _show_services(told: dict[str, Any]) -> None:
    for service in told["services"]:
        print(f"  {service['state']:<9} {service['name']} {service['url']}")


def show_data(told: dict[str, Any]) -> None:
    """The prepared files."""
    print(f"{told['counts']['train']} conversations to train on: {told['train_file']}")
    print(f"{told['counts']['test']} to test on: {told['test_file']}{_rejected(told)}")
    _show_sources(told["sources"])
    counts = told["counts"]
    if counts.get("left_out"):
        print(f"{counts['left_out']} left out, by weights or data.max_examples")
    if counts.get("duplicates"):
        what_next = "left out" if told["is_deduplicated"] else "data.deduplicate leaves them out"
        print(f"{counts['duplicates']} repeat another conversation: {what_next}")


def _show_sources(sources: list[dict[str, Any]]) -> None:
    for source in sources if len(sources) > 1 else ():
        weight = f", weight {source['weight']:g}" if source["weight"] != 1 else ""
        of = source["counts"]
        print(f"  {source['name']} ({source['shape']}{weight}): {of['train']} to train on, {of['test']} to test on")
    if with_tools := sum(source["counts"]["with_tools"] for source in sources):
        print(f"{with_tools} of those read call or define tools")


def _rejected(data: dict[str, Any]) -> str:
    if not data["num_rejected"]:
        return ""
    lines = [f"\n            {r['file']}:{r['line']}: {r['reason']}" for r in data["rejected"][:5]]
    more = "\n            ..." if data["num_rejected"] > 5 else ""
    return f"; {data['num_rejected']} rejected:{''.join(lines)}{more}"


def show_check(check: Check) -> None:
    """One check, and what to do below it."""
    print(f"{check.outcome:<5} {check.name:<13} {check.found}", flush=True)
    if check.fix and check.outcome != Outcome.PASS:
        print(f"{'':<19} fix: {check.fix}", flush=True)
