"""The HTTPS server: requests in, answers out; an answer can be lost, or come in pieces."""

from __future__ import annotations

import json
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.azure_emulator.certificates import Certificates
from tests.azure_emulator.web import Answer, Request


class Listener(ThreadingHTTPServer):
    """Listens on one port, and has each request answered in its connection's thread.

    Attributes:
        answer: answers one; set before `serve_forever`.
        skew_seconds: how much the Date of answers is ahead.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, certificates: Certificates) -> None:
        self.answer: Callable[[Request], Answer] = lambda _: Answer(503)
        self.skew_seconds = 0.0
        try:
            super().__init__(("127.0.0.1", port), _Connection)
        except OSError as error:
            raise SystemExit(f"error: port {port} of this state is taken ({error}). Is it running already?") from error
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.certificate, certificates.key)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """The handshake is the connection's own affair, so that a slow client keeps nobody waiting."""
        try:
            request.settimeout(120)
            request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = self._context.wrap_socket(request, server_side=True)
        except OSError:
            self.shutdown_request(request)
            return
        super().process_request_thread(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are nothing to write about."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "Microsoft-HTTPAPI/2.0"
    sys_version = ""
    wbufsize = -1
    server: Listener

    def _serve(self) -> None:
        split = urlsplit(self.path)
        query = dict(parse_qsl(split.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = unquote(split.path).rstrip("/") or "/"
        self._send(self.server.answer(Request(self.command, path, query, headers, self._body(headers))))

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = _serve

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(headers.get("content-length") or 0))

    def _send(self, answer: Answer) -> None:
        body = answer.body
        if answer.lost:
            self.close_connection = True
            if isinstance(body, Iterator) and hasattr(body, "close"):
                body.close()
            return
        if body is None:
            body = b""
        elif isinstance(body, dict | list):
            body = json.dumps(body).encode()
            answer.headers.setdefault("Content-Type", "application/json; charset=utf-8")
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if isinstance(body, bytes):
            if answer.status not in (204, 304):
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
            self.wfile.flush()
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self._send_pieces(body)

    def _send_pieces(self, pieces: Iterator[bytes]) -> None:
        self.wfile.flush()
        try:
            for piece in pieces:
                if piece:
                    self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
        except Exception:  # the answer has begun; breaking off is the only way to tell that it is not whole
            self.close_connection = True
        finally:
            if hasattr(pieces, "close"):
                pieces.close()

    def date_time_string(self, timestamp: float | None = None) -> str:
        """The header Date."""
        return super().date_time_string((timestamp or time.time()) + self.server.skew_seconds)

    def log_message(self, format: str, *args: Any) -> None:
        """The log of exchanges says it all."""
