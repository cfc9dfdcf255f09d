"""What a training starts from when it goes on from the champion, night after night."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fakes import MADE, data_manifest, job_spec, model_version

from tasks.config import ModelConfig
from tasks.lineage import champion_as_base, choose_start, lineage_of, read_lineage
from tasks.platforms.refs import BaseModelRef, JobSpec, ModelVersion

MODEL = ModelConfig(base="org/base", start_from="champion")
BASE = BaseModelRef(base="org/base", revision="c1", digest="b" * 64, location="org/base", origin=MADE)


@dataclass
class Nights:
    """Runs after one another, each with its data and settings; every training passes its gate and serves."""

    model: ModelConfig = MODEL
    data: str = "d"
    settings: str = '{"learning_rate": 0.1}'
    champion: ModelVersion | None = None
    versions: list[ModelVersion] = field(default_factory=list)
    reason: str = ""

    def spec_from(self, start: BaseModelRef) -> JobSpec:
        data = data_manifest(digest=self.data * 64)
        return replace(job_spec(), model=start, data=data, settings=self.settings)

    def night(self, **changes: str) -> str:
        """Run, and say which version serves after it."""
        for name, value in changes.items():
            setattr(self, name, value)
        start = choose_start(self.model, BASE, self.champion, self.spec_from)
        self.reason = start.origin.reason
        key = self.spec_from(start).key
        adopted = next((version for version in self.versions if version.job == key), None)
        if adopted is None:
            number = str(len(self.versions) + 1)
            lineage = lineage_of(self.model, start)
            adopted = model_version(number, job=key, lineage=lineage, data_digest=self.data * 64)
            self.versions.append(adopted)
        self.champion = adopted
        return adopted.version


def test_unchanged_data_trains_once() -> None:
    """The first night trains the base; the nights after it find nothing changed, though the champion is another."""
    nights = Nights()
    assert nights.night() == "1"
    assert nights.reason == "no version serves yet, so training starts from model.base"
    assert [nights.night() for _ in range(3)] == ["1", "1", "1"]
    assert nights.reason.startswith("nothing changed: version 1, which serves, was trained from it on this data")


def test_new_data_trains_the_champion_on_once() -> None:
    """New data trains on from the version that serves, once; then nothing has changed again."""
    nights = Nights()
    nights.night()
    assert nights.night(data="e") == "2"
    assert nights.reason == "version 1, which serves, was trained on other data or with other settings"
    _, parent = read_lineage(nights.champion, MODEL, BASE)
    assert (parent.base, parent.digest) == ("support:1", nights.versions[0].digest)
    assert [nights.night() for _ in range(3)] == ["2", "2", "2"]
    assert nights.night(settings='{"learning_rate": 0.2}') == "3"
    assert nights.night() == "3"


def test_a_later_attempt_of_the_job_is_the_same_job() -> None:
    """A champion whose job was interrupted and continued under another name is recognised."""
    nights = Nights()
    nights.night()
    nights.champion = replace(nights.champion, job=f"{nights.champion.job}-a2")
    choose_start(MODEL, BASE, nights.champion, nights.spec_from)
    nights.night()
    assert nights.reason.startswith("nothing changed")


def test_after_a_roll_back_the_older_version_is_gone_on_from() -> None:
    """With version 1 serving again, the data of version 2 gives version 2's job again, and no third."""
    nights = Nights()
    nights.night()
    nights.night(data="e")
    nights.champion = nights.versions[0]
    assert nights.night() == "2"


def test_another_base_begins_another_line() -> None:
    """When model.base is another than the one the champion descends from, training starts from it, and says so."""
    nights = Nights()
    nights.night()
    other = ModelConfig(base="org/other", start_from="champion")
    start = choose_start(other, replace(BASE, base="org/other"), nights.champion, nights.spec_from)
    assert start.base == "org/other"
    assert "descends from org/base, and model.base is org/other" in start.origin.reason


def test_a_champion_registered_without_a_lineage_is_gone_on_from() -> None:
    """A version of before lineages is taken for a child of model.base: its job is adopted, or it is a start."""
    old = model_version("7", job=Nights().spec_from(BASE).key)
    assert choose_start(MODEL, BASE, old, Nights().spec_from).digest == BASE.digest
    start = choose_start(MODEL, BASE, old, Nights(data="e").spec_from)
    assert start == champion_as_base(old, "")
