"""Keeps the SDK's chatter off the terminal, and what signs a URL out of every log."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from typing import Any

_SIGNATURE = re.compile(r"(?i)\b(sig|signature|sv_sig|code|access_token|client_secret)=[^&\s\"']+")
# Of these only errors are of use to a person; ours say the rest.
_NOISY = ("azure", "azureml", "msal", "msrest", "urllib3.connectionpool")
# Without progress bars too the SDK ends each upload with blank, coloured lines, and prints a dot for each look
# at an operation, on stdout.
_PRINTING = (
    "azure.ai.ml._artifacts._blob_storage_helper",
    "azure.ai.ml._artifacts._gen2_storage_helper",
    "azure.ai.ml._utils._azureml_polling",
)


class _HideSignatures(logging.Filter):
    """urllib3 logs every URL at DEBUG, and a blob's may carry the signature that opens it."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        hidden = _SIGNATURE.sub(r"\1=REDACTED", message)
        if hidden != message:
            record.msg, record.args = hidden, ()
        return True


_hide_signatures = _HideSignatures()


def hush() -> None:
    """Silence the loggers of the SDK and its parts, also when the root logger is at DEBUG."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # the SDK imports MLflow, which would report that
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("azure.ai.ml")]:
        logger = logging.getLogger(name)
        logger.handlers = [handler for handler in logger.handlers if type(handler) is not logging.StreamHandler]
        # Its telemetry, which is off, calls each answer of 404 an error.
        logger.setLevel(logging.CRITICAL if "._telemetry" in name else logging.ERROR)
    connections = logging.getLogger("urllib3.connectionpool")
    if _hide_signatures not in connections.filters:
        connections.addFilter(_hide_signatures)
    warnings.filterwarnings("ignore", module=r"azure\.ai\.ml|marshmallow|azureml")
    for name in _PRINTING:
        if module := sys.modules.get(name):
            vars(module)["print"] = _print_nothing


def _print_nothing(*_: Any, **__: Any) -> None:
    """Stands in for `print` in parts of the SDK."""
