"""Is a text's language found? Run as a script, this prints the table of `onggi.text.identify` and docs/confusion.md.

`python tests/text/test_identify.py [SOURCE LANGUAGES]`, as `onggi text` takes them; without them the probe.
Of a larger text 1,000 passages a language, evenly spread.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import regex

from onggi import languages, text
from onggi.errors import OnggiError
from onggi.text import scripts
from onggi.text.confusion import MIN_WORDS, word_count
from onggi.text.identify import alike, identify, known, other_form

_SENTENCE = regex.compile(r"[^.!?;·…。！？؟।។\n]+[.!?;·…。！？؟।។]*")


def sentences(passage: str) -> Iterator[str]:
    """Sentences of 15 characters or more."""
    for match in _SENTENCE.finditer(passage):
        sentence = match.group().strip()
        if len(sentence) >= 15 and regex.search(r"\p{L}{3}", sentence):
            yield sentence


def cut(kind: str, passage: str) -> list[str]:
    """A passage as what is identified: itself, its sentences, or short pieces of them."""
    if kind == "passages":
        return [passage]
    return list(sentences(passage)) if kind == "sentences" else [s[: limit(s)] for s in sentences(passage)]


def limit(sentence: str) -> int:
    """15 to 60 characters, spread evenly and the same at every run."""
    return 15 + len(sentence) * 7 % 46


def sample(source: text.Text, tag: str) -> list[str]:
    passages = [p for p in source.passages(tag).values() if next(sentences(p), None)]
    return passages[:: -(-len(passages) // 1000)]


def measure(source: text.Text, kind: str) -> dict[str, Counter[str | None]]:
    """For each language what its texts were taken for."""
    return {
        tag: Counter(identify(piece).language for p in sample(source, tag) for piece in cut(kind, p))
        for tag in source.languages
    }


# Measured, less three points where several languages share the script; where it decides, every one.
FLOORS = {"passages": 1.0, "sentences": 0.95, "pieces": 0.88}
ALONE = ("el", "ko", "ja", "zh-Hans", "th", "km")


@pytest.mark.parametrize("kind", FLOORS)
def test_the_languages_of_the_probe(kind: str) -> None:
    found = measure(text.load("probe"), kind)
    assert len(found) == 12
    for tag, taken in found.items():
        floor = 1.0 if tag in ALONE else FLOORS[kind]
        assert taken[tag] >= floor * taken.total(), (tag, taken)


@pytest.mark.parametrize(
    ("content", "language"),
    [
        ("안녕", "ko"),
        ("大韓民國 만세, 우리 나라", "ko"),
        ("カタカナ", "ja"),
        ("駅前図書館", "ja"),  # no kana, but characters of Japan's own
        ("国家图书馆", "zh-Hans"),
        ("國立臺灣大學", "zh-Hant"),
        ("人口", "zh-Hans"),  # nothing decides
        ("ខ្មែរ", "km"),
        ("ไทย", "th"),
        ("გამარჯობა", "ka"),
        ("Γειά", "el"),
        ("שלום", "he"),
        ("பெயர்", "ta"),
        ("ሰላም", "am"),
        ("Zdravo svete, kako ste danas?", "sr-Latn"),
        ("123 !? 🙂", None),
        ("", None),
    ],
)
def test_the_script_decides_first(content: str, language: str | None) -> None:
    assert identify(content).language == language


def test_candidates_narrow_the_choice_and_force_nothing() -> None:
    assert identify("hello world", ["en", "ko", "ru"]).language == "en"
    assert identify("добрый день", ["en", "bg", "th"]).language == "bg"
    assert identify("สวัสดี", ["en", "ko"]).language == "th"
    assert identify("東京大学", ["ja", "ko"]).language == "ja"
    assert identify("今天天氣很好在公園散步", ["ja", "en"]).language == "ja"
    assert identify("人口", ["zh-TW"]).language == "zh-Hant"
    assert identify("muito obrigado", ["pt-PT", "en"]).language == "pt"
    assert identify("ልምዓት", ["ti", "en"]).language == "ti"  # alone in its script among them
    with pytest.raises(OnggiError, match=r"yi is unknown .* he"):
        identify("שלום", ["yi", "he"])


def test_an_expected_language_is_believed_unless_unlikely() -> None:
    malay_like = "Selamat pagi, apa kabar hari ini?"
    assert identify(malay_like, expected="ms").language == "ms"
    assert identify(malay_like, expected="id").language == "id"
    assert identify("人口", expected="ja").language == "ja"
    assert identify("人口", expected="zh-Hant").language == "zh-Hant"
    assert identify("今天天氣很好在公園散步", expected="ja").language == "zh-Hant"
    assert identify("这个人", expected="ja").language == "zh-Hans"
    assert identify("這個人", expected="zh-Hans").language == "zh-Hant"
    assert identify("The weather will be fine tomorrow.", expected="de").language == "en"
    assert identify("Завтра будет хорошая погода, говорят синоптики.", expected="ko").language == "ru"


def test_confidence_is_the_script_s_share_or_the_model_s_probability() -> None:
    assert identify("한국어").confidence == 1.0
    assert identify("한국어 abc").confidence == pytest.approx(6 / 9)  # a syllable weighs two letters
    sure, unsure = identify("Das ist ein ganz gewöhnlicher deutscher Satz."), identify("hello world")
    assert sure.confidence > 0.9 > 0.5 > unsure.confidence


def test_what_is_known_and_what_is_alike() -> None:
    assert all(
        map(
            known,
            [
                "ko",
                "ja",
                "zh-Hans",
                "zh-TW",
                "km",
                "th",
                "el",
                "ru",
                "sr",
                "sr-Latn",
                "pt-PT",
                "en-GB",
                "id",
                "ar",
                "ka",
            ],
        )
    )
    assert not any(map(known, ["yi", "bo", "ti", "grc"]))
    assert alike("pt-PT", "pt-BR") and alike("id", "ms") and alike("hr", "sr-Latn")
    assert not alike("zh-Hans", "zh-Hant") and not alike("sr", "sr-Latn") and not alike("ko", "ja")


def test_characters_of_another_way_of_writing_han() -> None:
    assert other_form("这个国家", "Hans") == other_form("這個國家", "Hant") == 0
    assert other_form("這個國家", "Hans") == other_form("这个国家", "Hant") == 3  # 家 is both
    assert other_form("図書館で働く", "Jpan") == 0 and other_form("说明们한국", "Jpan") == 2


def main(source: str, tags: str | None = None) -> None:
    loaded = text.load(source, languages.parse(tags) if tags else None)
    table = {kind: measure(loaded, kind) for kind in FLOORS}
    print(f"{'':8}" + "".join(f"{kind:>12} {'n':>6}" for kind in FLOORS) + "   pieces taken for")
    for tag in loaded.languages:
        row = "".join(f"{t[tag][tag] / t[tag].total():12.1%} {t[tag].total():6}" for t in table.values())
        others = [f"{other} {n}" for other, n in table["pieces"][tag].most_common(5) if other != tag]
        print(f"{tag:8}{row}   {', '.join(others[:4])}")
    print(
        "\nLines of five words: wrong by the best guess, with the language expected; whose lines pass for it"
    )
    lines = {tag: long_lines(loaded, tag) for tag in loaded.languages}
    for tag, own in lines.items():
        guessed = sum(not alike(identify(line).language or "und", tag) for line in own) / len(own)
        missed = 1 - passes(own, tag)
        others = {other: passes(theirs[:150], tag) for other, theirs in lines.items() if other != tag}
        worst = sorted(others.items(), key=lambda item: -item[1])[:4]
        print(
            f"{tag:8}{len(own):5}{guessed:8.1%}{missed:8.1%}   {', '.join(f'{o} {s:.1%}' for o, s in worst if s)}"
        )


def long_lines(source: text.Text, tag: str) -> list[str]:
    """Sentences of five words or more, four letters in five of them in the language's own script."""
    every = [s for p in sample(source, tag) for s in sentences(p)]
    kept = [s for s in every if scripts.own_share(s, tag) > 0.8 and word_count(s) >= MIN_WORDS]
    return kept[:: -(-len(kept) // 400)]


def passes(lines: list[str], tag: str) -> float:
    return sum(identify(line, expected=tag).language == tag for line in lines) / len(lines)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["probe"]))
