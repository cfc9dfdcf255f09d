"""The emulator's core: the plain SDK reaches it by its variables alone, and it refuses what Azure refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.azure.bodies import COMPUTE, PREVIEW, W, cluster_body, environment_body
from tests.azure_emulator.azurite import open_client
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE

_SDK = """
import json, os, sys, tempfile
from pathlib import Path
from azure.ai.ml import MLClient
from azure.ai.ml.entities import AmlCompute, BuildContext, Data, Environment, Model
from azure.ai.ml.entities._assets import Code
from azure.identity import DefaultAzureCredential
from azure.storage.blob import ContainerClient

ml = MLClient(
    DefaultAzureCredential(),
    os.environ["AZURE_SUBSCRIPTION_ID"],
    os.environ["AZURE_RESOURCE_GROUP"],
    os.environ["AZURE_ML_WORKSPACE"],
    show_progress=False,
    enable_telemetry=False,
)
out, folder = {}, Path(sys.argv[1])
out["location"] = ml.workspaces.get(os.environ["AZURE_ML_WORKSPACE"]).location

(folder / "code").mkdir()
(folder / "code" / "Dockerfile").write_text("FROM scratch")
(folder / "code" / "main.py").write_text("print(1)")
(folder / "chats.jsonl").write_text("{}")
data = ml.data.create_or_update(Data(name="sdk-chats", version="1", type="uri_file", path=str(folder / "chats.jsonl")))
out["data"] = data.path
conda = {"name": "x", "dependencies": ["python=3.11"]}
training = Environment(name="sdk-conda", version="1", image="mcr.microsoft.com/x", conda_file=conda)
ml.environments.create_or_update(training)
out["conda"] = ml.environments.get("sdk-conda", label="latest").conda_file
context = BuildContext(path=str(folder / "code"))
out["context"] = ml.environments.create_or_update(Environment(name="sdk-docker", version="1", build=context)).build.path
cluster = AmlCompute(name="sdk-cluster", size="Standard_E16s_v3", max_instances=2, idle_time_before_scale_down=120)
made = ml.compute.begin_create_or_update(cluster).result()
out["cluster"] = [str(made.provisioning_state), made.size, made.max_instances, ml.compute.get("sdk-cluster").size]
first = ml._code.create_or_update(Code(path=str(folder / "code")))
again = ml._code.create_or_update(Code(path=str(folder / "code")))
out["code"] = [first.id, again.id, first.path]
(folder / "model").mkdir()
(folder / "model" / "MLmodel").write_text("flavors:\\n  python_function:\\n    loader_module: mlflow.transformers\\n")
model = Model(name="sdk-model", version="3", type="mlflow_model", path=str(folder / "model"))
model = ml.models.create_or_update(model)
out["model"] = [model.flavors, [one.version for one in ml.models.list("sdk-model")]]
store = ml.datastores.get_default()
url = f"https://{store.account_name}.blob.{store.endpoint}"
container = ContainerClient(url, store.container_name, credential=DefaultAzureCredential())
out["blobs by identity"] = sorted(blob.name.rsplit("/", 1)[-1] for blob in container.list_blobs())
blob = container.upload_blob("lease", b"")
lease = blob.acquire_lease(15)
try:
    blob.acquire_lease(15)
except Exception as error:
    out["second lease"] = error.error_code
lease.release()
out["usages"] = [one.id for one in ml.compute.list_usage()]
out["sizes"] = [size.name for size in ml.compute.list_sizes()]
ml.compute.begin_delete("sdk-cluster").wait()
try:
    ml.compute.get("sdk-cluster")
except Exception as error:
    out["deleted"] = type(error).__name__
print(json.dumps(out, default=str))
"""


@pytest.fixture(scope="module")
def sdk(shared_emulator: EmulatorProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process with the plain SDK got from the emulator."""
    ran = shared_emulator.run(_SDK, str(tmp_path_factory.mktemp("sdk")))
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


def test_the_sdk_finds_the_workspace_by_variables_alone(sdk: dict[str, Any]) -> None:
    """Cloud metadata, sign-in and Resource Manager are the emulator's."""
    assert sdk["location"] == SCOPE.location


def test_the_sdk_uploads_data(sdk: dict[str, Any]) -> None:
    """A data asset is shown with the workspace's coordinates, as the service does."""
    assert f"workspaces/{SCOPE.workspace}/datastores/workspaceblobstore/paths/LocalUpload/" in sdk["data"]
    assert sdk["data"].endswith("/chats.jsonl")


def test_the_sdk_makes_environments(sdk: dict[str, Any]) -> None:
    """From a conda file, found again by label, and from a Docker context."""
    assert sdk["conda"] == {"name": "x", "dependencies": ["python=3.11"]}
    assert sdk["context"].startswith("https://phiflowemulated.blob.core.azure-emulator.test:")


def test_the_sdk_makes_and_deletes_a_cluster(sdk: dict[str, Any]) -> None:
    """Both are long-running operations that end."""
    state, size, most, read = sdk["cluster"]
    assert (state.upper().endswith("SUCCEEDED"), size, most, read) == (True, "STANDARD_E16S_V3", 2, "STANDARD_E16S_V3")
    assert sdk["deleted"] == "ResourceNotFoundError"


def test_the_sdk_uploads_code_once(sdk: dict[str, Any]) -> None:
    """The second snapshot of the same folder is found by its hash."""
    first, again, path = sdk["code"]
    assert first == again
    assert path.startswith("https://") and path.endswith("/code")


def test_the_sdk_registers_a_model(sdk: dict[str, Any]) -> None:
    """Its flavors are read from MLmodel."""
    assert sdk["model"] == [{"python_function": {"loader_module": "mlflow.transformers"}}, ["3"]]


def test_blobs_are_reached_by_identity_and_can_be_leased(sdk: dict[str, Any]) -> None:
    """The storage takes Entra tokens, and a lease keeps others away."""
    assert {"chats.jsonl", "MLmodel", "main.py"} >= set(sdk["blobs by identity"]) & {"chats.jsonl", "MLmodel"} != set()
    assert sdk["second lease"] == "LeaseAlreadyPresent"


def test_nothing_outside_this_machine_was_asked_for(sdk: dict[str, Any], shared_emulator: EmulatorProcess) -> None:
    """Not even a name was looked up; and a look-up would have been refused and seen."""
    assert shared_emulator.refused_names() == []
    ran = shared_emulator.run("import socket; socket.create_connection(('management.azure.com', 443))")
    assert "gaierror" in ran.stderr
    assert shared_emulator.refused_names() == ["management.azure.com"]
    shared_emulator.forget_refused_names()


def test_the_key_vault_gives_a_secret_to_whom_it_is_for(emulator: EmulatorProcess) -> None:
    """By the name that Azure gives vaults, with a token for vaults; the log does not have it."""
    emulator.set_secret("hub-token", "hf_emulated")
    url = "https://phiflowemulated.vault.azure.net/secrets/hub-token?api-version=7.4"
    script = f"import requests, sys; print(requests.get({url!r}, headers=dict(Authorization=sys.argv[1])).text)"
    given = emulator.run(script, f"Bearer {emulator.token('https://vault.azure.net')}")
    refused = emulator.run(script, f"Bearer {emulator.token()}")
    assert '"value": "hf_emulated"' in given.stdout
    assert "InvalidAuthenticationTokenAudience" in refused.stdout
    assert "hf_emulated" not in emulator.log.read_text(encoding="utf-8")


_DATASTORE = "azureml://datastores/workspaceblobstore/paths"
_REFUSED: dict[str, tuple[str, Any, int, str]] = {
    "environment without image": (f"environments/e/versions/1{PREVIEW}", {"properties": {}}, 400, "image and build"),
    "environment with bad conda": (
        f"environments/e/versions/1{PREVIEW}",
        environment_body(condaFile="dependencies: ["),
        400,
        "condaFile",
    ),
    "environment from no context": (
        f"environments/e/versions/1{PREVIEW}",
        {"properties": {"build": {"contextUri": f"{_DATASTORE}/nowhere"}}},
        400,
        "no content",
    ),
    "asset with a bad name": (f"environments/-e/versions/1{PREVIEW}", environment_body(), 400, "name '-e'"),
    "data of an unknown datastore": (
        f"data/d/versions/1{PREVIEW}",
        {"properties": {"dataType": "uri_file", "dataUri": "azureml://datastores/none/paths/x"}},
        404,
        "Could not find datastore: none",
    ),
    "data of an unknown type": (
        f"data/d/versions/1{PREVIEW}",
        {"properties": {"dataType": "csv", "dataUri": f"{_DATASTORE}/x"}},
        400,
        "dataType 'csv'",
    ),
    "data of another account": (
        f"data/d/versions/1{PREVIEW}",
        {"properties": {"dataType": "uri_file", "dataUri": "https://other.blob.core.windows.net/c/x"}},
        400,
        "storage account",
    ),
    "code that is not there": (
        f"codes/c/versions/1{PREVIEW}",
        {"properties": {"codeUri": f"{_DATASTORE}/none"}},
        400,
        "no content",
    ),
    "model without a place": (f"models/m/versions/1{PREVIEW}", {"properties": {}}, 400, "modelUri"),
    "model of a job that never was": (
        f"models/m/versions/1{PREVIEW}",
        {"properties": {"modelUri": "azureml://jobs/none/outputs/model/paths/", "modelType": "mlflow_model"}},
        404,
        "Could not find job: none",
    ),
    "tags that are not text": (f"environments/e/versions/1{PREVIEW}", environment_body(tags={"a": 1}), 400, "tags"),
    "cluster of an unknown size": (f"computes/c1{COMPUTE}", cluster_body("Standard_Huge"), 400, "Standard_Huge"),
    "cluster with a bad name": (f"computes/1{COMPUTE}", cluster_body(), 400, "Compute name '1'"),
    "cluster without a region": (f"computes/c1{COMPUTE}", cluster_body(location=""), 400, "location"),
    "no api-version": ("environments/e/versions/1", environment_body(), 400, "api-version"),
    "an unknown api-version": (
        "environments/e/versions/1?api-version=2035-01-01",
        environment_body(),
        400,
        "2035-01-01",
    ),
    "another workspace": (f"../other/environments/e/versions/1{PREVIEW}", environment_body(), 404, "workspaces/other"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_azure_refuses_is_refused(case: str, emulator: EmulatorProcess) -> None:
    """The SDK checks little before it sends; the service checks, and so does the emulator."""
    path, body, status, word = _REFUSED[case]
    where = f"{W}/{path}" if not path.startswith("../") else f"{W.rsplit('/', 1)[0]}/{path[3:]}"
    answer = emulator.send("PUT", where, body)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"]


def test_a_version_does_not_change(emulator: EmulatorProcess) -> None:
    """The same again is no conflict, tags may change, and another content is refused."""
    path = f"{W}/environments/fixed/versions/1{PREVIEW}"
    assert emulator.send("PUT", path, environment_body()).status_code == 201
    assert emulator.send("PUT", path, environment_body(tags={"a": "b"})).status_code == 200
    refused = emulator.send("PUT", path, environment_body(image="mcr.microsoft.com/y"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "UserError")
    read = emulator.send("GET", path).json()["properties"]
    assert (read["image"], read["tags"]) == ("mcr.microsoft.com/x", {"a": "b"})


def test_a_cluster_keeps_its_size(emulator: EmulatorProcess) -> None:
    """Its number of nodes changes; its machines do not."""
    path = f"{W}/computes/kept{COMPUTE}"
    assert emulator.send("PUT", path, cluster_body(most=1)).status_code == 201
    assert (
        emulator.send("PUT", path, cluster_body(most=3)).json()["properties"]["properties"]["scaleSettings"][
            "maxNodeCount"
        ]
        == 3
    )
    refused = emulator.send("PUT", path, cluster_body("Standard_DS4_v2"))
    assert refused.status_code == 400
    assert "vmSize" in refused.json()["error"]["message"]


def test_ids_are_equal_in_any_case(emulator: EmulatorProcess) -> None:
    """Resource Manager does not tell resourceGroups from resourcegroups."""
    emulator.send("PUT", f"{W}/environments/Cased/versions/1{PREVIEW}", environment_body())
    answer = emulator.send("GET", f"{W.lower()}/environments/cased/versions/1{PREVIEW}")
    assert answer.json()["id"].endswith("/environments/Cased/versions/1")


def test_long_lists_come_in_pages(emulator: EmulatorProcess) -> None:
    """Whoever takes the first page for the list misses the rest."""
    for number in range(1, 104):
        emulator.send("PUT", f"{W}/environments/many/versions/{number}{PREVIEW}", environment_body())
    first = emulator.send("GET", f"{W}/environments/many/versions{PREVIEW}").json()
    second = emulator.send("GET", first["nextLink"].removeprefix(emulator.url)).json()
    assert (len(first["value"]), len(second["value"]), "nextLink" in second) == (100, 3, False)
    assert first["value"][0]["name"] == "103"


@pytest.mark.parametrize("token", ["", "Bearer ", "Bearer a.b.c"])
def test_requests_without_a_token_are_refused(token: str, emulator: EmulatorProcess) -> None:
    """So are those with one that the emulator did not give."""
    answer = emulator.send("GET", f"{W}/nothing{PREVIEW}", Authorization=token)
    assert answer.status_code == 401
    assert "WWW-Authenticate" in answer.headers


def test_a_token_for_storage_does_not_open_resource_manager(emulator: EmulatorProcess) -> None:
    """The audience is looked at."""
    token = emulator.token("https://storage.azure.com")
    answer = emulator.send("GET", f"{W}{PREVIEW}", Authorization=f"Bearer {token}")
    assert answer.json()["error"]["code"] == "InvalidAuthenticationTokenAudience"


def test_the_log_has_no_tokens(emulator: EmulatorProcess) -> None:
    """Exchanges are kept whole, but for what opens something."""
    token = emulator.token()
    emulator.send("GET", f"{W}{PREVIEW}")
    text = emulator.log.read_text(encoding="utf-8")
    assert token not in text
    assert emulator.env["IDENTITY_HEADER"] not in text
    last = json.loads(text.splitlines()[-1])
    assert (last["operation"], last["status"], last["response"]["body"]["name"]) == ("GET W", 200, SCOPE.workspace)


def test_a_killed_emulator_goes_on_where_it_was(start_emulator: Callable[..., EmulatorProcess], tmp_path: Path) -> None:
    """Same address, same keys, same resources and blobs; a cluster that was on its way arrives."""
    emulator = start_emulator(tmp_path / "state")
    emulator.send("PUT", f"{W}/environments/kept/versions/1{PREVIEW}", environment_body())
    emulator.send("PUT", f"{W}/computes/kept{COMPUTE}", cluster_body())
    blobs = open_client(json.loads((tmp_path / "state/emulator/secrets/storage.json").read_text()))
    blobs.get_container_client("azureml").upload_blob("kept", b"content")
    before, storage = dict(emulator.env), emulator.storage_process()
    emulator.kill()
    emulator.start()
    assert emulator.env == before
    assert emulator.storage_process() == storage
    assert emulator.send("GET", f"{W}/environments/kept/versions/1{PREVIEW}").status_code == 200
    assert emulator.send("GET", f"{W}/computes/kept{COMPUTE}").json()["properties"]["provisioningState"] == "Succeeded"

    assert emulator.stop() == 0
    assert emulator.storage_process() is None
    assert emulator.output() == ""
    emulator.start()
    assert blobs.get_blob_client("azureml", "kept").download_blob().readall() == b"content"
    assert emulator.send("GET", f"{W}/environments/kept/versions/1{PREVIEW}").status_code == 200
