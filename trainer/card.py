"""The model card of a packaged model: README.md in Hugging Face's form, with YAML in front of the text.

It is left out of the model's digest, which names weights, tokenizer and settings; and it holds no time, so that the
same training writes the same card.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

_METRICS = ("loss", "perplexity", "token_accuracy", "exact_match")
_METHODS = {
    "full": "every weight learned",
    "lora": "LoRA, merged into the weights; the adapter is kept beside the model",
    "qlora": "LoRA over weights in 4 bits, merged into the base's own; the adapter is kept beside the model",
}


def model_card(provenance: dict[str, Any], metrics: dict[str, dict[str, Any]], facts: dict[str, Any]) -> str:
    """The whole card.

    Args:
        provenance: what `provenance_of` says.
        metrics: of `base` and `candidate`, on the same conversations.
        facts: `license` of the base model where it is known, `datasets` where they are hub ids, `merge` and
            `adapter_digest` where there is an adapter.
    """
    parts = [
        _front_matter(provenance, facts),
        f"# {_short(provenance['base_model']['name'])}, fine-tuned",
        _origin(provenance),
        _data(provenance),
        _scores(metrics),
        _settings(provenance, facts),
        _use(provenance["base_model"]["name"]),
    ]
    return "\n\n".join(parts) + "\n"


def license_of(base_model: str) -> str:
    """The licence that the base model's own card names, where the base is a folder with one; else nothing."""
    try:
        text = (Path(base_model) / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    front = re.match(r"\A---\s*\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*['\"]?([\w.-]+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else ""


def is_hub_id(name: str) -> bool:
    """Whether it reads owner/name, as every id of a model on the hub but the oldest."""
    return bool(re.fullmatch(r"(?!builtin/)[\w.-]+/[\w.-]+", name))


def _front_matter(provenance: dict[str, Any], facts: dict[str, Any]) -> str:
    name, method = provenance["base_model"]["name"], provenance["method"]
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    if is_hub_id(name):
        lines += [f"base_model: {name}", "base_model_relation: finetune"]
    if facts.get("license"):
        lines.append(f"license: {facts['license']}")
    if facts.get("datasets"):
        lines += ["datasets:", *(f"- {dataset}" for dataset in facts["datasets"])]
    lines += ["tags:", "- phiflow", "- sft", *([f"- {method}"] if method != "full" else []), "---"]
    return "\n".join(lines)


def _origin(provenance: dict[str, Any]) -> str:
    base = provenance["base_model"]
    told = f"`{base['name']}`"
    if base["revision"]:
        told += f" at revision `{base['revision']}`"
    if base["digest"]:
        told += f" (content `{base['digest'][:16]}`)"
    return (
        f"Fine-tuned from {told} by phiflow: {_METHODS[provenance['method']]}. Learned: what the assistant says, with "
        "its stop token. Licence and intended use are the base model's."
    )


def _data(provenance: dict[str, Any]) -> str:
    rows = ["## Data", "", "| file | conversations | sha256 |", "|---|---|---|"]
    for side, about in (("train", "learned"), ("eval", "scored")):
        data = provenance["data"][side]
        rows.append(f"| {about} | {data['num_conversations']} | `{data['sha256']}` |")
    return "\n".join(rows)


def _scores(metrics: dict[str, dict[str, Any]]) -> str:
    base, candidate = metrics["base"], metrics["candidate"]
    rows = ["## Scores", "", f"On the {candidate['num_examples']} conversations kept from training.", ""]
    rows += ["| metric | base | this model |", "|---|---|---|"]
    for name in dict.fromkeys([*_METRICS, *candidate]):
        values = [scores.get(name) for scores in (base, candidate)]
        if all(isinstance(value, float) for value in values):
            rows.append(f"| {name} | {values[0]:.4g} | {values[1]:.4g} |")
    return "\n".join(rows)


def _settings(provenance: dict[str, Any], facts: dict[str, Any]) -> str:
    machine, versions = provenance["machine"], provenance["versions"]
    merge, adapter = facts.get("merge"), facts.get("adapter_digest")
    lines = [
        "## How it was made",
        "",
        f"- seed {provenance['seed']}; settings `{provenance['config_digest'][:16]}`, in full below",
        f"- code `{provenance['code_digest'][:16]}`, environment `{provenance['environment']}`",
        f"- machine: {', '.join(f'{key} {value}' for key, value in machine.items())}",
        f"- {', '.join(f'{name} {version}' for name, version in versions.items())}",
    ]
    if merge:
        lines.append(
            f"- merged: logits {merge['difference']:.2g} of their spread from the adapter's, which changed them by "
            f"{merge['learned']:.2g}"
        )
        if merge["quantised_difference"] is not None:
            lines.append(
                f"- the model in 4 bits, which was trained, is {merge['quantised_difference']:.2g} from this one"
            )
    if adapter:
        lines.append(f"- adapter `{adapter[:16]}`")
    settings = json.dumps(provenance["config"], indent=1, sort_keys=True, ensure_ascii=False)
    return "\n".join([*lines, "", "```json", settings, "```"])


def _use(name: str) -> str:
    return "\n".join(
        [
            "## How to load it",
            "",
            "No remote code is needed. In this folder:",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")',
            'tokenizer = AutoTokenizer.from_pretrained(".")',
            "```",
            "",
            "With vLLM: `vllm serve .`",
            "",
            "With MLflow, in the folder above: `mlflow.pyfunc.load_model('.')`, asked with "
            '`{"messages": [{"role": "user", "content": "..."}]}`.',
            "",
            f"The adapter, where there is one, is in `../adapter` and goes onto `{name}` with peft: "
            "`PeftModel.from_pretrained(base, '../adapter')`.",
        ]
    )


def _short(name: str) -> str:
    return name.rpartition("/")[2]
