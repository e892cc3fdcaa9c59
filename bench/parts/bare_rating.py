"""The least that a server of ratings can be: a starlette handler that writes one row into SQLite and says so.

    python bench/parts/bare_rating.py FILE full|normal

Listens on a free port of 127.0.0.1, which it prints. A commit a request; `full` has it on disk before the
answer (as onggi has), `normal` leaves that to the system.
"""

from __future__ import annotations

import socket
import sqlite3
import sys
import time
from urllib.parse import parse_qs

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route


def main(path: str, synchronous: str) -> None:
    """Serve until it is stopped."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("CREATE TABLE ratings (rater TEXT, pair TEXT, key TEXT, choice TEXT, at REAL)")

    async def rate(request: Request) -> Response:
        fields = parse_qs((await request.body()).decode())
        values = (fields["pair"][0], fields["key"][0], fields["choice"][0], time.time())
        db.execute(
            "INSERT INTO ratings VALUES (?, ?, ?, ?, ?)", (request.cookies.get("onggi_study"), *values)
        )
        return RedirectResponse("/pair", status_code=303)

    app = Starlette(routes=[Route("/rate", rate, methods=["POST"])])
    listening = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(f"http://127.0.0.1:{listening.getsockname()[1]}/", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(*sys.argv[1:3])
