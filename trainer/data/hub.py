"""Datasets of the Hugging Face hub as streams of raw records; needs `datasets`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

from trainer.data.options import SourceOptions
from trainer.data.shapes import without_null_fields
from trainer.errors import TrainerError

# A split with at most one slice by row numbers; a share of rows needs their number, which a stream does not know.
_SLICE = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<first>\d*):(?P<last>\d*)\])?")
_NETWORK = (ConnectionError, TimeoutError, OSError)
_COMMIT = re.compile(r"/([0-9a-f]{40})/")

# What the hub's own errors mean to a person; their texts begin with an HTTP status.
_REASONS = {
    "RepositoryNotFoundError": "the hub has no such dataset, or it is private",
    "RevisionNotFoundError": "it has no such revision",
    "GatedRepoError": "it is gated",
}


class HubSource:
    """One split of a hub dataset, downloaded once and read from its memory-mapped files, or streamed.

    Args:
        wanted: `source` is the dataset's id.
        streaming: read it over the network anew for every pass, and keep nothing on the disk.
    Raises:
        TrainerError: the dataset, config, split or revision does not exist or cannot be reached.
    """

    def __init__(self, wanted: SourceOptions, *, streaming: bool = False) -> None:
        self.name = wanted.source
        self.kind = "hub"
        self.config_name = wanted.config
        self.split = wanted.split or "train"
        self.revision = wanted.revision
        self.num_bytes = self.read_bytes = 0
        self._streaming = streaming
        self._dataset, self.resolved_revision = self._load()

    def records(self) -> Iterator[tuple[int, Any]]:
        """Yield (number of the record, record) in the dataset's order."""
        try:
            yield from enumerate(map(without_null_fields, self._dataset), 1)
        except _NETWORK as error:
            raise self._explain(error) from None

    def describe(self) -> dict[str, Any]:
        """What the manifest says about the source."""
        return {
            "kind": self.kind,
            "name": self.name,
            "config": self.config_name,
            "split": self.split,
            "revision": self.revision,
            "resolved_revision": self.resolved_revision,
        }

    def _load(self) -> tuple[Any, str | None]:
        try:
            import datasets
        except ImportError:
            raise TrainerError(
                f"Loading the dataset {self.name} needs the package datasets.",
                "Run it in the training environment.",
            ) from None
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        resolved = self._resolve()
        try:
            where = {"path": self.name, "name": self.config_name, "revision": resolved or self.revision}
            if self._streaming:
                return self._stream(datasets, where), resolved
            dataset = datasets.load_dataset(split=self.split, **where)
        except TrainerError:
            raise
        except Exception as error:  # datasets raises many kinds for a wrong name, and none in common
            raise self._explain(error) from None
        return dataset, resolved or self._cached_commit(dataset)

    def _stream(self, datasets: Any, where: dict[str, Any]) -> Any:
        """The split as a stream, its slice as rows skipped and taken."""
        found = _SLICE.fullmatch(self.split)
        if found is None:
            raise TrainerError(
                f"The split {self.split!r} of {self.name} cannot be streamed: it is no split, and no rows by number.",
                "Write train, train[:1000] or train[1000:2000], or set streaming to false.",
                kind="configuration",
            )
        stream = datasets.load_dataset(split=found["name"], streaming=True, **where)
        first, last = int(found["first"] or 0), found["last"]
        stream = stream.skip(first) if first else stream
        return stream.take(max(0, int(last) - first)) if last else stream

    def _cached_commit(self, dataset: Any) -> str | None:
        """The commit of a cached copy, which `datasets` keeps in a folder of that name."""
        found = _COMMIT.search(" ".join(item["filename"] for item in dataset.cache_files))
        commit = found.group(1) if found else None
        # Offline, datasets takes the latest cached copy, whatever revision was asked for.
        if commit and re.fullmatch(r"[0-9a-f]{40}", self.revision or "") and commit != self.revision:
            raise TrainerError(
                f"The hub is out of reach and the cached copy of {self.name} is of commit {commit}, "
                f"not {self.revision}.",
                "Connect to the network, or leave the revision out.",
            )
        return commit

    def _resolve(self) -> str | None:
        """The commit the revision means now; None when the hub is out of reach (a cached copy may do)."""
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return huggingface_hub.HfApi().dataset_info(self.name, revision=self.revision, timeout=20).sha
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise self._explain(error) from None
        except Exception as error:  # no network, in as many kinds as there are HTTP libraries
            print(f"The hub is out of reach ({type(error).__name__}); trying the local cache", file=sys.stderr)
            # Without this, datasets retries for half a minute before it looks into its cache.
            huggingface_hub.constants.HF_HUB_OFFLINE = True
        return None

    def _explain(self, error: Exception) -> TrainerError:
        wanted = f"{self.name} (config {self.config_name or 'default'}, split {self.split}"
        wanted += f", revision {self.revision})" if self.revision else ")"
        kind = type(error).__name__
        reason = _REASONS.get(kind) or (str(error).strip().splitlines() or [kind])[0].rstrip(".")
        if isinstance(error, ConnectionError | TimeoutError) or "Offline" in kind or "Connect" in kind:
            fix = "Check the network and HF_HUB_OFFLINE, or name a local file."
        elif "gated" in reason:
            fix = "Accept its terms on the hub and set HF_TOKEN."
        else:
            fix = "Check the id, config, split and revision, and that the hub can be reached."
        return TrainerError(f"The dataset {wanted} could not be loaded: {reason}.", fix)
