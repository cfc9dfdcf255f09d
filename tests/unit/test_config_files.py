"""From YAML and --set to a configuration: what is accepted, from where, and how mistakes are told."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.config import WORKSPACE_VARIABLES
from tasks.config_files import build_config, load_config, resolve_config, with_absolute_paths
from tasks.platforms.errors import ConfigError, PhiflowError
from tasks.platforms.local.preflight import require_source

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "deployments").glob("*.yaml"))
GOOD = "name: support\ndata: {source: chats.jsonl}\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a configuration: a good one, with more lines when given, or the text as it is."""

    def write(more: str = "", *, source: str = "chats.jsonl", text: str | None = None) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(GOOD.replace("chats.jsonl", source) + more if text is None else text, encoding="utf-8")
        return path

    return write


def mistake(path: str | Path, *overrides: str) -> str:
    """The one line about a configuration that must be refused."""
    with pytest.raises(ConfigError) as caught:
        resolve_config(path, list(overrides))
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 800
    assert not re.search(r"\.\.$|\?\.$|pydantic|Traceback", line), line
    assert caught.value.exit_code == 2
    return line


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configurations_resolve(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every YAML that ships resolves, and its local data is there."""
    for variable in WORKSPACE_VARIABLES.values():
        monkeypatch.setenv(variable, "mine")
    config, origins = resolve_config(path)
    require_source(config.data)
    assert origins["name"] == str(path)
    assert config.name == config.model_name
    assert config.platform.kind == ("azure" if path.name.startswith("azure") else "local")


def test_endpoint_is_named_after_the_run_and_on_azure_after_the_workspace_too() -> None:
    """Two workspaces of a region have no endpoint name in common, since the service allows none twice."""
    values = {"name": "n" * 32, "data": {"source": "d.jsonl"}}
    place = {"kind": "azure", "subscription_id": "s", "resource_group": "g", "workspace": "one"}
    one = build_config({**values, "platform": place}, "test").endpoint_name
    other = build_config({**values, "platform": {**place, "workspace": "other"}}, "test").endpoint_name
    assert build_config(values, "test").endpoint_name == "n" * 32
    assert len(one) == len(other) == 32
    assert one != other
    assert build_config({**values, "platform": place, "endpoint": {"name": "mine"}}, "test").endpoint_name == "mine"


def test_there_is_a_shipped_configuration() -> None:
    """The default configuration ships."""
    assert ROOT / "deployments" / "local.yaml" in SHIPPED


# What is wrong with the lines that follow a good configuration, and what the message must contain.
WRONG_LINES = {
    "unknown key": ("rollout: {hold_second: 3}", "'rollout.hold_second'", "did you mean 'hold_seconds'"),
    "unknown key, nothing near": ("gate: {zzz: 3}", "'gate.zzz'", "known keys: metric, min_improvement"),
    "unknown section": ("rolout: {}", "'rolout'", "did you mean 'rollout'"),
    "unknown section before its neighbour's mistake": ("trian: {}\nchat: {port: x}", "did you mean 'train'"),
    "key of two lines": ('"a\\nb": 3', r"'a\nb'", "known keys: name"),
    "text for a number": ("chat: {port: many}", "chat.port", "'many'", "integer"),
    "yes for a number": ("chat: {port: true}", "chat.port", "true"),
    "list for text": ("model: {base: [a]}", "model.base", "['a']", "string"),
    "value for a section": ("rollout: 3", "rollout", "3", "section of keys and values"),
    "section without keys": ("rollout:", "rollout", "None", "section of keys and values"),
    "negative": ("rollout: {hold_seconds: -3}", "rollout.hold_seconds", "-3", "greater than or equal to 0"),
    "not a number": ("rollout: {hold_seconds: .nan}", "rollout.hold_seconds", "nan", "finite"),
    "endless": ("rollout: {hold_seconds: .inf}", "rollout.hold_seconds", "inf", "finite"),
    "percentage over 100": ("rollout: {max_error_percent: 101}", "max_error_percent", "101", "100"),
    "step over 100": ("rollout: {steps: [10, 150]}", "rollout.steps.1", "150", "100"),
    "steps that fall": ("rollout: {steps: [50, 10, 100]}", "rollout", "rise", "[50, 10, 100]"),
    "steps that stop": ("rollout: {steps: [10, 50]}", "rollout", "end in 100", "[10, 50]"),
    "no steps": ("rollout: {steps: []}", "rollout", "end in 100", "[]"),
    "port over the last": ("chat: {port: 70000}", "chat.port", "70000", "65535"),
    "path as a name": ("endpoint: {name: ../x}", "endpoint.name", "'../x'", "lower-case"),
    "path as an environment": ("environment: {serving: ../x}", "environment.serving", "'../x'", "lower-case"),
    "place that does not exist": ("platform: {kind: azur}", "platform.kind", "'azur'", "'local' or 'azure'"),
    "place without a workspace": ("platform: {kind: azure}", "platform.subscription_id", "AZURE_SUBSCRIPTION_ID"),
    "unknown key of a place": ("platform: {kind: azure, workspac: w}", "platform.workspac'", "'workspace'?"),
    "key of the other place": ("platform: {kind: local, workspace: w}", "platform.workspace", "known keys: kind, home"),
    "unknown train key": ("train: {learning_rat: 1}", "train.learning_rat", "train.learning_rate?"),
    "train limit": ("train: {learning_rate: -1}", "train.learning_rate", "above 0", "-1"),
    "train type": ("train: {seed: x}", "train.seed", "whole number", "'x'"),
    "train choice": ("train: {method: loar}", "train.method", "'loar'", "Did you mean lora?"),
    "train is a value": ("train: 3", "train", "3", "section of keys and values"),
    "key given twice": ("chat: {port: 1, port: 2}", ":3:", "'port'", "given twice"),
    "section given twice": ("data: {source: other.jsonl}", ":3:", "'data'", "given twice"),
    "key that is a number": ("3: 4", ":3:", "3", "not text"),
    "open bracket": ("rollout: {steps: [10\nchat: {}", ":4:", "expected"),
    "tab": ("chat:\n\tport: 1", ":4:", "cannot start any token"),
    "second document": ("---\nname: other", ":3:", "single document"),
    "date that does not exist": ("chat: {system_prompt: 2020-13-45}", "month must be in 1..12"),
    "number of 5000 digits": (f"chat: {{port: {'9' * 5000}}}", "digits"),
    "nested 3000 deep": (f"chat: {'[' * 3000}", "nested too deeply"),
    "anchor in itself": ("chat: &c {port: *c}", "alias"),
    "python object": ("chat: !!python/object/apply:os.getpid []", ":3:", "python/object"),
}


@pytest.mark.parametrize(("lines", "wanted"), [(w[0], w[1:]) for w in WRONG_LINES.values()], ids=WRONG_LINES)
def test_mistake_is_one_line(write: Callable[..., Path], lines: str, wanted: tuple[str, ...]) -> None:
    """A mistake is one line that names the file, the key, the value seen and what is right."""
    path = write(lines + "\n")
    line = mistake(path)
    assert str(path) in line
    for part in wanted:
        assert part in line


WRONG_FILES = {
    "no name": ("data: {source: x.jsonl}", "'name' is missing"),
    "no data": ("name: support", "'data' is missing"),
    "no source": ("name: support\ndata: {seed: 1}", "'data.source' is missing"),
    "misspelt source": ("name: support\ndata: {sorce: x}", "did you mean 'source'"),
    "empty source": ("name: support\ndata: {source: ''}", "data.source"),
    "../ in the name": ("name: ../evil\ndata: {source: x.jsonl}", "'../evil'"),
    "upper case": ("name: Support\ndata: {source: x.jsonl}", "lower-case letters"),
    "name too long": (f"name: {'a' * 33}\ndata: {{source: x.jsonl}}", "3 to 32 characters"),
    "name with a line end": ('name: "abc\\n"\ndata: {source: x.jsonl}', "lower-case letters"),
    "number for the name": ("name: 12\ndata: {source: x.jsonl}", "12"),
    "empty file": ("", "must be a mapping"),
    "list": ("- name: support", "must be a mapping"),
    "text": ("hello", "must be a mapping"),
    "NUL": ("name: a\0b", "x0000"),
}


@pytest.mark.parametrize(("text", "wanted"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_file_is_one_line(write: Callable[..., Path], text: str, wanted: str) -> None:
    """A file that is no configuration is told in one line that names it."""
    path = write(text=text)
    line = mistake(path)
    assert str(path) in line
    assert wanted in line


def test_missing_file_names_the_nearest(write: Callable[..., Path]) -> None:
    """A file that is not there: the message names the one that may have been meant, else how to make one."""
    path = write()
    assert f"Did you mean {path}?" in mistake(path.with_name("rum.yaml"))
    assert "phiflow init" in mistake(path.with_name("zzzzzzz.yaml"))


def test_what_is_no_readable_file(write: Callable[..., Path], tmp_path: Path) -> None:
    """A folder, a file inside a file, a name too long, a huge file and other encodings are refused."""
    path = write()
    assert "is a folder" in mistake(tmp_path)
    assert "cannot be read" in mistake(path / "inner.yaml")
    assert "cannot be read" in mistake(tmp_path / ("a" * 300 + ".yaml"))
    path.write_bytes(GOOD.encode() + b"# \xff\xfe\n")
    assert f"not UTF-8 at byte {len(GOOD) + 2}" in mistake(path)
    path.write_bytes(b"#" * (2 << 20))
    assert "not a configuration" in mistake(path)


def test_byte_order_mark_and_crlf_are_fine(write: Callable[..., Path]) -> None:
    """A file saved by a Windows editor is read."""
    path = write()
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_config(path).name == "support"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="phiflow-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def unprivileged(function: Callable[[], object]) -> str:
    """Call the function as a user without rights, and return the error it raised as text."""
    read, written = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            function()
            told = "no error"
        except PhiflowError as error:
            told = f"{type(error).__name__} {error.exit_code} {error}"
        except BaseException:  # a forked child must not run on into pytest; the parent asserts on the text
            told = traceback.format_exc()
        os.write(written, told.encode())
        os._exit(0)
    os.close(written)
    with open(read, encoding="utf-8") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return told


def test_unreadable_configuration_is_one_line(open_folder: Path) -> None:
    """A file, or a folder, that this user may not read is told so."""
    path = open_folder / "run.yaml"
    path.write_text(GOOD)
    path.chmod(0o000)
    assert unprivileged(lambda: load_config(path)).startswith(f"ConfigError 2 Configuration {path} may not be read")
    path.chmod(0o644)
    assert unprivileged(lambda: load_config(path)) == "no error"
    open_folder.chmod(0o000)
    told = unprivileged(lambda: load_config(path))
    open_folder.chmod(0o755)
    assert told.startswith(f"ConfigError 2 Configuration {path}")


def test_unreadable_data_is_one_line(open_folder: Path) -> None:
    """Data that this user may not read is refused before anything starts."""
    path = open_folder / "run.yaml"
    path.write_text(GOOD)
    (open_folder / "chats.jsonl").write_text("{}\n")
    (open_folder / "chats.jsonl").chmod(0o000)
    told = unprivileged(lambda: require_source(load_config(path).data))
    assert told.startswith(f"DataError 2 Data {open_folder}/chats.jsonl may not be read")


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("none.jsonl", "does not exist"),
        ("folder/", "is a folder"),
        ("empty.jsonl", "is empty"),
        ("../../no such thing", "neither a file here nor a hub data set's id"),
        ("a/b/c", "neither a file here nor a hub data set's id"),
        ('"a\\0b.jsonl"', "cannot be read"),
        ("a" * 300 + ".jsonl", "cannot be read"),
        ("~nobody-of-this-name/x.jsonl", "does not exist"),
    ],
)
def test_wrong_source_is_one_line(write: Callable[..., Path], tmp_path: Path, source: str, wanted: str) -> None:
    """A data source that cannot be right is refused in one line, before any environment is built."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").touch()
    config = load_config(write(text=f"name: support\ndata: {{source: {source}}}\n"))
    if wanted.startswith("neither"):
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": source})})
    with pytest.raises(PhiflowError) as caught:
        require_source(config.data)
    assert caught.value.exit_code == 2
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("rollout.hold=3", ("'rollout.hold'", "did you mean 'hold_seconds'", "--set")),
        ("rolout.hold_seconds=3", ("'rolout'", "did you mean 'rollout'", "--set")),
        ("rollout.hold_seconds", ("--set rollout.hold_seconds", "section.key=value")),
        ("=3", ("section.key=value",)),
        ("", ("section.key=value",)),
        ("name.x=3", ("name.x", "name is a value, not a section")),
        ("data.source.x=3", ("data.source.x", "source is a value")),
        ("rollout.steps=[10,5,100]", ("[10, 5, 100]", "--set")),
        ("train.seed=[", ("train.seed", "expected")),
        ("train.sed=3", ("train.sed", "train.seed?")),
        ("rollout=3", ("rollout", "section of keys and values")),
        ("data.source=", ("data.source",)),
        ("chat.port=-1", ("chat.port", "-1")),
    ],
)
def test_wrong_override_is_one_line(write: Callable[..., Path], override: str, wanted: tuple[str, ...]) -> None:
    """A wrong --set is one line that names the key and what was meant."""
    line = mistake(write(), override)
    for part in wanted:
        assert part in line


def test_numbers_are_read_as_people_write_them(write: Callable[..., Path]) -> None:
    """5e-6 is a number, in a file and in --set."""
    path = write("train: {learning_rate: 5e-6}\nrollout: {hold_seconds: 1e1}\n")
    assert load_config(path).train.learning_rate == 5e-6
    assert load_config(path).rollout.hold_seconds == 10.0
    assert load_config(path, ["train.learning_rate=3e-3"]).train.learning_rate == 3e-3


def test_origin_of_each_value(write: Callable[..., Path]) -> None:
    """Each value says whether it is the default, the file's or --set's; --set wins over the file."""
    path = write("rollout: {hold_seconds: 3, num_probes: 2}\n")
    config, origins = resolve_config(path, ["rollout.hold_seconds=7", "rollout={keep_previous: 2}", "train.seed=4"])
    assert (config.rollout.keep_previous, config.train.seed) == (2, 4)
    assert origins["name"] == origins["data.source"] == str(path)
    assert origins["rollout.keep_previous"] == origins["train.seed"] == "--set"
    assert origins["gate.min_examples"] == origins["train.learning_rate"] == "default"
    values = config.model_dump(mode="json")
    for key in origins:
        found = values
        for part in key.split("."):
            assert part in found, key
            found = found[part]


def test_section_by_override_replaces_the_section(write: Callable[..., Path]) -> None:
    """A whole section given by --set replaces the file's, and no value claims to come from the file."""
    path = write("rollout: {hold_seconds: 3, num_probes: 2}\n")
    config, origins = resolve_config(path, ["rollout={keep_previous: 2}"])
    assert config.rollout.num_probes == 6
    assert origins["rollout.num_probes"] == "default"


def test_last_override_wins(write: Callable[..., Path]) -> None:
    """Of two --set of one key, the later one counts."""
    assert load_config(write(), ["train.seed=1", "train.seed=2"]).train.seed == 2


def test_paths_are_relative_to_who_gave_them(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path in the file is relative to the file, one in --set to the working directory."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    path = write("model: {base: ./base}\n").rename(tmp_path / "configs" / "run.yaml")
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(path)
    assert config.data.source == str(tmp_path / "configs" / "chats.jsonl")
    assert config.model.base == str(tmp_path / "configs" / "base")
    assert load_config("../configs/run.yaml").data.source == str(tmp_path / "configs" / "chats.jsonl")
    config = load_config(path, ["data.source=chats.jsonl", "data.test_source=../test.csv"])
    assert config.data.source == str(tmp_path / "elsewhere" / "chats.jsonl")
    assert config.data.test_source == str(tmp_path / "test.csv")


def test_paths_of_several_sources_are_made_absolute(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patterns, folders and the sources of a list are relative to the file or the working directory, ids are left."""
    (tmp_path / "more").mkdir()
    path = write("", source="[a.jsonl, 'chats/*', ./more, owner/name, {source: b.jsonl, weight: 0.3}]")
    config = load_config(path)
    names = [str(tmp_path / name) for name in ("a.jsonl", "chats/*", "more")]
    assert [source.source for source in config.data.sources] == [*names, "owner/name", str(tmp_path / "b.jsonl")]
    assert [source.weight for source in config.data.sources] == [1, 1, 1, 1, 0.3]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    overrides = ["data.source=[x.jsonl, {source: y.jsonl}]", "data.test_source={source: t.jsonl}"]
    config = load_config(path, overrides)
    assert [source.source for source in config.data.sources] == [
        str(Path.cwd() / name) for name in ("x.jsonl", "y.jsonl")
    ]
    assert config.data.tests is not None and config.data.tests.source == str(Path.cwd() / "t.jsonl")
    assert load_config(path, ["data.source=../*.jsonl"]).data.source == str(tmp_path / "*.jsonl")
    again = with_absolute_paths(build_config(config.model_dump(mode="json"), "again"))
    assert again == config


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("[]", ("data.source",)),
        ("['']", ("data.source.0",)),
        ("[a.jsonl, {source: b.jsonl, wieght: 2}]", ("'data.source.1.wieght'", "did you mean 'weight'")),
        ("[{source: b.jsonl, weight: 0}]", ("data.source.0.weight", "0")),
        ("[{weight: 2}]", ("'data.source.0.source' is missing",)),
        ("[{source: b.jsonl, shape: alpca}]", ("data.source.0.shape", "'alpca'")),
        ("{source: a.jsonl}", ("data.source",)),
        ("[7]", ("data.source.0", "7")),
    ],
)
def test_a_mistake_in_a_source_names_its_place(
    write: Callable[..., Path], source: str, wanted: tuple[str, ...]
) -> None:
    """One line says which of several sources, which key, and what is right."""
    line = mistake(write("", source=source))
    for part in wanted:
        assert part in line


def test_home_folder_is_expanded(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """~ is the user's home, in data, model and platform."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    config = load_config(write("model: {base: ~/m}\nplatform: {home: ~/state}\n"), ["data.source=~/x.jsonl"])
    assert config.data.source == str(tmp_path / "me" / "x.jsonl")
    assert config.model.base == str(tmp_path / "me" / "m")
    assert config.platform.home == str(tmp_path / "me" / "state")


def test_hub_ids_are_left_alone(write: Callable[..., Path], tmp_path: Path) -> None:
    """A hub id or an address is no path, unless a file of that name is there."""
    path = write("model: {base: microsoft/Phi-3.5-mini-instruct, revision: main}\n")
    config = load_config(path, ["data.source=HuggingFaceH4/ultrachat_200k"])
    assert config.model.base == "microsoft/Phi-3.5-mini-instruct"
    assert config.data.source == "HuggingFaceH4/ultrachat_200k"
    (tmp_path / "microsoft" / "Phi-3.5-mini-instruct").mkdir(parents=True)
    assert load_config(path).model.base == str(tmp_path / "microsoft" / "Phi-3.5-mini-instruct")
    assert load_config(path, ["data.source=abfss://a@b/c.jsonl"]).data.source == "abfss://a@b/c.jsonl"
