"""Serve an MLflow model as it is packaged: `python -m server.score --model-dir DIR --port P`.

What Azure Machine Learning does with a registered MLflow model that is deployed without code or environment, in as few
lines: POST /score takes `{"input_data": ..., "params": ...}` and answers with what the model predicts. Of the service's
input forms it takes the one that a chat model understands: columns, index and data, as pandas splits a table. It runs
where MLflow and the model's requirements are: the environment that trained it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .errors import error_body

logger = logging.getLogger(__name__)

SPLIT = ("columns", "index", "data")
MAX_BODY_BYTES = 4 * 1024 * 1024


class Scorer:
    """One MLflow model: loads it in the background, then predicts one request after another."""

    def __init__(self, model_dir: Path, *, max_requests: int, timeout_seconds: float) -> None:
        self.error = ""
        self._model: Any = None
        self._model_dir = model_dir
        self._max_requests = max_requests
        self._timeout_seconds = timeout_seconds
        self._num_requests = 0
        # A pipeline of transformers is not made for several threads.
        self._worker = ThreadPoolExecutor(1, "predict")

    def build_app(self) -> Starlette:
        """Return the ASGI application."""
        return Starlette(
            routes=[
                Route("/live", self._live),
                Route("/health", self._health),
                Route("/score", self._score, methods=["POST"]),
            ]
        )

    def load(self) -> None:
        """Load the model; `error` says why it could not be."""
        started = time.monotonic()
        try:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # importing it would report that
            import mlflow.pyfunc

            self._model = mlflow.pyfunc.load_model(str(self._model_dir))
        except Exception as error:  # whatever a model's own code raises means the same here
            self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return
        logger.info("Ready model=%s seconds=%.1f", self._model_dir, time.monotonic() - started)

    async def _live(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _health(self, request: Request) -> Response:
        if self._model is None:
            return JSONResponse({"status": "loading"}, 503)
        return JSONResponse({"status": "ok", "requests": self._num_requests})

    async def _score(self, request: Request) -> Response:
        if self._model is None:
            return _refused(503, "the model is loading", {"Retry-After": "2"})
        if self._num_requests >= self._max_requests:
            return _refused(429, f"{self._num_requests} requests wait; try again soon", {"Retry-After": "1"})
        raw = await request.body()
        self._num_requests += 1
        started = time.monotonic()
        try:
            table, params = read_request(raw)
            work = asyncio.get_running_loop().run_in_executor(self._worker, self._predict, table, params)
            answer = await asyncio.wait_for(asyncio.shield(work), self._timeout_seconds)
        except TimeoutError:
            return _refused(504, f"the model did not answer in {self._timeout_seconds:g} seconds")
        except ValueError as error:
            return _refused(400, str(error))
        except Exception as error:  # the model's own refusals have no common class
            return _refused(400, f"the model refused the request: {' '.join(str(error).split())[:300]}")
        finally:
            self._num_requests -= 1
        logger.info("Scored seconds=%.3f", time.monotonic() - started)
        return Response(answer, media_type="application/json")

    def _predict(self, table: Any, params: dict[str, Any] | None) -> str:
        from mlflow.pyfunc.scoring_server import _get_jsonable_obj

        result = self._model.predict(table, params=params)
        return json.dumps(_get_jsonable_obj(result, pandas_orient="records"), ensure_ascii=False)


def read_request(raw: bytes) -> tuple[Any, dict[str, Any] | None]:
    """Turn a body into the model's table and parameters.

    Raises:
        ValueError: names what is wrong with the body.
    """
    import pandas

    if len(raw) > MAX_BODY_BYTES:
        raise ValueError(f"the body is larger than {MAX_BODY_BYTES} bytes")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict) or "input_data" not in body:
        raise ValueError('the body must be an object with a key named "input_data"')
    table, params = body["input_data"], body.get("params")
    if not isinstance(table, dict) or any(not isinstance(table.get(key), list) for key in SPLIT):
        raise ValueError(
            'input_data must be a table of chats: {"columns": ["messages"], "index": [0], '
            '"data": [[[{"role": "user", "content": "..."}]]]}'
        )
    if params is not None and not isinstance(params, dict):
        raise ValueError("params must be an object")
    return pandas.DataFrame(table["data"], index=table["index"], columns=table["columns"]), params


def _refused(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(error_body(status, message), status, headers=headers)


def main(argv: list[str] | None = None) -> int:
    """Serve until stopped; status 2: there is no MLflow model, or it cannot be loaded."""
    parser = argparse.ArgumentParser(prog="python -m server.score", description="Serve an MLflow model over HTTP.")
    parser.add_argument("--model-dir", required=True, type=Path, help="folder with an MLmodel")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--max-concurrent-requests", type=int, default=16, metavar="N")
    parser.add_argument("--request-timeout-seconds", type=float, default=120.0, metavar="SECONDS")
    options = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    if not (options.model_dir / "MLmodel").is_file():
        print(f"{options.model_dir} holds no MLmodel. Give --model-dir an MLflow model folder.", file=sys.stderr)
        return 2
    scorer = Scorer(
        options.model_dir,
        max_requests=options.max_concurrent_requests,
        timeout_seconds=options.request_timeout_seconds,
    )
    config = uvicorn.Config(
        scorer.build_app(), host=options.host, port=options.port, log_level="warning", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)

    def load() -> None:
        scorer.load()
        server.should_exit = server.should_exit or bool(scorer.error)

    threading.Thread(target=load, name="load", daemon=True).start()
    server.run()
    if scorer.error:
        print(f"The model in {options.model_dir} cannot be loaded: {scorer.error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
