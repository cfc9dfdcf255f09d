"""What a finished run leaves: the package, and what result.json says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trainer.card import license_of, model_card
from trainer.evaluate import Evaluation
from trainer.files import digest_folder
from trainer.finishing import Finished
from trainer.package import Parts, installed_versions, notices_in, package_model
from trainer.provenance import provenance_of, public_name

if TYPE_CHECKING:
    from trainer.job import Run


def package_run(run: Run, finished: Finished, base: Evaluation, candidate: Evaluation) -> dict[str, Any]:
    """Package the finished model, and return what result.json says of it and of where it comes from."""
    provenance = provenance_of(run)
    adapter_digest = digest_folder(finished.adapter) if finished.adapter else None
    merge = finished.merge.to_dict() if finished.merge else None
    metrics = {"base": base.metrics, "candidate": candidate.metrics}
    facts = {"license": license_of(run.job.base_model), "merge": merge, "adapter_digest": adapter_digest}
    parts = Parts(
        model=finished.model,
        tokenizer=run.tokenizer,
        dtype=run.stored_dtype,
        name=public_name(run.job.base_model),
        card=model_card(provenance, metrics, facts),
        adapter=finished.adapter,
        notices=notices_in(run.job.base_model),
    )
    digest = package_model(parts, run.job.model_output_dir)
    return {
        "model_dir": str(run.job.model_output_dir),
        "model_digest": digest,
        "adapter_digest": adapter_digest,
        "merge": merge,
        "base_model": run.job.base_model,
        "base_model_revision": run.job.revision,
        "metrics": metrics,
        "per_example": {"base": base.per_example, "candidate": candidate.per_example},
        "provenance": provenance,
        "versions": installed_versions(),
    }
