"""Azurite, all storage accounts: started with the first of them, found again after a kill, reached by its clients.

It listens over HTTPS with the emulator's certificate, and takes the account's key, signatures and Entra tokens alike.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from azure.storage.blob import (
    BlobSasPermissions,
    BlobServiceClient,
    ContainerSasPermissions,
    generate_blob_sas,
    generate_container_sas,
)

from tests.azure_emulator.certificates import Certificates
from tests.azure_emulator.names import STORAGE_ENDPOINT

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_HINT = "Install Node.js 20 or later, then: npm install -g azurite@3.35 (or put azurite-blob on the PATH)"


class NoAzuriteError(Exception):
    """Azurite is not on this machine."""


def find_azurite() -> str:
    """The program that serves blobs: on the PATH, or in a `node_modules` beside or above the working folder.

    Raises:
        NoAzuriteError: says how to install it.
    """
    here = Path.cwd()
    folders = [str(folder / "node_modules" / ".bin") for folder in (here, *here.parents)]
    program = shutil.which("azurite-blob", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *folders]))
    if not program:
        raise NoAzuriteError(f"The emulator keeps its blobs in Azurite, which is not installed. {_HINT}.")
    if not shutil.which("node"):
        raise NoAzuriteError(f"Azurite needs Node.js, which is not installed. {_HINT}.")
    return program


@dataclass(frozen=True)
class Account:
    """A storage account: its key, and where it is; all accounts of an emulator have the same key."""

    name: str
    key: str
    port: int
    authorities: str

    @property
    def url(self) -> str:
        """The address that clients of the service see; the host's first label is the account."""
        return f"https://{self.name}.blob.{STORAGE_ENDPOINT}:{self.port}"

    def to_json(self) -> dict[str, Any]:
        """What `open_client` takes."""
        return {"name": self.name, "key": self.key, "port": self.port, "authorities": self.authorities}

    def sign_blob(self, container: str, blob: str, minutes: int = 60) -> str:
        """A URL with which the blob can be read."""
        expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
        signature = generate_blob_sas(
            self.name, container, blob, account_key=self.key, permission=BlobSasPermissions(read=True), expiry=expiry
        )
        return f"{self.url}/{container}/{blob}?{signature}"

    def sign_container(self, container: str, minutes: int = 60) -> str:
        """A URL with which blobs of the container can be listed, read and written."""
        expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
        permission = ContainerSasPermissions(read=True, list=True, write=True, create=True, add=True)
        signature = generate_container_sas(self.name, container, self.key, permission=permission, expiry=expiry)
        return f"{self.url}/{container}?{signature}"


def open_client(connection: dict[str, Any]) -> BlobServiceClient:
    """A client by address, which needs no host name to resolve.

    Args:
        connection: as `Account.to_json` gives it.
    """
    return BlobServiceClient(
        f"https://127.0.0.1:{connection['port']}/{connection['name']}",
        credential={"account_name": connection["name"], "account_key": connection["key"]},
        connection_verify=connection["authorities"],
        retry_total=3,
        logging_enable=False,
    )


class Azurite:
    """One Azurite of one state folder; it survives the emulator when that is killed, and jobs go on writing to it."""

    def __init__(self, folder: Path, port: int, key: str, certificates: Certificates) -> None:
        self._folder = folder
        self._port = port
        self._key = key
        self._certificates = certificates
        self._record = folder / "process.json"
        self._lock = threading.Lock()

    def serve(self, accounts: list[str]) -> None:
        """Have it serve these accounts and no others; it knows them from its start, so others need a new one.

        Raises:
            NoAzuriteError: it is not installed, or did not start.
        """
        with self._lock:
            if self._process() and self._served() == sorted(accounts):
                return
            self._stop()
            if accounts:
                self._start(sorted(accounts))

    def _served(self) -> list[str]:
        return list(json.loads(self._record.read_text(encoding="utf-8")).get("accounts", []))

    def _start(self, accounts: list[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [find_azurite(), "--location", str(self._folder / "data"), "--silent", "--disableTelemetry"]
        command += ["--blobHost", "127.0.0.1", "--blobPort", str(self._port), "--skipApiVersionCheck"]
        command += ["--oauth", "basic", "--cert", str(self._certificates.certificate)]
        command += ["--key", str(self._certificates.key)]
        environment = {**os.environ, "AZURITE_ACCOUNTS": ";".join(f"{name}:{self._key}" for name in accounts)}
        with (self._folder / "azurite.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        started = psutil.Process(process.pid).create_time()
        record = {"pid": process.pid, "started": started, "accounts": accounts}
        self._record.write_text(json.dumps(record), encoding="utf-8")
        self._await(process)

    def stop(self) -> None:
        """End it in order, which writes its tables to the disk."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        process = self._process()
        self._record.unlink(missing_ok=True)
        if process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()

    def _await(self, process: subprocess.Popen[bytes]) -> None:
        import socket

        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.02)
        raise NoAzuriteError(f"Azurite did not start on port {self._port}. Read {self._folder}/azurite.log.")

    def _process(self) -> psutil.Process | None:
        """The process that was started here, if it still runs."""
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            process = psutil.Process(record["pid"])
            same = abs(process.create_time() - record["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, psutil.Error):
            return None
        return process if same else None
