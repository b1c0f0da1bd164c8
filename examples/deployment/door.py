"""The only port that devices reach: it passes on what a SuperNode asks for, and nothing else.

A SuperLink of Flower 1.41 and 1.42 answers everybody on one port, who may register keys and submit runs there. Here it
listens on the loopback interface alone, and this door stands before it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

_OPEN = re.compile(rb"/v1/fleet/[a-z-]+|/health")  # what a SuperNode calls; its key is checked behind the door
_ANSWER_S = 600.0  # for one of the SuperLink's answers
_OF_ONE_HOP = {"connection", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}


def make_door(client: httpx.AsyncClient) -> Starlette:
    """Return the door before a SuperLink, which `client` reaches."""

    async def pass_on(request: Request) -> Response:
        path = request.scope["raw_path"]
        if not _OPEN.fullmatch(path) or request.scope["query_string"]:
            return PlainTextResponse("this port is for devices; runs are submitted on the server itself\n", 403)
        headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _OF_ONE_HOP]
        asked = client.build_request(request.method, path.decode(), headers=headers, content=request.stream())
        answer = await client.send(asked, stream=True)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _OF_ONE_HOP}
        return StreamingResponse(
            _raw(answer), status_code=answer.status_code, headers=kept, background=BackgroundTask(answer.aclose)
        )

    return Starlette(routes=[Route("/{path:path}", pass_on, methods=["GET", "POST"])])


async def _raw(answer: httpx.Response) -> AsyncIterator[bytes]:
    async for part in answer.aiter_raw():
        yield part


def open_door(host: str, port: int, inner: str, keys: Path) -> None:
    """Keep the door open until this process is stopped."""
    trusted = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    client = httpx.AsyncClient(base_url=f"https://{inner}", verify=trusted, timeout=_ANSWER_S, trust_env=False)
    uvicorn.run(
        make_door(client),
        host=host,
        port=port,
        ssl_keyfile=str(keys / "server.key"),
        ssl_certfile=str(keys / "server.crt"),
        log_level="warning",
    )


if __name__ == "__main__":
    import sys

    open_door(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
