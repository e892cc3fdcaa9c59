"""The page on which people rate, and what keeps what they say.

What a browser is given says nothing of models: the server reads the pairs and the schedule, never the key, and an
assignment's id is made of its place alone. Answers are text, escaped, whatever they hold; the policy that goes
with every page runs no script and loads nothing but the two files beside it.

Ratings of many raters are written together: whoever comes while a transaction is on its way to the disk waits for
the next one, and nobody is answered before theirs is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import functools
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

import jinja2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from ..errors import OnggiError
from ..phrases import Phrases, available
from ..text.display import cut, direction, shown
from . import links
from .store import Event, Rater, Said, Store
from .study import CHOICES, REASONS, Shown, Study, minutes

_LARGEST = 16_384  # bytes of a body
_FIELDS = 40
_STANDS = 1.0  # seconds for which what is known of a rater is not looked up again
_OPEN = 4000  # characters of an answer that stand open
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
_FILES = {"rate.css": "text/css", "rate.js": "text/javascript"}


class Refused(Exception):
    """A request that is not done. what: the phrase that says why."""

    def __init__(self, status: int, what: str):
        super().__init__(what)
        self.status, self.what = status, what


@dataclass
class Seat:
    """A rater, as the server knows them. state: what they have said; None until it is asked for. shown_at: when
    the pair before them was shown. undone: the rating that they took back last.
    """

    rater: Rater
    looked: float
    state: Said | None = None
    shown_at: dict[str, float] = field(default_factory=dict)
    undone: Event | None = None
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Writer:
    """Puts events on disk, those that wait for it together in one transaction."""

    def __init__(self, store: Store):
        self._store, self._busy = store, False
        self._waiting: list[tuple[Event, asyncio.Future[bool | None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, event: Event) -> bool | None:
        """True when the event is on disk, False where one with its key was there, None where the study is closed."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((event, future))
        if not self._busy:
            self._busy = True
            self._task = asyncio.create_task(self._drain())
        return await asyncio.shield(future)

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                try:
                    new = await asyncio.to_thread(self._store.add, [event for event, _ in batch])
                except Exception as error:  # a full disk: whoever waits is told, and sends again
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                for i, (_, future) in enumerate(batch):
                    if not future.done():
                        future.set_result(None if new is None else new[i])
        finally:
            self._busy = False


class Service:
    """A study being rated. writing: a store of its own for the writer's thread; the other is read from here."""

    def __init__(self, study: Study, signer: links.Signer):
        self.study, self.signer = study, signer
        self.cookie = f"onggi_{study.id[:8]}"  # ports of one host share their cookies; studies must not
        self.store, self.writing = Store(study.ratings, study.id), Store(study.ratings, study.id)
        self.writer = Writer(self.writing)
        # A pair is shown to several raters and its text does not change: it is made fit to be shown once.
        self.fit = functools.lru_cache(maxsize=4096)(lambda pair: _fit(study.pairs[pair]))
        self.fit(next(iter(study.pairs)))  # the file is read before anybody waits
        self.seats: dict[str, Seat] = {}
        self._closed = (False, 0.0)

    def close(self) -> None:
        """Let go of the files."""
        self.store.close()
        self.writing.close()

    @property
    def closed(self) -> bool:
        """Whether rating is over, as of a moment ago."""
        closed, looked = self._closed
        if not closed and time.monotonic() - looked > _STANDS:
            self._closed = (self.store.closed, time.monotonic())
        return self._closed[0]

    def seat(self, found: links.Pass | None) -> Seat:
        """The rater that an invitation or a session names. Raises Refused."""
        if found is None:
            raise Refused(403, "link")
        if links.expired(found):
            raise Refused(403, "expired")
        seat = self.seats.get(found.rater)
        if seat is None or time.monotonic() - seat.looked > _STANDS:
            rater = self.store.rater(found.rater)
            if rater is None or rater.slot is None:
                raise Refused(403, "link")
            if seat is None:
                seat = self.seats[rater.id] = Seat(rater, time.monotonic())
            seat.rater, seat.looked = rater, time.monotonic()
        if seat.rater.epoch != found.epoch:
            raise Refused(403, "renewed")
        if time.time() >= seat.rater.expires:
            raise Refused(403, "expired")
        return seat

    def said(self, seat: Seat) -> Said:
        """What the rater has said so far."""
        if seat.state is None:
            seat.state = self.store.said(seat.rater.id)
        return seat.state

    def list(self, seat: Seat) -> Sequence[Shown]:
        """The rater's pairs, in their order."""
        assert seat.rater.slot is not None
        return self.study.schedule[seat.rater.lang][seat.rater.slot]

    def current(self, seat: Seat) -> Shown | None:
        """The first pair that is not rated; None at the end."""
        ratings = self.said(seat).ratings
        return next((shown for shown in self.list(seat) if shown.id not in ratings), None)

    async def rate(self, seat: Seat, event: Event) -> None:
        """Keep a rating of the pair that is shown. Raises Refused for any other."""
        async with seat.turn:
            said = self.said(seat)
            if event.key in said.keys:
                return
            if event.assignment in said.ratings:
                raise Refused(409, "rated")
            current = self.current(seat)
            if current is None or current.id != event.assignment:
                raise Refused(409, "not_shown")
            await self._keep(seat, said, event)

    async def undo(self, seat: Seat, assignment: str, key: str) -> None:
        """Take the last rating back; nothing where it is no longer the last. Raises Refused once closed."""
        async with seat.turn:
            said = self.said(seat)
            if key not in said.keys and assignment == next(reversed(said.ratings), None):
                seat.undone = said.ratings[assignment]
                await self._keep(seat, said, Event(seat.rater.id, assignment, key, None, at=time.time()))

    async def _keep(self, seat: Seat, said: Said, event: Event) -> None:
        kept = await self.writer.put(event)
        if kept is None:
            self._closed = (True, time.monotonic())
            raise Refused(410, "closed")
        if kept:
            said.add(event)
        else:  # it is there, and what is known here is not (its request was given up): look again
            seat.state = None


# ── pages ──────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("onggi.rate", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@functools.cache
def _phrases(tag: str) -> Phrases:
    return Phrases(tag, "rate")


@functools.cache
def _page_languages() -> list[tuple[str, str]]:
    return [(tag, _phrases(tag)("language")) for tag in available("rate")]


def _say(request: Request, rater: Rater | None) -> Phrases:
    """The phrases of the page: what the rater chose, else the language rated, else what the browser asks for."""
    wanted = [rater.page, rater.lang] if rater else []
    accepted = request.headers.get("accept-language", "")[:200].split(",")
    wanted += [part.partition(";")[0].strip().partition("-")[0].lower() for part in accepted]
    have = _spoken()
    return _phrases(next((tag for tag in wanted if tag in have), "en"))


@functools.cache
def _spoken() -> frozenset[str]:
    """The languages that the page itself speaks."""
    return frozenset(available("rate"))


def _html(
    request: Request, name: str, rater: Rater | None, status: int = 200, at: str = "/pair", **values: Any
) -> HTMLResponse:
    page = _templates().get_template(name)
    say = _say(request, rater)
    return HTMLResponse(page.render(say=say, rater=rater, pages=_page_languages(), at=at, **values), status)


def _part(text: str, lang: str, **more: Any) -> dict[str, Any]:
    """A text of anybody's as the page shows it."""
    head, rest = cut(shown(text), _OPEN)
    return {"text": head, "rest": rest, "direction": direction(head, lang), **more}


def _welcome(service: Service, request: Request, seat: Seat) -> HTMLResponse:
    say, mine = _say(request, seat.rater), service.list(seat)
    done = len(service.said(seat).ratings)
    return _html(
        request,
        "welcome.html",
        seat.rater,
        at="/",
        language=service.study.name(seat.rater.lang, say.language),
        count=len(mine),
        done=done,
        minutes=minutes(len(mine)),
        ask_name=bool(service.study.about["ask_name"]),
    )


def _pair(service: Service, request: Request, seat: Seat) -> HTMLResponse:
    said, mine, current = service.said(seat), service.list(seat), service.current(seat)
    last = next(reversed(said.ratings), None)
    values: dict[str, Any] = {"last": last, "undo_key": secrets.token_urlsafe(9), "count": len(mine)}
    if current is None or service.closed:
        return _html(request, "end.html", seat.rater, closed=service.closed, **values)
    seat.shown_at = {current.id: time.monotonic()}
    texts = service.fit(current.pair)
    undone = seat.undone if seat.undone and seat.undone.assignment == current.id else None
    return _html(
        request,
        "pair.html",
        seat.rater,
        number=next(i for i, shown in enumerate(mine, 1) if shown.id == current.id),
        done=len(said.ratings),
        id=current.id,
        key=secrets.token_urlsafe(9),
        choices=list(zip(CHOICES, ("upper", "lower", "good", "bad"), strict=True)),
        chosen=undone.choice if undone else None,
        reasons=REASONS,
        sides=_sides(texts["answers"], current.swapped, undone),
        **{name: texts[name] for name in ("tag", "before", "question")},
        **values,
    )


def _fit(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The texts of a pair as the page shows them: `before`, `question`, and the parts of `first` and `second`."""
    lang = pair["lang"]
    first, *later = pair["turns"]
    asked = [None, *(_part(text, lang) for text in later)]
    return {
        "tag": lang,
        "before": [_part(message["content"], lang, role=message["role"]) for message in pair["before"]],
        "question": _part(first, lang),
        "answers": [
            [_part(text, lang, question=question) for text, question in zip(pair[which], asked, strict=True)]
            for which in ("first", "second")
        ],
    }


def _sides(answers: Sequence[Any], swapped: bool, undone: Event | None) -> list[dict[str, Any]]:
    """The answer on the left and the one on the right. undone: what was said of them before it was taken back."""
    marked = (undone.left, undone.right) if undone else ((), ())
    names = (("left", "upper"), ("right", "lower"))
    return [
        {"name": name, "other": other, "parts": parts, "marked": own}
        for (name, other), parts, own in zip(
            names, reversed(answers) if swapped else answers, marked, strict=True
        )
    ]


# ── requests ───────────────────────────────────────────────────────────────────────────────────


async def _fields(request: Request) -> dict[str, list[str]]:
    """The fields of a form. Raises Refused for what is too large, is no form, or comes from another site."""
    # A session's cookie does not go with another site's POST (SameSite); what says where it is from is heeded too.
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused(403, "request")
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise Refused(415, "request")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > _LARGEST:
        raise Refused(413, "large")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST:
            raise Refused(413, "large")
    try:
        return parse_qs(body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_FIELDS)
    except ValueError as error:  # not ASCII, not UTF-8 within, too many fields
        raise Refused(400, "request") from error


def _one(fields: Mapping[str, list[str]], name: str, longest: int = 64) -> str:
    values = fields.get(name, [])
    if len(values) != 1 or not 0 < len(values[0]) <= longest:
        raise Refused(400, "request")
    return values[0]


def _reasons(fields: Mapping[str, list[str]], side: str) -> tuple[str, ...]:
    given = set(fields.get(side, ()))
    if not given <= set(REASONS):
        raise Refused(400, "request")
    return tuple(reason for reason in REASONS if reason in given)


def _session(service: Service, request: Request) -> Seat:
    word = request.cookies.get(service.cookie)
    if word is None:
        raise Refused(403, "session")
    return service.seat(service.signer.read("session", word))


def _to(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)


def application(service: Service) -> Starlette:
    """The page of a study as an ASGI application."""
    files = {
        name: (resources.files("onggi.rate") / "pages" / name).read_text(encoding="utf-8") for name in _FILES
    }

    def handler(answer: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """`answer` with its refusals as pages."""

        @functools.wraps(answer)
        async def handled(request: Request) -> Response:
            try:
                response: Response = await answer(request)
            except Refused as refused:
                rater = None
                with contextlib.suppress(Refused):
                    rater = _session(service, request).rater
                if refused.what == "closed":
                    response = _html(
                        request, "end.html", rater, refused.status, closed=True, count=0, last=None
                    )
                else:
                    response = _html(request, "problem.html", rater, refused.status, what=refused.what)
            response.headers.update(HEADERS)
            return response

        return handled

    @handler
    async def invitation(request: Request) -> Response:
        found = service.signer.read("invitation", request.path_params["word"])
        seat = service.seat(found)
        if service.closed:
            raise Refused(410, "closed")
        response = _to("/")
        response.set_cookie(
            service.cookie,
            service.signer.sign("session", links.Pass(seat.rater.id, seat.rater.epoch, seat.rater.expires)),
            expires=datetime.datetime.fromtimestamp(seat.rater.expires, datetime.UTC),
            httponly=True,
            samesite="lax",
            secure=request.url.scheme == "https",
        )
        return response

    @handler
    async def welcome(request: Request) -> Response:
        return _welcome(service, request, _session(service, request))

    @handler
    async def begin(request: Request) -> Response:
        seat = _session(service, request)
        fields = await _fields(request)
        if service.study.about["ask_name"]:
            seat.rater = replace(seat.rater, name=shown(_one(fields, "name", 100)).strip())
            service.store.put(seat.rater)
        return _to("/pair")

    @handler
    async def pair(request: Request) -> Response:
        return _pair(service, request, _session(service, request))

    @handler
    async def rate(request: Request) -> Response:
        seat = _session(service, request)
        fields = await _fields(request)
        assignment, key, choice = (_one(fields, name) for name in ("pair", "key", "choice"))
        if choice not in CHOICES:
            raise Refused(400, "request")
        since = seat.shown_at.get(assignment)
        seconds = None if since is None else round(time.monotonic() - since, 2)
        left, right = _reasons(fields, "left"), _reasons(fields, "right")
        await service.rate(
            seat, Event(seat.rater.id, assignment, key, choice, left, right, seconds, time.time())
        )
        return _to("/pair")

    @handler
    async def undo(request: Request) -> Response:
        seat = _session(service, request)
        fields = await _fields(request)
        await service.undo(seat, _one(fields, "pair"), _one(fields, "key"))
        return _to("/pair")

    @handler
    async def page(request: Request) -> Response:
        seat = _session(service, request)
        fields = await _fields(request)
        tag = _one(fields, "page")
        if tag not in _spoken():
            raise Refused(400, "request")
        seat.rater = replace(seat.rater, page=tag)
        service.store.put(seat.rater)
        return _to("/" if fields.get("at") == ["/"] else "/pair")

    @handler
    async def file(request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        return Response(files[name], media_type=_FILES[name])

    @handler
    async def missing(request: Request) -> Response:
        raise Refused(404, "missing")

    routes = [
        Route("/i/{word}", invitation),
        Route("/", welcome),
        Route("/pair", pair),
        Route("/begin", begin, methods=["POST"]),
        Route("/rate", rate, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
        Route("/page", page, methods=["POST"]),
        *(Route(f"/{name}", file) for name in _FILES),
        Route("/{path:path}", missing, methods=["GET", "POST", "PUT", "DELETE", "PATCH"]),
    ]
    return Starlette(routes=routes)


# ── the server ─────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def alone(study: Study) -> Iterator[None]:
    """Raises OnggiError where another process serves the study; what it knows of the raters would be out of date."""
    with (study.path / ".serving").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OnggiError(f"{study.path}: is being served by another process.") from error
        yield


def run(study: Study, signer: links.Signer, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serve until Ctrl-C. ready: called with the port once it listens. Raises OnggiError where it cannot."""
    import uvicorn

    with alone(study):
        service = Service(study, signer)
        config = uvicorn.Config(
            application(service),
            log_level="warning",
            access_log=False,  # a log of who rated what and when, with the invitations in it
            server_header=False,
            lifespan="off",
        )
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family, backlog=512)
        except OSError as error:
            raise OnggiError(f"port: cannot listen on {host}, port {port} ({error.strerror}).") from error
        with contextlib.closing(service), listening:
            ready(listening.getsockname()[1])
            uvicorn.Server(config).run(sockets=[listening])
