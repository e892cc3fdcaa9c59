"""Invitations and sessions: signed words that name a rater, a study and an end, and hold no secret themselves.

The secret that signs is no part of the study's folder, which is copied and passed on; it lies beside onggi's
other files of this user (`$ONGGI_CACHE`, else the cache), readable to them alone.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from itsdangerous import BadData, URLSafeSerializer

from .. import ledger
from ..errors import OnggiError

For = Literal["invitation", "session"]


@dataclass(frozen=True)
class Pass:
    """Who may rate: `rater`, whose links of an earlier `epoch` are dead, until `expires` (seconds since 1970)."""

    rater: str
    epoch: int
    expires: int


class Signer:
    """Signs and reads the words of one study."""

    def __init__(self, study: str, secret: bytes):
        self.study, self.digest = study, hashlib.sha256(secret).hexdigest()
        self._by = {
            purpose: URLSafeSerializer(
                secret, salt=f"onggi rate {purpose}", signer_kwargs={"digest_method": hashlib.sha256}
            )
            for purpose in ("invitation", "session")
        }

    def sign(self, purpose: For, found: Pass) -> str:
        """`found` as a word for a URL or a cookie."""
        return str(self._by[purpose].dumps([self.study, found.rater, found.epoch, found.expires]))

    def read(self, purpose: For, word: str) -> Pass | None:
        """What a word says; None where it was not signed here for this study and purpose. It may have expired."""
        if len(word) > 512:
            return None
        try:
            study, rater, epoch, expires = self._by[purpose].loads(word)
        except (BadData, ValueError, TypeError):
            return None
        return Pass(str(rater), int(epoch), int(expires)) if study == self.study else None


def expired(found: Pass) -> bool:
    """True where its time is over."""
    return time.time() >= found.expires


def _file(study: str) -> Path:
    return ledger.cache_folder() / "rate" / f"{study}.secret"


def signer(study: str, made: str | None) -> Signer:
    """The study's signer. made: the digest of the secret that signed its invitations; None where there is none
    yet, and a secret is drawn. Raises OnggiError where the secret is gone, or another's.
    """
    file = _file(study)
    if not file.is_file() and made is None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:  # noqa: PTH123
            out.write(secrets.token_bytes(32))
    try:
        found = Signer(study, file.read_bytes())
    except OSError as error:
        raise OnggiError(
            f"{file}: the secret that signed the invitations is not here ({error.strerror}). Copy it from the "
            "machine they were made on, or make new links: onggi rate invite STUDY --renew."
        ) from error
    if made is not None and found.digest != made:
        raise OnggiError(f"{file}: is not the secret that signed this study's invitations; see --renew.")
    return found


def forget(study: str) -> None:
    """Drop the study's secret: every link and session signed with it is dead."""
    _file(study).unlink(missing_ok=True)
