"""What is held out of a text: the same passages in every language, and never all of them."""

from __future__ import annotations

import pytest

from onggi.errors import OnggiError
from onggi.text.draw import hold_out


def test_what_is_held_out_is_so_in_all_languages() -> None:
    words = {"ko": "항아리", "el": "πιθάρι", "km": "ក្អម", "ar": "جرة"}
    passages = {tag: {str(n): f"{word} {n}" for n in range(30)} for tag, word in words.items()}
    del passages["km"]["3"]
    rest, held_out = hold_out(passages, 10)
    apart = {key for own in held_out.values() for key in own}
    assert len(held_out["ko"]) == 3 and list(held_out["ko"]) == list(held_out["el"])
    for tag, texts in passages.items():
        assert rest[tag].keys() == texts.keys() - apart and held_out[tag].items() <= texts.items()
    assert hold_out(passages, 10) == (rest, held_out)
    assert len(hold_out({"th": {"ก": "โอ่ง", "ข": "ไห"}}, 10)[1]["th"]) == 1


def test_a_language_of_one_passage_is_refused() -> None:
    with pytest.raises(OnggiError, match="1 passage in Khmer is too little"):
        hold_out({"en": {"a": "jar", "b": "lid"}, "km": {"a": "ក្អម"}}, 10)


def test_a_language_that_others_leave_nothing_is_refused() -> None:
    texts = {"en": "jar", "ko": "항아리", "ar": "جرة"}
    passages = {tag: {str(n): f"{word} {n}" for n in range(20)} for tag, word in texts.items()}
    _, apart = hold_out(passages, 10)
    first, second = apart["en"]
    passages["th"] = {first: "โอ่ง", second: "ไห"}  # one is its own, the other is held out in all
    with pytest.raises(
        OnggiError, match=r"all passages in Thai are held out, since other .* or give more of it"
    ):
        hold_out(passages, 10)
