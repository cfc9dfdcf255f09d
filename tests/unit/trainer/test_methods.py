"""Whole runs by LoRA and QLoRA, from a base as hubs have them: in bf16, with a licence, a card and remote code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

import torch
from conftest import FACTS, SETTINGS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import trainer.loading
from trainer.__main__ import main
from trainer.files import digest_folder, digest_model
from trainer.merging import _relative, logits_of

SHORT = SETTINGS | {"learning_rate": 1e-2, "max_steps": 2, "num_eval_generations": 0, "save_steps": 50}
REMOTE = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
ROWS = [[5, 6, 7, 8, 9, 10, 11], [1, 2, 3]]


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory) -> Path:
    """The small model as Phi-3.5 is on the hub: bf16, with code of its own that nothing may run."""
    folder = tmp_path_factory.mktemp("bases") / "phi-small"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"auto_map": REMOTE}))
    (folder / "modeling_phi3.py").write_text("raise RuntimeError('remote code ran')\n")
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A base\n")
    (folder / "LICENSE").write_text("The licence of the base.\n")
    return folder


def run(folder: Path, base: Path, corpus: Path, **settings) -> SimpleNamespace:
    """Train, and give the package's folder and result.json."""
    (folder / "train.json").write_text(json.dumps(SHORT | settings))
    code = main(
        [
            *("--base-model", str(base), "--train-file", str(corpus), "--eval-file", str(corpus)),
            *("--model-output-dir", str(folder / "model"), "--config", str(folder / "train.json")),
            *("--checkpoint-dir", str(folder / "checkpoints"), "--log-dir", str(folder / "logs")),
        ]
    )
    done = folder / "logs" / "result.json"
    result = json.loads(done.read_text()) if done.exists() else {}
    return SimpleNamespace(code=code, package=folder / "model", result=result)


@pytest.fixture(scope="module")
def lora(tmp_path_factory, base, corpus) -> SimpleNamespace:
    """A run by LoRA."""
    return run(tmp_path_factory.mktemp("lora"), base, corpus, method="lora")


@pytest.fixture(scope="module")
def qlora(tmp_path_factory, base, corpus) -> SimpleNamespace:
    """A run by QLoRA, on the CPU backend of bitsandbytes that users are kept from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.loading, "require_hardware_for", lambda config: None)
        return run(tmp_path_factory.mktemp("qlora"), base, corpus, method="qlora")


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_kept_adapter_on_the_base_is_the_packaged_model(method, base, request):
    """The adapter in the package, put on the base with peft, gives the packaged model's logits."""
    from peft import PeftModel

    done = request.getfixturevalue(method)
    assert done.code == 0
    assert done.result["adapter_digest"] == digest_folder(done.package / "adapter")
    packaged = AutoModelForCausalLM.from_pretrained(done.package / "model", dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    before = logits_of(original, ROWS)
    adapter = logits_of(PeftModel.from_pretrained(original, done.package / "adapter"), ROWS)
    assert _relative(adapter, before, adapter) > 0.05, "nothing was learned"
    assert _relative(logits_of(packaged, ROWS), adapter, adapter) < 0.05
    config = json.loads((done.package / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "phi-small"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_every_method_on_a_gpu(method, base, corpus, tmp_path):
    """On a GPU each method trains, and packages weights in the base's precision; merging moved them by rounding."""
    done = run(tmp_path, base, corpus, method=method, learning_rate=1e-3)
    assert done.code == 0 and done.result["provenance"]["machine"]["device"] == "cuda"
    stored = load_file(done.package / "model" / "model.safetensors").values()
    assert {tensor.dtype for tensor in stored} == {torch.bfloat16}
    merge = done.result["merge"]
    assert (merge is None) == (method == "full")
    if merge:
        assert merge["difference"] < 0.1
        assert (merge["quantised_difference"] is None) == (method == "lora")


def test_qlora_merges_into_the_weights_of_the_files(qlora, base):
    """What QLoRA packages are the base's own weights and what was learned, not weights that were in 4 bits once."""
    name = "model.layers.0.mlp.down_proj.weight"
    original = load_file(base / "model.safetensors")[name].float()
    packaged = load_file(qlora.package / "model" / "model.safetensors")[name].float()
    adapter = load_file(qlora.package / "adapter" / "adapter_model.safetensors")
    a, b = (adapter[f"base_model.model.{name.replace('.weight', '')}.lora_{side}.weight"] for side in "AB")
    expected = original + 2 * b @ a
    assert torch.equal(packaged, expected.bfloat16().float())
    merge = qlora.result["merge"]
    assert merge["difference"] < 0.05
    assert merge["quantised_difference"] > merge["difference"], "the model in 4 bits is another one"


def test_the_base_of_qlora_is_scored_unquantised(lora, qlora):
    """Base and candidate of QLoRA are scored in the same precision: its base scores what LoRA's does."""
    assert qlora.result["metrics"]["base"] == lora.result["metrics"]["base"]


def test_the_package_is_portable(lora, base):
    """Precision of the base, every stop token, a template file; no remote code, no path of this machine."""
    model = lora.package / "model"
    config = json.loads((model / "config.json").read_text())
    assert "auto_map" not in config and config["architectures"] == ["Phi3ForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert {tensor.dtype for tensor in load_file(model / "model.safetensors").values()} == {torch.bfloat16}
    assert not list(model.glob("*.py"))
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    stops = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_tokens_to_ids("<|end|>") in stops and tokenizer.eos_token_id in stops
    assert "auto_map" not in json.loads((model / "tokenizer_config.json").read_text())
    assert (model / "chat_template.jinja").is_file() and (model / "tokenizer.json").is_file()
    assert (model / "LICENSE").read_text() == "The licence of the base.\n"
    for path in lora.package.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert str(base.parent) not in path.read_text(), path
    import mlflow

    reply = mlflow.pyfunc.load_model(str(lora.package)).predict(
        {"messages": [{"role": "user", "content": "What do bees make?"}], "max_tokens": 2}
    )
    assert "content" in reply[0]["choices"][0]["message"]


def test_the_result_says_where_the_model_comes_from(lora, base, corpus):
    """result.json names base, data, code, settings, seed, versions and machine, by digests and without paths."""
    from trainer.files import sha256_file

    found = lora.result["provenance"]
    assert found["base_model"] == {"name": "phi-small", "revision": None, "digest": digest_folder(base)}
    assert found["data"]["train"] == {"sha256": sha256_file(corpus), "num_conversations": len(FACTS)}
    assert found["seed"] == 0 and found["config"]["learning_rate"] == 1e-2
    assert {"python", "torch", "transformers", "peft"} <= set(found["versions"])
    assert found["machine"]["device"] == "cpu" and found["environment"].startswith("packages ")
    assert len(found["code_digest"]) == len(found["config_digest"]) == 64
    assert str(base.parent) not in json.dumps(found) and str(corpus.parent) not in json.dumps(found)


def test_the_card_tells_people_what_the_result_tells_programs(lora):
    """The model's README.md is a card of the hub's form with the data, the scores, the settings and how to load it."""
    import yaml

    text = (lora.package / "model" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["library_name"] == "transformers" and matter["license"] == "mit"
    assert matter["tags"] == ["phiflow", "sft", "lora"] and "base_model" not in matter
    provenance, metrics = lora.result["provenance"], lora.result["metrics"]
    assert provenance["data"]["train"]["sha256"] in body
    assert f"| loss | {metrics['base']['loss']:.4g} | {metrics['candidate']['loss']:.4g} |" in body
    assert lora.result["adapter_digest"][:16] in body and '"method": "lora"' in body
    for way in ("AutoModelForCausalLM.from_pretrained", "vllm serve", "mlflow.pyfunc", "PeftModel"):
        assert way in body


def test_the_card_changes_no_digest(lora, tmp_path):
    """Weights and tokenizer decide the model's digest, so that another card makes no other version."""
    folder = tmp_path / "model"
    shutil.copytree(lora.package / "model", folder)
    assert lora.result["model_digest"] == digest_model(folder)
    (folder / "README.md").write_text("# Another card\n")
    assert lora.result["model_digest"] == digest_model(folder)
    (folder / "config.json").write_text("{}")
    assert lora.result["model_digest"] != digest_model(folder)


def test_the_same_seed_gives_the_same_model(lora, base, corpus, tmp_path):
    """The same command on the same machine, dropout included: equal loss at each step, scores, weights and card."""
    again = run(tmp_path, base, corpus, method="lora")
    for key in ("loss_curve", "metrics", "model_digest", "adapter_digest"):
        assert again.result[key] == lora.result[key], key
    assert (again.package / "model" / "README.md").read_bytes() == (lora.package / "model" / "README.md").read_bytes()


def test_a_broken_merge_packages_nothing(base, corpus, tmp_path, monkeypatch, capsys):
    """When the merged model says something else, the run fails in one line and leaves no model."""
    from peft.tuners.lora import Linear

    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: torch.zeros_like(self.weight))
    done = run(tmp_path, base, corpus, method="lora")
    assert done.code == 1 and not done.package.exists()
    assert "Merging LoRA into bfloat16 weights changed the model" in capsys.readouterr().err.splitlines()[-1]


def test_a_hub_id_names_the_base_in_the_card(monkeypatch, tmp_path):
    """A base of the hub is linked in the card; a folder goes by its name, a download by its id."""
    from trainer.card import is_hub_id
    from trainer.provenance import BASE_VARIABLE, public_name

    assert is_hub_id("microsoft/Phi-3.5-mini-instruct") and not is_hub_id("builtin/tiny-phi3")
    assert public_name("microsoft/Phi-3.5-mini-instruct") == "microsoft/Phi-3.5-mini-instruct"
    assert public_name(str(tmp_path / "mine" / "model")) == "mine"
    cached = tmp_path / "hub" / "models--microsoft--Phi-4-mini-instruct" / "snapshots" / "abc"
    assert public_name(str(cached)) == "microsoft/Phi-4-mini-instruct"
    monkeypatch.setenv(BASE_VARIABLE, "support-bot:3")
    assert public_name(str(tmp_path / "mnt" / "INPUT_model")) == "support-bot:3"
