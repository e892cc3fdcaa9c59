"""The everyday prompts: the same twelve in every language, each in its language and as it is written there."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

from onggi import languages, text
from onggi.text import confusion, identify, prompts, scripts

FILE = resources.files("onggi.text") / "data" / "everyday.jsonl"
LANGUAGES = text.load("probe").languages
CATEGORIES = [
    "explanation",
    "letter",
    "explanation",
    "advice",
    "story",
    "letter",
    "advice",
    "description",
    "advice",
    "letter",
    "description",
    "opinion",
]
LONG = {5, 8, 10}  # the prompts that ask for three or four sentences; the others ask for two or three
# How each language says two or three, and three or four.
LENGTHS = {
    "en": ("two or three", "three or four"),
    "de": ("zwei oder drei", "drei oder vier"),
    "es": ("dos o tres", "tres o cuatro"),
    "ru": ("двух-трёх", "трёх-четырёх"),
    "el": ("δύο ή τρεις", "τρεις ή τέσσερις"),
    "ko": ("두세 문장", "서너 문장"),
    "ja": ("二、三文", "三、四文"),
    "zh-Hans": ("两三句", "三四句"),
    "ar": ("أو ثلاث", "ثلاث جمل أو أربع"),
    "hi": ("दो-तीन", "तीन-चार"),
    "th": ("สองสาม", "สามสี่"),
    "km": ("ពីរឬបី", "បីឬបួន"),
}
# What a prompt may end with, and all other marks that its language writes.
MARKS = {
    "en": (".?", ","),
    "de": (".?", ",:"),
    "es": (".?", ",¿"),
    "ru": (".?", ",:-"),
    "el": (".;", ",:"),
    "ko": (".?", ","),
    "ja": ("。", "、"),
    "zh-Hans": ("。？", "，、"),
    "ar": (".؟", "،:"),
    "hi": ("।?", ",-"),
    "th": ("", ""),
    "km": ("។?", ""),
}


def everyday() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def of(tag: str) -> Iterator[tuple[str, str]]:
    """(_id, prompt) of the language."""
    return ((row["_id"], row["prompt"]) for row in everyday() if row["lang"] == tag)


def test_the_same_twelve_in_every_language_of_the_probe() -> None:
    rows = everyday()
    wanted = [(number, tag) for number in range(1, 13) for tag in LANGUAGES]
    assert [row["_id"] for row in rows] == [f"everyday-{number:02}-{tag}" for number, tag in wanted]
    assert [row["lang"] for row in rows] == [tag for _, tag in wanted]
    assert [row["category"] for row in rows] == [CATEGORIES[number - 1] for number, _ in wanted]
    assert len({row["prompt"] for row in rows}) == len(rows) == 144
    assert len({languages.script(tag) for tag in LANGUAGES}) == 10


def test_it_is_read_as_prompts_are() -> None:
    assert len(prompts.load("everyday")) == 144
    found = prompts.load("everyday", ("ko", "ar", "km"))
    assert [prompt.id for prompt in found[:4]] == [
        f"everyday-{n}" for n in ["01-ko", "01-ar", "01-km", "02-ko"]
    ]


def test_the_file_is_clean() -> None:
    content = FILE.read_text(encoding="utf-8")
    assert content == unicodedata.normalize("NFC", content) and content.endswith("}\n")
    for row in everyday():
        said = row["prompt"]
        assert said == said.strip() and "  " not in said
        # No control or invisible characters (zero-width, bidi marks), nothing private or unassigned.
        assert not {unicodedata.category(c) for c in said} & {"Cc", "Cf", "Cn", "Co", "Cs"}, row["_id"]


@pytest.mark.parametrize("tag", LANGUAGES)
def test_each_is_in_its_language_and_script_alone(tag: str) -> None:
    for key, said in of(tag):
        assert identify.identify(said).language == tag, key
        assert scripts.own_share(said, tag) == 1, key
        found = confusion.check(said, tag)
        assert not found.foreign and not found.excused and not found.lookalikes, key
        assert set(found.identified) == {tag}, key
    if languages.script(tag) != "Latn":
        assert not [key for key, said in of(tag) if scripts.count_in(said, "Latn")]


@pytest.mark.parametrize("tag", LANGUAGES)
def test_each_asks_for_as_many_sentences_as_in_the_other_languages(tag: str) -> None:
    short, long = LENGTHS[tag]
    for number, (key, prompt) in enumerate(of(tag), 1):
        said = prompt.lower()
        assert (long in said) == (number in LONG), key
        assert (short in said.replace(long, "")) == (number not in LONG), key
        assert not any(c.isdigit() for c in said), key


@pytest.mark.parametrize("tag", LANGUAGES)
def test_marks_are_those_of_the_language(tag: str) -> None:
    ends, inside = MARKS[tag]
    for key, said in of(tag):
        marks = {c for c in said if unicodedata.category(c)[0] in "PS"} - {"ៗ", "ๆ"}
        assert marks <= {*ends, *inside}, (key, marks)
        if ends:  # one or two sentences; Thai ends none with a mark
            assert said[-1] in ends and sum(map(said.count, ends)) in (1, 2), key


def test_spelling_that_only_looks_right() -> None:
    for key, said in of("km"):  # a subscript of nothing, two vowel signs
        assert not re.search("\u17d2(?![\u1780-\u17a2])|[\u17b6-\u17c5]{2}", said), key
    for key, said in of("th"):  # two เ for แ, am in two characters, two tones; ๆ without its spaces
        assert not re.search("\u0e40\u0e40|\u0e4d\u0e32|[\u0e48-\u0e4b]{2}|(?<! )ๆ|ๆ(?! )", said), key
        assert max(map(len, said.split())) > 15, key  # spaces stand between clauses, not words
    for key, said in of("el"):  # a word of more than one syllable has its accent
        for word in re.findall(r"[^\W\d_]+", said):
            vowels = re.findall("[αεηιουω\u0301\u0308]+", unicodedata.normalize("NFD", word.lower()))
            assert len(vowels) < 2 or "\u0301" in "".join(vowels), (key, word)
    for key, said in of("es"):
        assert said.count("?") == said.count("¿"), key
    for key, said in of("ru"):  # ё is written throughout
        assert not re.search("ребенок|трех|четырех|еще|теплое", said), key


@pytest.mark.parametrize("tag", LANGUAGES)
def test_no_prompt_is_cut_short(tag: str) -> None:
    """Each is about as long as in English, the density of the script taken into account."""
    english = [len(said) for _, said in of("en")]
    ratios = sorted(len(said) / length for (_, said), length in zip(of(tag), english, strict=True))
    assert ratios[6] / 1.7 < ratios[0] and ratios[-1] < ratios[6] * 1.7


def test_it_shares_no_prompt_with_the_probe() -> None:
    probe = text.load("probe")
    for tag in LANGUAGES:
        whole = "\n".join(probe.passages(tag).values())
        assert not [key for key, said in of(tag) if said in whole]
