"""Order, sides, overlap and attention are as a sound study has them, whatever its size."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict

import pytest

from onggi.errors import OnggiError
from onggi.rate import design
from onggi.rate.design import Design, Item
from rate_examples import MODELS, QUESTIONS, SENTENCES

WORDS = ("sour", "fresh", "deep")


def items(tag: str, count: int, models: tuple[str, ...] = MODELS) -> list[Item]:
    def said(number: int, m: int) -> str:
        return f"{SENTENCES[tag][0]} {SENTENCES[tag][1].format(WORDS[m % 3])} {number}.{m}"

    return [
        Item(
            f"{tag}-{number}",
            tag,
            (),
            (QUESTIONS[tag],),
            {model: (said(number, m),) for m, model in enumerate(models)},
        )
        for number in range(count)
    ]


def whole(**options: object) -> Design:
    found = {tag: items(tag, 14) for tag in ("ko", "ar", "km")}
    return design.build(found, MODELS, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("raters", "overlap"), [(6, 2), (5, 3), (1, 1), (7, 1)])
def test_every_pair_has_its_raters_and_every_rater_as_many(raters: int, overlap: int) -> None:
    made = whole(raters=raters, overlap=overlap)
    for tag in ("ko", "ar", "km"):
        lists = made.schedule[tag]
        assert len(lists) == raters
        own = [[e for e in mine if made.key[e["pair"]]["kind"] == "pair"] for mine in lists]
        sizes = [len(mine) for mine in own]
        assert sum(sizes) == 14 * 3 * overlap and max(sizes) - min(sizes) <= 1
        seen = Counter(entry["pair"] for mine in own for entry in mine)
        assert set(seen.values()) == {overlap} and len(seen) == 14 * 3
        for mine in lists:  # nobody sees a pair twice
            assert len({entry["pair"] for entry in mine}) == len(mine)


def test_sides_are_in_balance_for_every_rater_and_couple() -> None:
    made = whole(raters=6, overlap=2)
    for lists in made.schedule.values():
        ways = defaultdict(list)
        for mine in lists:
            left: Counter[tuple[str, str]] = Counter()
            shown: Counter[tuple[str, str]] = Counter()
            for entry in mine:
                about = made.key[entry["pair"]]
                if about["kind"] != "pair":
                    continue
                on_left = about["models"][1 if entry["swapped"] else 0]
                couple = tuple(sorted(about["models"]))
                shown[couple] += 1
                left[couple] += on_left == couple[0]
                ways[entry["pair"]].append(on_left)
            assert all(abs(2 * left[couple] - shown[couple]) <= 3 for couple in shown)
            # Each two models come as often as any others, or nearly.
            assert max(shown.values()) - min(shown.values()) <= 4
        # Two raters of a pair see it the two ways round.
        assert all(len(set(seen)) == 2 for seen in ways.values())


def test_no_prompt_follows_itself() -> None:
    made = whole(raters=3, overlap=2)
    prompts = {pair["pair"]: pair["_id"] for pair in made.pairs}
    checks = {pair for pair, about in made.key.items() if about["kind"] != "pair"}
    for lists in made.schedule.values():
        for mine in lists:
            order = [prompts[entry["pair"]] for entry in mine if entry["pair"] not in checks]
            assert sum(a == b for a, b in itertools.pairwise(order)) <= 1


def test_attention_pairs_stand_among_the_others_and_look_like_them() -> None:
    made = whole(raters=6, overlap=2, attention=4)
    kinds = Counter()
    pairs = {pair["pair"]: pair for pair in made.pairs}
    for lists in made.schedule.values():
        for mine in lists:
            places = [i for i, entry in enumerate(mine) if made.key[entry["pair"]]["kind"] != "pair"]
            assert len(places) == 4 and places[0] >= 2
            for place in places:
                pair, about = pairs[mine[place]["pair"]], made.key[mine[place]["pair"]]
                kinds[about["kind"]] += 1
                assert pair.keys() == made.pairs[0].keys()
                assert (pair["first"] == pair["second"]) == (about["kind"] == "same")
                assert sorted(pair["first"][0]) == sorted(pair["second"][0])
    assert kinds["same"] == kinds["broken"] == 3 * 6 * 2


def test_ids_and_numbers_say_nothing_of_models() -> None:
    made = whole(raters=2)
    other = design.build({t: items(t, 14, MODELS[::-1]) for t in ("ko", "ar", "km")}, MODELS[::-1], raters=2)
    ids = [[[entry["id"] for entry in mine] for mine in lists] for lists in made.schedule.values()]
    assert ids == [[[entry["id"] for entry in mine] for mine in lists] for lists in other.schedule.values()]
    flat = [name for lists in ids for mine in lists for name in mine]
    assert len(set(flat)) == len(flat)
    # Which is "first" is a coin, and a pair's number has nothing to do with its models.
    first = Counter(about["models"][0] for about in made.key.values() if about["kind"] == "pair")
    assert all(0.2 < first[model] / sum(first.values()) < 0.5 for model in MODELS)
    numbers = defaultdict(list)
    for pair, about in made.key.items():
        numbers[tuple(sorted(about["models"])), about["kind"]].append(int(pair[1:]))
    middle = len(made.pairs) / 2
    for (_, kind), own in numbers.items():
        if kind == "pair":
            assert abs(sum(own) / len(own) - middle) < 0.2 * middle
    assert not any(model in str(made.pairs) + str(made.schedule) for model in MODELS)


def test_the_same_seed_makes_the_same_study_and_another_another() -> None:
    assert whole(seed=3) == whole(seed=3)
    assert whole(seed=3).schedule != whole(seed=4).schedule


def test_answers_that_are_the_same_are_not_shown() -> None:
    one, *rest = items("ko", 4)
    same = Item(one.id, "ko", (), one.turns, dict.fromkeys(MODELS, one.answers[MODELS[0]]))
    made = design.build({"ko": [same, *rest]}, MODELS, raters=2)
    assert {entry["_id"] for entry in made.identical} == {one.id} and len(made.identical) == 3
    assert sum(about["kind"] == "pair" for about in made.key.values()) == 9
    with pytest.raises(OnggiError, match="in ko all of them answered the same"):
        design.build({"ko": [same]}, MODELS)


def test_against_the_reference_alone() -> None:
    made = whole(against="reference", raters=2)
    couples = {tuple(sorted(about["models"])) for about in made.key.values() if about["kind"] == "pair"}
    assert couples == {tuple(sorted((MODELS[0], other))) for other in MODELS[1:]}


def test_what_cannot_be() -> None:
    with pytest.raises(OnggiError, match="compares two or more"):
        design.build({"ko": items("ko", 2)}, MODELS[:1])
    with pytest.raises(OnggiError, match="3 raters cannot see each pair"):
        design.build({"ko": items("ko", 2)}, MODELS, raters=2, overlap=3)


@pytest.mark.parametrize("tag", ["ko", "th", "km", "ar"])
def test_a_broken_answer_is_made_of_the_same_characters(tag: str) -> None:
    text = SENTENCES[tag][0]
    made = design.broken(text, random.Random(0))
    assert made != text and sorted(made) == sorted(text)
    # Spaces stay, and no mark is torn from its letter.
    assert [len(word) > 0 for word in made.split(" ")] == [len(word) > 0 for word in text.split(" ")]
    import unicodedata

    assert unicodedata.combining(made[0]) == 0
