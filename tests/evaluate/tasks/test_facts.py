"""The items that ship: the same in every language, sound in each, and true."""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from importlib import resources

import pytest
import yaml

from onggi import languages, text
from onggi.errors import OnggiError
from onggi.evaluate.tasks import TASKS, Choice, Task, floor

DATA = resources.files("onggi.evaluate.tasks") / "data"
SHIPPED = [task for task in TASKS.values() if not task.parallel]
FACTS = [task for task in SHIPPED if task.name in ("capitals", "currencies", "languages_of", "continents")]
PROBE = text.load("probe").languages


def choices(task: Task, *tags: str, shots: int = 0) -> dict[str, list[Choice]]:
    found = task.items(tags, shots=shots)
    assert all(isinstance(item, Choice) for items in found.values() for item in items)
    return found  # type: ignore[return-value]


@functools.cache
def by_id(task: str, tag: str) -> dict[str, Choice]:
    return {item.id: item for item in choices(TASKS[task], tag)[tag]}


def answer(task: str, tag: str, key: str) -> str:
    item = by_id(task, tag)[f"{task}-{key}"]
    return item.choices[item.answer].strip()


@pytest.mark.parametrize("task", SHIPPED, ids=lambda task: task.name)
def test_the_same_items_in_every_language(task: Task) -> None:
    tags = task.languages()
    assert set(PROBE) <= set(tags) and len(tags) >= 40
    assert all(languages.canonical(tag) == tag for tag in tags)
    found = choices(task, *tags)
    keys = [item.id for item in found["en"]]
    assert len(set(keys)) == len(keys) >= 90
    assert len(choices(task, *PROBE)["ko"]) >= 100
    for items in found.values():
        assert [item.id for item in items] == keys
        assert [item.answer for item in items] == [item.answer for item in found["en"]]


@pytest.mark.parametrize("task", SHIPPED, ids=lambda task: task.name)
def test_every_item_has_one_answer_that_the_question_does_not_hold(task: Task) -> None:
    for tag in task.languages():
        for item in by_id(task.name, tag).values():
            said = [choice.strip().casefold() for choice in item.choices]
            assert len(set(said)) == len(said) == (5 if task.name == "continents" else 4), (tag, item)
            assert all(said)
            if task in FACTS:
                country = re.split("[:：]", item.context.casefold().split("\n")[0])[1]
                assert said[item.answer] not in country, (tag, item)
            assert item.context == item.context.rstrip()


@pytest.mark.parametrize("task", SHIPPED, ids=lambda task: task.name)
def test_answers_stand_in_each_place_equally_often(task: Task) -> None:
    found = choices(task, *PROBE)["ko"]
    places = Counter(item.answer for item in found)
    assert len(places) == len(found[0].choices)
    assert max(places.values()) - min(places.values()) <= 3


@pytest.mark.parametrize("task", SHIPPED, ids=lambda task: task.name)
def test_shots_are_never_items_and_are_one_prefix(task: Task) -> None:
    bare = choices(task, "ko", "th", "ar")
    shown = choices(task, "ko", "th", "ar", shots=5)
    for tag in shown:
        block = {
            after.context.removesuffix(item.context)
            for item, after in zip(bare[tag], shown[tag], strict=True)
        }
        assert len(block) == 1
        lines = block.pop().split("\n\n")
        assert len(lines) == 6 and lines[-1] == ""
        solved = {item.context + item.choices[item.answer] for item in bare[tag]}
        assert not solved & set(lines)
        assert not {item.context for item in bare[tag]} & {line.rsplit(" ", 1)[0] for line in lines}
    with pytest.raises(OnggiError, match="5 solved items"):
        task.items(("ko",), shots=6)


def test_prompts_and_names_belong_together() -> None:
    """Every template asks with `{country}` and ends in `{answer}`; every file of names has its template."""
    prompts = yaml.safe_load((DATA / "prompts.yaml").read_text(encoding="utf-8"))
    files = {file.name.removesuffix(".json") for file in (DATA / "names").iterdir()}
    assert files == set(prompts) - {"any"}
    for tag in files:
        assert set(prompts[tag]) <= {task.name for task in FACTS}
        for template in prompts[tag].values():
            assert template.count("{country}") == template.count("{answer}") == 1
            assert template.endswith("{answer}")
            assert template.count("\n") == 1


@pytest.mark.parametrize("task", FACTS, ids=lambda task: task.name)
def test_the_shots_are_the_same_whatever_languages_are_asked_together(task: Task) -> None:
    def block(*tags: str) -> str:
        bare, shown = choices(task, *tags)["ko"][0], choices(task, *tags, shots=5)["ko"][0]
        return shown.context.removesuffix(bare.context)

    assert block("ko") == block("ko", "zh-Hans") == block(*task.languages())
    assert block("ko").count("\n\n") == 5


@pytest.mark.parametrize(
    ("task", "country", "names"),
    [
        ("capitals", "KR", {"ko": "서울", "de": "Seoul", "ru": "Сеул", "th": "โซล", "ar": "سول"}),
        ("capitals", "UA", {"ko": "키이우", "ja": "キーウ", "de": "Kiew", "el": "Κίεβο"}),
        ("currencies", "JP", {"ko": "엔", "ja": "円", "de": "Yen", "km": "យេន", "hi": "येन"}),
        ("currencies", "TH", {"ko": "바트", "ja": "バーツ", "zh-Hans": "铢", "th": "บาท", "es": "bat"}),
        ("currencies", "EG", {"ko": "파운드", "ar": "جنيه", "hi": "पाउंड", "sv": "pund"}),
        ("languages_of", "BR", {"ko": "포르투갈어", "el": "πορτογαλικά", "th": "โปรตุเกส"}),
        ("languages_of", "KH", {"ko": "크메르어", "km": "ខ្មែរ", "ar": "الخميرية"}),
        ("continents", "KE", {"ko": "아프리카", "zh-Hans": "非洲", "km": "អាហ្វ្រិក"}),
    ],
)
def test_known_answers(task: str, country: str, names: dict[str, str]) -> None:
    for tag, name in names.items():
        assert answer(task, tag, country).casefold() == name.casefold()


def test_a_currency_does_not_name_its_country() -> None:
    """`Dinar`, not `Algerian Dinar`; and no right answer among the wrong ones."""
    items = by_id("currencies", "en")
    assert answer("currencies", "en", "DZ") == "Dinar"
    assert answer("currencies", "en", "FR") == "Euro"
    for item in items.values():
        said = [choice.strip() for choice in item.choices]
        assert not any(" " in choice for choice in said)
        assert (
            len({"Rial", "Riyal"} & set(said)) < 2
            and len({"Krone", "Krona", "Króna", "Koruna"} & set(said)) < 2
        )
    # Chinese calls the won, the yen and the dollar by one word; those items are left out with it, and only then.
    assert "currencies-KR" in items and "currencies-KR" not in by_id("currencies", "zh-Hans")
    assert len(choices(TASKS["currencies"], "ko", "zh-Hans")["ko"]) < len(
        choices(TASKS["currencies"], "ko")["ko"]
    )


def test_official_languages_are_not_offered_as_wrong() -> None:
    for country, official in {
        "CH": {"French", "Italian", "German"},
        "SG": {"Malay", "Tamil", "Chinese", "English"},
        "BO": {"Spanish", "Guarani", "Quechua"},
        "CA": {"English", "French"},
        "PE": {"Spanish", "Quechua"},
    }.items():
        item = by_id("languages_of", "en")[f"languages_of-{country}"]
        assert len(official & {choice.strip() for choice in item.choices}) == 1, country


# What a number is in words, from a reader of the language, not from the rules that made the table.
WORDS = {
    "ko": {"12": "십이", "100": "백", "87": "팔십칠"},
    "ja": {"12": "十二", "100": "百", "87": "八十七"},
    "zh-Hans": {"12": "十二", "87": "八十七", "100": "一百", "108": "一百零八"},
    "de": {"12": "zwölf", "87": "siebenundachtzig", "21": "einundzwanzig"},
    "es": {"12": "doce", "87": "ochenta y siete", "100": "cien"},
    "ru": {"12": "двенадцать", "87": "восемьдесят семь", "40": "сорок"},
    "el": {"12": "δώδεκα", "87": "ογδόντα επτά", "93": "ενενήντα τρία"},
    "ar": {"11": "أحد عشر", "12": "اثنا عشر", "87": "سبعة وثمانون", "100": "مائة", "21": "واحد وعشرون"},
    "hi": {"12": "बारह", "87": "सत्तासी", "100": "एक सौ", "25": "पच्चीस"},
    "th": {"11": "สิบเอ็ด", "21": "ยี่สิบเอ็ด", "87": "แปดสิบเจ็ด", "100": "หนึ่งร้อย"},
    "km": {"12": "ដប់ពីរ", "20": "ម្ភៃ", "87": "ប៉ែតសិបប្រាំពីរ", "6": "ប្រាំមួយ"},
    "fr": {"71": "soixante-et-onze", "87": "quatre-vingt-sept"},
    "da": {"53": "treoghalvtreds", "87": "syvogfirs"},
    "vi": {"15": "mười lăm", "21": "hai mươi mốt", "87": "tám mươi bảy"},
}


@pytest.mark.parametrize("tag", WORDS)
def test_number_words(tag: str) -> None:
    shipped = json.loads((DATA / "names" / f"{tag}.json").read_text(encoding="utf-8"))["number"]
    for number, words in WORDS[tag].items():
        assert shipped[number] == words


def test_hundreds() -> None:
    """The hundreds, where the rules of CLDR are wrong most often, as a reader writes them."""
    for tag, words in {
        "ko": "사백오십오",
        "de": "vierhundertfünfundfünfzig",
        "ar": "أربعمائة وخمسة وخمسون",
        "th": "สี่ร้อยห้าสิบห้า",
        "hi": "चार सौ पचपन",
        "km": "បួនរយហាសិបប្រាំ",
        "ja": "四百五十五",
        "ru": "четыреста пятьдесят пять",
    }.items():
        item = by_id("number_words", tag)["number_words-455"]
        assert item.context == f"{words} =" and item.choices[item.answer] == " 455"


@pytest.mark.parametrize("tag", TASKS["sums"].languages())
def test_no_two_numbers_are_one_word_and_none_is_in_figures(tag: str) -> None:
    words = json.loads((DATA / "names" / f"{tag}.json").read_text(encoding="utf-8"))["number"]
    assert len(set(words.values())) == len(words)
    hidden = {"\u00ad", "\u200b", "\u200c", "\u200e", "\u200f"}
    for word in words.values():
        assert not any(c.isdigit() or c in hidden for c in word) and word == word.strip()


def test_sums_add_up() -> None:
    numbers = {
        word: int(key) for key, word in json.loads((DATA / "names" / "ko.json").read_text())["number"].items()
    }
    for item in choices(TASKS["sums"], "ko")["ko"]:
        a, b = item.context.removesuffix(" =").split(" + ")
        said = [numbers[choice.strip()] for choice in item.choices]
        assert [number == numbers[a] + numbers[b] for number in said] == [i == item.answer for i in range(4)]


def test_the_prior_is_the_question_without_the_country() -> None:
    for tag, label in {
        "ko": "수도:",
        "ja": "首都：",
        "de": "Hauptstadt:",
        "th": "เมืองหลวง:",
        "ar": "العاصمة:",
    }.items():
        for item in choices(TASKS["capitals"], tag, shots=2)[tag]:
            assert item.prior == label and item.context.endswith(f"\n{label}")
    assert TASKS["capitals"].metric == "acc_mutual_info" and TASKS["capitals"].kind == "choice"
    assert all(item.prior is None for item in choices(TASKS["sums"], "ko")["ko"])


def test_a_seed_draws_and_a_limit_cuts() -> None:
    task = TASKS["capitals"]
    every = choices(task, "ko", "el")["ko"]
    first = task.items(("ko", "el"), limit=10)
    assert first["ko"] == every[:10] and len(first["el"]) == 10
    other = task.items(("ko", "el"), limit=10, seed=1)["ko"]
    assert {item.id for item in other} != {item.id for item in first["ko"]}
    assert sorted(item.id for item in task.items(("ko",), seed=1)["ko"]) == sorted(item.id for item in every)


def test_the_floor_is_what_a_bias_earns() -> None:
    same = [Choice(str(i), "?", (" a", " b", " c", " d"), 0) for i in range(3)]
    assert floor(same).chance == 0.25 and floor(same).majority == 1.0
    mixed = [Choice("1", "?", (" a", " b"), 0), Choice("2", "?", (" c", " d"), 1)]
    assert floor(mixed).majority == 0.75  # `a` where it is offered, else at random
    dollars = floor(choices(TASKS["currencies"], "ko")["ko"])
    assert dollars.chance == 0.25 and 0.3 < dollars.majority < 0.4


def test_a_language_that_is_not_there_is_named() -> None:
    with pytest.raises(OnggiError, match=r"sums: is not there in lo; it is in en, de"):
        TASKS["sums"].items(("ko", "lo"))


def test_the_licence_stands_beside_the_data() -> None:
    assert "SPDX-License-Identifier: Unicode-3.0" in (DATA / "LICENSE-Unicode-3.0.txt").read_text(
        encoding="utf-8"
    )
    assert json.loads((DATA / "items.json").read_text(encoding="utf-8"))["cldr"] == "48.2.0"
