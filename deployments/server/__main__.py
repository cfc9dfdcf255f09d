"""Serve a model folder: `python -m server --model-dir DIR --model-name NAME --port P`.

In a container of Azure Machine Learning the service names the folder in AZUREML_MODEL_DIR, and the deployment sets the
rest: PHIFLOW_MODEL_NAME, PHIFLOW_MAX_CONCURRENT_REQUESTS, PHIFLOW_REQUEST_TIMEOUT_SECONDS. An option given wins.

Exit status: 0 stopped, 2 a mistake in the arguments or the model folder, 4 the engine died (a supervisor restarts).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

from .errors import EngineError, StartError

DRAIN_SECONDS = 5
LOADING_SECONDS = 600.0


def main(argv: list[str] | None = None) -> int:
    """Serve until stopped; return the exit status."""
    arguments = parse_arguments(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return serve(arguments)
    except StartError as error:
        print(error, file=sys.stderr)
        return 2


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line, and from the environment what it leaves out."""
    parser = argparse.ArgumentParser(prog="python -m server", description="Serve a chat model over HTTP.")

    def add(option: str, variable: str, default: str | None = None, **kwargs) -> None:
        # argparse converts a default that is text, so a wrong variable is refused like a wrong option.
        value = os.environ.get(variable) or default
        parser.add_argument(option, default=value, required=value is None, **kwargs)

    add("--model-dir", "AZUREML_MODEL_DIR", type=Path, help="Hugging Face or MLflow model folder, or one holding it")
    add("--model-name", "PHIFLOW_MODEL_NAME", type=_name, help="the name clients use")
    parser.add_argument("--port", required=True, type=_port)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:0, auto (default: %(default)s)")
    parser.add_argument("--threads", type=_whole, default=1, help="of the engine on a CPU; 0 for all (default: 1)")
    add("--max-concurrent-requests", "PHIFLOW_MAX_CONCURRENT_REQUESTS", "16", type=_positive_int, metavar="N")
    add("--request-timeout-seconds", "PHIFLOW_REQUEST_TIMEOUT_SECONDS", "120", type=_positive_float, metavar="SECONDS")
    parser.add_argument(
        "--state-dir",
        type=Path,
        help="where the engine's process is recorded (default: a folder of the temporary one)",
    )
    return parser.parse_args(argv)


def serve(arguments: argparse.Namespace) -> int:
    """Start the engine, then the front before it.

    Raises:
        StartError: the folder is not a model, the port is taken, or the engine cannot be started.
    """
    from .model_folder import ModelFolder

    started = time.monotonic()
    folder = ModelFolder.read(arguments.model_dir)
    listener = _listen(arguments.host, arguments.port)
    from .engine import Engine

    state_dir = arguments.state_dir or Path(tempfile.gettempdir()) / f"phiflow-server-{os.getuid()}"
    engine = Engine.create(
        arguments.engine,
        folder.path,
        device=arguments.device,
        threads=arguments.threads,
        state_dir=state_dir,
        name=str(arguments.port),
    )
    try:
        # Imported only now: the engine loads meanwhile.
        from .app import Front
        from .engine_client import EngineClient

        client = EngineClient(
            engine.base_url,
            engine=arguments.engine,
            folder=folder,
            timeout_seconds=arguments.request_timeout_seconds,
        )
        front = Front(
            folder=folder,
            client=client,
            model_name=arguments.model_name,
            max_requests=arguments.max_concurrent_requests,
        )
        return asyncio.run(_run(front, engine, listener, started))
    finally:
        engine.stop()
        listener.close()


async def _run(front, engine, listener: socket.socket, started: float) -> int:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self):
            # uvicorn would end the process by the signal it caught, before the engine is stopped.
            yield

    config = uvicorn.Config(
        front.build_app(), log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN_SECONDS
    )
    server = Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, server.handle_exit, number, None)
    watching = asyncio.create_task(_watch(front, engine, started))
    watching.add_done_callback(lambda _: setattr(server, "should_exit", True))
    await server.serve(sockets=[listener])
    watching.cancel()
    result = (await asyncio.gather(watching, return_exceptions=True))[0]
    await front.client.aclose()
    if isinstance(result, Exception):
        raise result
    return result if isinstance(result, int) else 0


async def _watch(front, engine, started: float) -> int:
    """Bring the front up, then watch the engine; return an exit status when it died."""
    # Reads the template's and the tokenizer's code now, so that the first request does not pay for it.
    try:
        await asyncio.to_thread(front.folder.warm_up)
    except Exception as error:
        raise StartError(f"The tokenizer or chat template of {front.folder.path} cannot be used: {error}") from error
    while engine.exit_code is None and not front.ready:
        if await front.client.is_listening():
            try:
                await front.probe()
            except EngineError as error:
                print(f"The model loaded but does not answer: {error}.", file=sys.stderr)
                return 4
            front.ready = True
            front.reason = ""
            logging.info("Ready model=%s seconds=%.1f", front.model_name, time.monotonic() - started)
        elif time.monotonic() - started > LOADING_SECONDS:
            print(f"The model did not load in {LOADING_SECONDS:g} seconds.", file=sys.stderr)
            return 4
        else:
            await asyncio.sleep(0.1)
    while engine.exit_code is None:
        await asyncio.sleep(0.2)
    when = "running" if front.ready else "loading the model"
    front.ready, front.reason = False, "the model's engine died"
    last = engine.last_lines[-1] if engine.last_lines else "it said nothing"
    print(f"The engine died while {when}, exit status {engine.exit_code}: {last}", file=sys.stderr)
    return 4


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StartError(
            f"Cannot listen on {host} port {port}: {error.strerror}. Choose another --port, or stop what uses it."
        ) from error
    return listener


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,199}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name: letters, digits and ._/:@- please")
    return text


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)


def _whole(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive_int(text: str) -> int:
    if _whole(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


if __name__ == "__main__":
    sys.exit(main())
