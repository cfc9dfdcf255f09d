"""Put first on PYTHONPATH, this keeps a Python process on this machine: the emulator's host names are 127.0.0.1, and
no other name than this machine's resolves. Refused names are written to PHIFLOW_EMULATOR_REFUSED, a file.

Online endpoints have names of their own in a region: those in the file PHIFLOW_EMULATOR_TAKEN are somebody else's, and
`<name>.<region>.inference.ml.azure.com` resolves; other names of that domain do not, and nobody minds the question.

Key vaults have no port in their addresses, and clients know them by the names of Azure's clouds: `*.vault.azure.net`
is the emulator at PHIFLOW_EMULATOR_URL.

Another `sitecustomize` on the path is run as well, as it would be without this one.
"""

import importlib.util
import ipaddress
import os
import socket
import sys

_SUFFIX = ".azure-emulator.test"
_VAULTS = ".vault.azure.net"
_ENDPOINTS = ".inference.ml.azure.com"
_HTTPS = 443
_HERE = os.path.dirname(os.path.abspath(__file__))
_resolve = socket.getaddrinfo
_resolve_name = socket.gethostbyname


def _is_local(host):
    if host in (None, "", b"", "localhost", "localhost.localdomain", "ip6-localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return False


def _mapped(host):
    text = host.decode("idna") if isinstance(host, bytes) else host
    name = text.rstrip(".").lower() if isinstance(text, str) else text
    if isinstance(name, str) and (name == _SUFFIX[1:] or name.endswith(_SUFFIX)):
        return "127.0.0.1"
    if _is_local(name):
        return host
    if name.endswith(_ENDPOINTS):
        if name.partition(".")[0] in _taken_names():
            return "127.0.0.1"
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    refused = os.environ.get("PHIFLOW_EMULATOR_REFUSED")
    if refused:
        with open(refused, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
    raise socket.gaierror(socket.EAI_NONAME, f"{name} is not of this machine, and the emulator allows no other")


def _taken_names():
    try:
        with open(os.environ["PHIFLOW_EMULATOR_TAKEN"], encoding="utf-8") as file:
            return file.read().split()
    except (KeyError, OSError):
        return []


def _getaddrinfo(host, port, *args, **kwargs):
    if isinstance(host, str) and host.endswith(_VAULTS) and port in (_HTTPS, str(_HTTPS)):
        return _resolve("127.0.0.1", int(os.environ["PHIFLOW_EMULATOR_URL"].rpartition(":")[2]), *args, **kwargs)
    return _resolve(_mapped(host), port, *args, **kwargs)


def _gethostbyname(host):
    return _resolve_name(_mapped(host))


socket.getaddrinfo = _getaddrinfo
socket.gethostbyname = _gethostbyname


def _run_the_next():
    for folder in sys.path:
        file = os.path.join(folder, "sitecustomize.py")
        if os.path.abspath(folder or ".") != _HERE and os.path.isfile(file):
            spec = importlib.util.spec_from_file_location("sitecustomize_next", file)
            if spec is not None and spec.loader is not None:
                spec.loader.exec_module(importlib.util.module_from_spec(spec))
            return


_run_the_next()
