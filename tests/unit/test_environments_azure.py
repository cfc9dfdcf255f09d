"""The images for Azure Machine Learning, as far as they can be checked without building one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.platforms.azure.build_context import read_definition

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / "environments"
IMAGES = ["training", "serving-cpu", "serving-gpu"]
INSTRUCTIONS = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "USER", "EXPOSE", "CMD"}
# The one pin that azureml-mlflow lowers.
LOWERED = {"pytz"}


def instructions(name: str) -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their continued lines joined."""
    text = (ENVIRONMENTS / name / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text))
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]


def argument(name: str, instruction: str) -> str:
    """What follows the one instruction of that kind."""
    (found,) = [rest for keyword, rest in instructions(name) if keyword == instruction]
    return found


def pins(path: Path) -> dict[str, str]:
    """The versions of a lock."""
    return dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==([^\s;]+)", path.read_text(encoding="utf-8")))


def readme_blocks() -> list[str]:
    """The YAML of environments/README.md."""
    return re.findall(r"```yaml\n(.*?)```", (ENVIRONMENTS / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("name", IMAGES)
def test_the_context_holds_all_that_is_copied_and_no_more(name, tmp_path):
    """Every COPY finds its source in what is uploaded, and what is not copied is not uploaded."""
    definition = read_definition(ENVIRONMENTS / name, tmp_path)
    copied = {word for keyword, rest in instructions(name) if keyword == "COPY" for word in rest.split()[:-1]}
    assert {path.name for path in definition.context.iterdir()} == {"Dockerfile", *copied}
    if name != "training":
        assert (definition.context / "server" / "__main__.py").is_file()
        assert not list(definition.context.rglob("*.pyc"))


@pytest.mark.parametrize("name", IMAGES)
def test_the_dockerfile_is_reproducible(name):
    """Known instructions only; a dated base image; uv as locked; no index or other host is named."""
    found = instructions(name)
    assert {keyword for keyword, _ in found} <= INSTRUCTIONS
    assert found[0][0] == "FROM"
    assert re.fullmatch(r"mcr\.microsoft\.com/azureml/[a-z0-9.-]+:20\d{6}\.v\d+", argument(name, "FROM"))
    text = (ENVIRONMENTS / name / "Dockerfile").read_text(encoding="utf-8")
    assert "://" not in text and ":latest" not in text
    assert re.findall(r"uv==([\d.]+)", text) == [pins(ENVIRONMENTS / "orchestrator" / "requirements.txt")["uv"]]
    assert "--torch-backend=" in text and "-r torch.txt" in text


@pytest.mark.parametrize("name", IMAGES[1:])
def test_a_serving_image_runs_as_nobody_special(name):
    """It does not run as root, and its command and its routes name one port."""
    assert argument(name, "USER") == "phiflow"
    words = json.loads(argument(name, "CMD"))
    port = words[words.index("--port") + 1]
    routes = yaml.safe_load((ENVIRONMENTS / name / "environment.yaml").read_text())["inference_config"]
    assert {route["port"] for route in routes.values()} == {int(port)} == {int(argument(name, "EXPOSE"))}
    assert (routes["liveness_route"]["path"], routes["readiness_route"]["path"]) == ("/live", "/health")
    assert words[words.index("--host") + 1] == "0.0.0.0"  # other than this, nothing outside reaches a container


@pytest.mark.parametrize("name", IMAGES[1:])
def test_the_command_is_one_that_the_server_takes(name):
    """The command's options are the server's, with the model's folder and name from the environment."""
    words = json.loads(argument(name, "CMD"))
    code = "import sys; from server.__main__ import parse_arguments; print(parse_arguments(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words[3:]],
        env={"PYTHONPATH": str(ROOT / "deployments"), "AZUREML_MODEL_DIR": "/models", "PHIFLOW_MODEL_NAME": "phi"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "PosixPath('/models')" in done.stdout and f"engine='{'vllm' if 'gpu' in name else 'transformers'}'" in (
        done.stdout
    )


@pytest.mark.parametrize("name", IMAGES)
def test_the_sdk_reads_the_definition(name):
    """azure-ai-ml takes environment.yaml for an environment with this build context and these routes."""
    ml = pytest.importorskip("azure.ai.ml", reason="the Azure packages are not installed")
    environment = ml.load_environment(source=ENVIRONMENTS / name / "environment.yaml")
    assert environment.build.dockerfile_path == "Dockerfile"
    assert bool(environment.inference_config) == (name != "training")


def test_the_training_image_is_the_training_environment():
    """The image's lock has every pin of this machine's environment, but for the one that azureml-mlflow lowers."""
    here = pins(ENVIRONMENTS / "training" / "requirements.txt")
    image = pins(ENVIRONMENTS / "training" / "azure.txt")
    assert {name for name in here if image.get(name) != here[name]} == LOWERED
    assert {"azureml-mlflow", "azure-identity"} <= set(image) - set(here)


def test_one_mlflow_and_one_torch():
    """Every environment that has MLflow has the same, and all that have torch have the same."""
    locks = [*ENVIRONMENTS.glob("*/requirements.txt"), ENVIRONMENTS / "training" / "azure.txt"]
    versions = [pins(path) for path in locks]
    assert len({found[name] for found in versions for name in found if name in ("mlflow", "mlflow-skinny")}) == 1
    assert len({path.read_text() for path in ENVIRONMENTS.glob("*/torch.txt")}) == 1


def test_the_readme_states_the_images_versions():
    """The table and the example of environments/README.md have the Dockerfiles' images and the locks' versions."""
    text = (ENVIRONMENTS / "README.md").read_text(encoding="utf-8")
    base = argument("training", "FROM")
    assert base.removeprefix("mcr.microsoft.com/") in text
    assert {argument(name, "FROM") for name in IMAGES} == {base}
    known = pins(ENVIRONMENTS / "training" / "azure.txt") | pins(ENVIRONMENTS / "training" / "torch.txt")
    (conda,) = [yaml.safe_load(block) for block in readme_blocks() if "channels" in block]
    for requirement in conda["dependencies"][-1]["pip"]:
        name, _, version = requirement.partition("==")
        assert known[name] == version, name
    assert f"vLLM {pins(ENVIRONMENTS / 'serving-gpu' / 'requirements.txt')['vllm']}" in text
    assert f"torch {known['torch']}" in text or f"{known['torch']}, CUDA" in text


def test_an_image_with_a_conda_file_is_an_environment_too(tmp_path):
    """The example of environments/README.md is one that phiflow and the SDK read."""
    ml = pytest.importorskip("azure.ai.ml", reason="the Azure packages are not installed")
    folder = tmp_path / "my-training"
    folder.mkdir()
    for block in readme_blocks():
        (folder / ("conda.yaml" if "channels" in block else "environment.yaml")).write_text(block)
    (tmp_path / "assembled").mkdir()
    definition = read_definition(folder, tmp_path / "assembled")
    assert definition.context is None
    environment = ml.load_environment(source=definition.source)
    assert environment.image.startswith("mcr.microsoft.com/azureml/") and "torch==2.13.0" in str(environment.conda_file)
