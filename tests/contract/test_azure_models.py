"""Models in a workspace of the emulator, through the real SDK: one version a content, however many register."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.platforms.errors import NotFoundError
from tasks.platforms.refs import JobKind, JobRef
from tests.contract.azure_service import Service
from tests.contract.places import MADE

# Its own emulator.
pytestmark = pytest.mark.slow


def job_with_model(service: Service, name: str) -> tuple[JobRef, str]:
    """A job that left an MLflow model, and where."""
    storage = service.platform.workspace.storage
    path = f"phiflow/jobs/{name}/model"
    storage.write(f"{path}/MLmodel", b"flavors:\n  transformers:\n    task: llm/v1/chat\n    code: null\n")
    kind = {"kind": JobKind.TRAINING, "data_digest": "d", "url": "https://studio", "origin": MADE}
    return JobRef(name=name, key=name, attempt=1, **kind), storage.uri(path)  # type: ignore[arg-type]


def test_content_is_registered_once_and_versions_count(emulated: Service) -> None:
    """Registering the same content again adopts its version; other content gets the next number; both are read."""
    platform = emulated.platform
    job, location = job_with_model(emulated, "job-1")
    other, elsewhere = job_with_model(emulated, "job-2")
    gate = '{"passed": true, "reason": "' + "x" * 300 + '"}'
    lineage = '{"root": "org/base", "parent": {"base": "' + "y" * 300 + '"}}'
    first = platform.register_model("counted", job, location, "a" * 64, gate, lineage)
    assert (first.version, first.location, first.job, first.data_digest) == ("1", location, "job-1", "d")
    assert (first.gate, first.lineage) == (gate, lineage)
    again = platform.register_model("counted", other, elsewhere, "a" * 64, gate)
    assert again == first
    assert again.origin.reused
    assert platform.register_model("counted", other, elsewhere, "b" * 64, "{}").version == "2"
    assert platform.read_model("counted", "1") == first
    with pytest.raises(NotFoundError, match="Version 3 of model counted"):
        platform.read_model("counted", "3")


def test_two_that_register_at_once_make_one_version_each_content(emulated: Service) -> None:
    """However many register at once, each content has one version, and no number is given twice."""
    jobs = [job_with_model(emulated, f"race-{number}") for number in range(4)]

    def register(number: int) -> tuple[str, str]:
        job, location = jobs[number]
        digest = ("a" if number < 2 else "b") * 64
        return digest, emulated.platform.register_model("raced", job, location, digest, "{}").version

    with ThreadPoolExecutor(4) as pool:
        registered = set(pool.map(register, range(4)))
    assert len(registered) == 2, registered
    assert {version for _, version in registered} == {"1", "2"}


def test_version_is_rejected_and_taken_back(emulated: Service) -> None:
    """A rejection is kept with the version until it is taken back, and changes nothing else of it."""
    platform = emulated.platform
    job, location = job_with_model(emulated, "job-rejected")
    model = platform.register_model("rejected", job, location, "c" * 64, '{"passed": true}')
    assert platform.reject_model(model, "rude").rejected == "rude"
    found = platform.read_model("rejected", model.version)
    assert found.rejected == "rude"
    assert platform.reject_model(found, "") == model
