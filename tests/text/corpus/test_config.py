"""clean.yaml is checked whole before anything runs, and every key is documented."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from onggi.arguments import said_of
from onggi.errors import OnggiError
from onggi.text.corpus.config import Cleaning, load

LANGUAGES = ("ko", "no", "km", "ar")


def test_every_key_is_documented() -> None:
    assert all(said_of(Cleaning)[field.name] for field in fields(Cleaning))


def test_values(tmp_path: Path) -> None:
    file = tmp_path / "clean.yaml"
    file.write_text(
        """
markup: false
mask: [email]
symbols: [0.2, 0.5]
digits: 0.3
overrides: {no: {symbols: 0.3}, kor_Hang: {top_2: 0.5}}   # no is Norwegian
korean: characters
shares: {ko: 2, no: 1, km: 1, ar: 0.5}
content: 1e9
longest: 1_000
""",
        encoding="utf-8",
    )
    assert load(file, LANGUAGES) == Cleaning(
        markup=False,
        mask=("email",),
        symbols=(0.2, 0.5),
        digits=(0.3, 0.3),
        overrides={"no": {"symbols": 0.3}, "ko": {"top_2": 0.5}},
        korean="characters",
        shares={"ko": 2.0, "no": 1.0, "km": 1.0, "ar": 0.5},
        content=1e9,
        longest=1000,
    )
    file.write_text("# 비어 있다\n", encoding="utf-8")
    assert load(file, LANGUAGES) == load(None, LANGUAGES) == Cleaning()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("symbolz: 0.3", "line 1: symbolz: is not a key. Did you mean 'symbols'?"),
        ("near: true\nnear: false", "line 2: the key 'near' stands twice."),
        ("near: maybe", "line 1: near: 'maybe' is not bool."),
        ("symbols: [0.5, 0.1]", "symbols: [0.5, 0.1] is not a pair from low to high."),
        ("symbols: [0.1, 0.2, 0.3]", "line 1: symbols: ['0.1', '0.2', '0.3'] is not"),
        ("\nlength: nan", "line 2: length: 'nan' is not float."),
        ("korean: words", "korean: 'words' is not known."),
        ("mask: [phones]", "mask: 'phones' is not known. Did you mean 'phone'?"),
        ("overrides: {de: {symbols: 0.1}}", "overrides: de is not one of --languages (ko, no, km, ar)."),
        ("overrides: {ko: {symbol: 0.1}}", "'symbol' has no limit. Did you mean 'symbols'?"),
        ("shares: {ko: 1, no: 1}", "shares: says nothing of km, ar."),
        ("temperature: 0", "temperature: 0.0 is not more than 0."),
        ("[1, 2]", "line 1: is not a mapping of keys to values."),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "clean.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(OnggiError) as error:
        load(file, LANGUAGES)
    assert str(file) in str(error.value) and said in str(error.value)
