"""`onggi rate invite|serve|status|export|import|close`: what is done with a study until it is closed."""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from .. import languages as tags
from ..errors import OnggiError
from ..languages import Languages
from ..progress import say

if TYPE_CHECKING:
    from ..rate.store import Rater, Store
    from ..rate.study import Study

_LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class InviteConfig:
    """Print links for raters: signed, for one rater and one study each, until they expire.

    A link opens the page again from any device and goes on where its rater stopped; whoever has it rates as
    them, so send each to one person. Nothing of it is kept but a number.
    """

    study: str
    """The study's folder."""
    language: str | None = None
    """Language to rate, as ko. Each rater has one."""
    count: int = 1
    """How many raters to invite."""
    days: float = 14.0
    """Days until the links expire."""
    url: str = "http://127.0.0.1:8321"
    """Where raters reach the page, as https://rate.example.org."""
    renew: str | None = None
    """Instead of inviting: a new link in place of an earlier one, which is dead from then on; what was rated
    stays. The rater's number as `onggi rate status` shows it, or `all`."""
    test: bool = False
    """The raters are a test or a script. They take nobody's place, their ratings count only where there are no
    others, and results and report then say in so many words that a test made them."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if self.renew is None and self.language is None:
            raise OnggiError("language: say which one the rater is to rate, as --language ko.")
        if self.count < 1:
            raise OnggiError(f"count: {self.count} is not a number of raters.")
        if not 0 < self.days <= 3650:
            raise OnggiError(f"days: {self.days} is not a number of days from 0 to 3650.")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path.strip("/") or parts.query:
            raise OnggiError(f"url: {self.url} is no address as http://HOST:PORT.")


def invite(config: InviteConfig) -> list[dict[str, Any]]:
    """`rater`, `language`, `kind`, `url`, `expires` of each link that is made. Raises OnggiError where all lists
    of a language have a rater, or the secret that signs is not here.
    """
    from ..rate import links

    study, store = _open(config.study)
    if store.closed:
        raise OnggiError(f"{config.study}: is closed; nobody is invited any more.")
    made = store.fact("secret")
    if config.renew == "all" and made is not None:  # with a new secret, should the old one be lost
        try:
            signer = links.signer(study.id, made)
        except OnggiError:
            links.forget(study.id)
            signer = links.signer(study.id, None)
    else:
        signer = links.signer(study.id, made)
    store.note("secret", signer.digest)
    expires = int(time.time() + config.days * 86400)
    if config.renew is not None:
        known = [rater for rater in store.raters() if rater.slot is not None]
        chosen = [rater for rater in known if config.renew in (rater.id, "all")]
        if not chosen:
            raise OnggiError(
                f"renew: {config.renew!r} is no rater of this study; onggi rate status lists them."
            )
        raters = [replace(rater, epoch=rater.epoch + 1, expires=expires) for rater in chosen]
    else:
        raters = _new(config, study, store, expires)
    found = []
    for rater in raters:
        store.put(rater)
        word = signer.sign("invitation", links.Pass(rater.id, rater.epoch, rater.expires))
        url = f"{config.url.rstrip('/')}/i/{word}"
        found.append(
            {"rater": rater.id, "language": rater.lang, "kind": rater.kind, "url": url, "expires": expires}
        )
    return found


def _new(config: InviteConfig, study: Study, store: Store, expires: int) -> list[Rater]:
    from ..rate.store import Rater

    lang = study.language(tags.canonical(config.language or ""))
    lists = range(len(study.schedule[lang]))
    there = [rater for rater in store.raters() if rater.lang == lang and rater.slot is not None]
    if config.test:  # each the next list, over and over
        begun = sum(rater.kind == "test" for rater in there)
        slots = [(begun + i) % len(lists) for i in range(config.count)]
    else:
        taken = {rater.slot for rater in there if rater.kind == "person"}
        slots = [slot for slot in lists if slot not in taken][: config.count]
        if len(slots) < config.count:
            raise OnggiError(
                f"count: of the {len(lists)} raters of {lang} that the study was planned for, {len(lists) - len(taken)} "
                "are not invited yet. A new link for one who has lost theirs: --renew."
            )
    now = time.time()
    kind: Literal["test", "person"] = "test" if config.test else "person"
    return [
        Rater(secrets.token_hex(4), lang, slot, kind, 0, now + i * 1e-6, expires)
        for i, slot in enumerate(slots)
    ]


@dataclass(frozen=True)
class ServeConfig:
    """Serve the page on which raters rate, until Ctrl-C. Ratings are on disk before a rater is answered.

    Needs no model and no network. Stop it and start it as you like: raters go on where they were.
    """

    study: str
    """The study's folder."""
    port: int = 8321
    """Port to listen on; 0 takes a free one and says which."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is this machine alone. With another, as 0.0.0.0, whoever can reach this
    machine can reach the page; links and ratings then travel unencrypted unless a proxy before it speaks https."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option."""
        if not 0 <= self.port <= 65535:
            raise OnggiError(f"port: {self.port} is not a port from 0 to 65535.")


def serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C. Raises OnggiError where nobody is invited yet, or the port is taken."""
    from ..rate import links
    from ..rate import serve as serving

    study, store = _open(config.study)
    made = store.fact("secret")
    if made is None:
        raise OnggiError(
            f"{config.study}: nobody is invited yet; onggi rate invite {config.study} --language …"
        )
    signer = links.signer(study.id, made)
    closed = store.closed
    store.close()
    if closed:
        say(f"{config.study}: is closed; raters are only thanked.")

    def ready(port: int) -> None:
        name = f"[{config.host}]" if ":" in config.host else config.host
        if config.host not in _LOCAL:
            say(
                f"Listening on {config.host}: whoever can reach this machine can reach this page. Without a valid "
                "link they see nothing, but links and ratings travel unencrypted: put a proxy with https before it "
                "for anything beyond a network you trust."
            )
        say(
            f"Serving {config.study} at http://{name}:{port}/ (open a link of `onggi rate invite`). Ctrl-C ends."
        )

    serving.run(study, signer, config.host, config.port, ready)


@dataclass(frozen=True)
class StatusConfig:
    """Say who is invited and how far they are. Nothing of what they chose."""

    study: str
    """The study's folder."""


def status(config: StatusConfig) -> dict[str, Any]:
    """`closed`, and `raters`: each one's number, language, kind, how many are `done` of how many, `expires`."""
    study, store = _open(config.study)
    said = store.all_said()
    found = []
    for rater in store.raters():
        own: dict[str, Any] = {"rater": rater.id, "language": rater.lang, "kind": rater.kind}
        if rater.name:
            own["name"] = rater.name
        own["done"] = len(said[rater.id].ratings)
        own["of"] = None if rater.slot is None else len(study.schedule[rater.lang][rater.slot])
        own["expires"] = rater.expires
        found.append(own)
    return {"path": config.study, "closed": store.fact("closed"), "raters": found}


@dataclass(frozen=True)
class CloseConfig:
    """End the rating, for good. From then on `onggi rate results` may say which answer is whose.

    Links open nothing any more and no rating is taken: whoever knows the models can no longer add to them.
    """

    study: str
    """The study's folder."""


def close(config: CloseConfig) -> dict[str, Any]:
    """What `status` says, after it is closed; nothing is done where it was."""
    _, store = _open(config.study)
    if not store.closed:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        store.note("closed", now)
    return status(StatusConfig(config.study))


@dataclass(frozen=True)
class ExportConfig:
    """Write the pairs of all lists, blind, to be rated elsewhere: JSON lines, or tasks for Label Studio.

    Of Label Studio the labelling interface is written beside them, as .xml.
    """

    study: str
    """The study's folder."""
    to: str
    """File to write; of Label Studio's a .json."""
    form: Literal["jsonl", "label-studio"] = "jsonl"
    """How to write them."""
    languages: Languages | None = None
    """Which, as ko,ja; default: all."""


def export(config: ExportConfig) -> dict[str, Any]:
    """`path` and `assignments`: how many are written."""
    from ..rate import exchange

    study, store = _open(config.study)
    store.close()
    chosen = [study.language(tag) for tag in config.languages or study.languages]
    path = Path(config.to)
    if config.form == "label-studio" and path.suffix != ".json":
        raise OnggiError(f"to: {config.to}: Label Studio's tasks are a .json.")
    rows = list(exchange.assignments(study, chosen))
    exchange.write(path, rows, config.form == "label-studio")
    return {"path": config.to, "assignments": len(rows)}


@dataclass(frozen=True)
class ImportConfig:
    """Take up ratings that were made elsewhere: JSON lines (assignment, choice, rater), or Label Studio's JSON export.

    Reading the same file again adds nothing.
    """

    study: str
    """The study's folder."""
    file: str
    """JSON lines, {"assignment", "choice": left|right|good|bad, "rater", "left_reasons"?, "right_reasons"?,
    "seconds"?}, or a .json of Label Studio's."""


def take(config: ImportConfig) -> dict[str, Any]:
    """`new`, `known` (read before) and `twice` (the rater had rated that pair in another list: left out)."""
    from ..rate import exchange

    study, store = _open(config.study)
    events = exchange.ratings(study, Path(config.file))
    new, known, twice = exchange.keep(study, store, events)
    return {"path": config.study, "new": new, "known": known, "twice": twice}


def _open(folder: str) -> tuple[Study, Store]:
    from ..rate.store import Store
    from ..rate.study import Study

    try:
        import itsdangerous  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise OnggiError(
            f"rate: {error.name} is not installed; pip install 'onggi[rate]' brings it."
        ) from error
    study = Study(Path(folder))
    return study, Store(study.ratings, study.id)


# ── on the command line ────────────────────────────────────────────────────────────────────────


class Verb(NamedTuple):
    """A verb of `onggi rate` that makes no folder. positional: fields without a flag. words: what is printed."""

    config: type[Any]
    run: Callable[[Any], Any]
    positional: Sequence[str]
    words: Callable[[Any], str]


def _links(found: Sequence[dict[str, Any]]) -> str:
    lines = []
    for own in found:
        until = datetime.datetime.fromtimestamp(own["expires"]).strftime("%Y-%m-%d %H:%M")
        test = ", a test" if own["kind"] == "test" else ""
        lines.append(f"{own['rater']}  {own['language']}{test}, until {until}\n{own['url']}")
    return "\n".join(lines)


def _raters(found: dict[str, Any]) -> str:
    lines = []
    for own in found["raters"]:
        kind = "" if own["kind"] == "person" else f", {own['kind']}"
        name = f", {own['name']}" if "name" in own else ""
        of = "" if own["of"] is None else f" of {own['of']}"
        over = ", link expired" if 0 < own["expires"] <= time.time() else ""
        lines.append(f"{own['rater']}  {own['language']}{kind}{name}: {own['done']}{of}{over}")
    closed = f"closed {found['closed']}" if found["closed"] else "open"
    return "\n".join([f"{found['path']}: {closed}", *(lines or ["nobody is invited yet"])])


VERBS = {
    "invite": Verb(InviteConfig, invite, ("study",), _links),
    "serve": Verb(ServeConfig, serve, ("study",), lambda _: ""),
    "status": Verb(StatusConfig, status, ("study",), _raters),
    "export": Verb(
        ExportConfig,
        export,
        ("study", "to"),
        lambda made: f"{made['path']}: {made['assignments']} assignments",
    ),
    "import": Verb(
        ImportConfig,
        take,
        ("study", "file"),
        lambda made: (
            f"{made['new']} new ratings"
            + (f", {made['known']} known already" if made["known"] else "")
            + (
                f", {made['twice']} left out: their rater had rated the same pair before"
                if made["twice"]
                else ""
            )
        ),
    ),
    "close": Verb(CloseConfig, close, ("study",), _raters),
}
