"""Which files make an environment on Azure, and so name its version."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.platforms.azure.build_context import copied_by, is_defined, read_definition
from tasks.platforms.errors import ConfigError

BUILD = "build:\n  path: .\n  dockerfile_path: Dockerfile\n"
DOCKERFILE = "FROM base\nCOPY requirements.txt /x/\nCOPY server/ \\\n  /x/server/\nCOPY --from=other /a /b\n"


def digest(folder: Path, tmp_path: Path) -> str:
    """What names the environment's version."""
    target = tmp_path / f"assembled-{len(list(tmp_path.iterdir()))}"
    target.mkdir()
    return read_definition(folder, target).digest


def test_sources_of_a_dockerfile() -> None:
    """Sources are what COPY and ADD take from the context, over line breaks, without options and other stages."""
    text = (
        "# COPY no /\nFROM a AS b\nCOPY --chown=1:1 one two/ /to/\nADD https://x/y /z\n"
        'COPY ["with space", "/to"]\nCOPY --from=b /in /out\nRUN echo COPY me /there\n'
    )
    assert copied_by(text) == ["one", "two/", "with space"]


def test_context_is_what_the_image_is_made_from(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    """Of a build context go the Dockerfile and what it copies, the shared server too, and nothing else."""
    folder = folder_of(
        {"environment.yaml": BUILD, "Dockerfile": DOCKERFILE, "requirements.txt": "a==1", "notes.md": "no"}
    )
    assert is_defined(folder)
    assembled = tmp_path / "assembled"
    assembled.mkdir()
    definition = read_definition(folder, assembled)
    assert definition.context is not None
    names = {path.relative_to(definition.context).as_posix() for path in definition.context.rglob("*.*")}
    assert {"requirements.txt", "server/__main__.py", "server/app.py"} <= names
    assert "notes.md" not in names
    assert not [name for name in names if "__pycache__" in name]
    assert (definition.context / definition.dockerfile).read_text() == DOCKERFILE


def test_digest_changes_with_what_the_image_is_made_from_alone(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    """The version is another when a file of the image is, and the same when any other is."""
    folder = folder_of({"environment.yaml": BUILD, "Dockerfile": "FROM a\nCOPY r.txt /\n", "r.txt": "1"})
    first = digest(folder, tmp_path)
    (folder / "notes.md").write_text("not in the image")
    assert digest(folder, tmp_path) == first
    (folder / "r.txt").write_text("2")
    second = digest(folder, tmp_path)
    (folder / "Dockerfile").write_text("FROM b\nCOPY r.txt /\n")
    assert len({first, second, digest(folder, tmp_path)}) == 3


def test_image_with_a_conda_file_has_no_context(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    """An image with a conda file is named by both."""
    folder = folder_of({"environment.yaml": "image: i:1\nconda_file: conda.yaml\n", "conda.yaml": "name: a\n"})
    first = digest(folder, tmp_path)
    (folder / "conda.yaml").write_text("name: b\n")
    assert digest(folder, tmp_path) != first


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"environment.yaml": "name: x\n"}, "either an image or a build"),
        ({"environment.yaml": "image: i\nbuild:\n  path: .\n"}, "either an image or a build"),
        ({"environment.yaml": "a: [\n"}, "not valid YAML"),
        ({"environment.yaml": "image: i\nconda_file: no.yaml\n"}, "names no.yaml, which is not there"),
        ({"environment.yaml": BUILD}, "names Dockerfile, which is not there"),
        ({"environment.yaml": BUILD, "Dockerfile": "COPY no.txt /\n"}, "copies no.txt, which is not there"),
        ({"environment.yaml": BUILD, "Dockerfile": "COPY . /app\n"}, "copies its whole folder"),
    ],
)
def test_mistake_is_one_clear_line(
    files: dict[str, str], told: str, folder_of: Callable[..., Path], tmp_path: Path
) -> None:
    """A definition that cannot work is refused with what is wrong with it."""
    with pytest.raises(ConfigError, match=told) as caught:
        digest(folder_of(files), tmp_path)
    assert "\n" not in str(caught.value)
