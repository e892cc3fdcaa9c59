"""The same, nearly the same, and an evaluation's text: found in every script, and nothing else is."""

from __future__ import annotations

import random

import numpy as np
import pytest

from onggi.errors import OnggiError
from onggi.text import load
from onggi.text.corpus import duplicates, scale
from onggi.text.corpus.config import Cleaning
from onggi.text.corpus.duplicates import EXACT, KEEP, NEAR, Contamination, Exam
from onggi.text.corpus.shingles import simplify, spaced

LANGUAGES = ("en", "ko", "th", "km", "ar", "zh-Hans")
CONFIG = Cleaning()
SCALES = scale.scales(LANGUAGES, {})


def fates(texts: list[tuple[str, str]], config: Cleaning = CONFIG, kiwi: bool = False) -> list[int]:
    """Of texts, each with its language."""
    simple = [simplify(text) for text, _ in texts]
    exact = np.array([np.frombuffer(duplicates.exact(one), np.uint64) for one in simple])
    signatures = np.array(
        [
            duplicates.signature(duplicates.shingles(text, one, lang, config, SCALES[lang], kiwi), config)
            for (text, lang), one in zip(texts, simple, strict=True)
        ]
    )
    return duplicates.duplicates(exact, list(signatures.T), config.near, config.exact).tolist()


def edited(text: str, language: str, share: float) -> str:
    """`text` with a piece of it in other words: the end, so that most shingles stay."""
    parts = text.split() if spaced(language) else list(text)
    cut = max(1, round(len(parts) * (1 - share)))
    joined = " " if spaced(language) else ""
    return joined.join([*parts[:cut], *reversed(parts[cut:])])


@pytest.mark.parametrize("language", LANGUAGES)
def test_found_in_every_script(language: str) -> None:
    probe = list(load("probe").passages(language).values())
    long = ["\n".join(probe[i : i + 8]) for i in range(0, 40, 8)]
    texts = [*long, long[0].upper() + " !!", edited(long[1], language, 0.08), edited(long[2], language, 0.9)]
    assert fates([(text, language) for text in texts]) == [KEEP] * 5 + [EXACT, NEAR, KEEP]


def test_korean_by_morphemes_sees_through_particles() -> None:
    pytest.importorskip("kiwipiepy")
    text = " ".join(load("probe").passages("ko").values())[:1500]
    spaced_out = text.replace(" 수 ", "수 ").replace("습니다", " 습니다").replace("했다", " 했다")
    assert spaced_out != text
    pair = [(text, "ko"), (spaced_out, "ko"), (load("starter").passages("ko").popitem()[1], "ko")]
    assert fates(pair, kiwi=True)[1:] == [NEAR, KEEP] or fates(pair, kiwi=True)[1:] == [EXACT, KEEP]


def test_as_often_as_the_theory_says() -> None:
    """Pairs of sets with a known Jaccard similarity: 1 - (1 - s^8)^14 of them are candidates."""
    drawn = np.random.default_rng(0)
    for similarity in (0.5, 0.7, 0.8, 0.9):
        hits = 0
        for _ in range(200):
            whole = drawn.integers(0, 1 << 63, size=400, dtype=np.uint64)
            shared = round(400 * similarity)
            half = shared + (400 - shared) // 2
            one, other = whole[:half], np.concatenate([whole[:shared], whole[half:]])
            pair = [duplicates.signature(np.sort(part), CONFIG) for part in (one, other)]
            hits += bool((pair[0] == pair[1]).any())
        expected = 1 - (1 - similarity**8) ** 14
        assert abs(hits / 200 - expected) < 0.11, similarity


def test_the_first_of_a_chain_is_kept() -> None:
    exact = np.arange(10, dtype=np.uint64).reshape(5, 2)
    groups = [np.array([9, 1, 2, 1, 3], np.uint64), np.array([4, 5, 6, 9, 4], np.uint64)]
    assert duplicates.duplicates(exact, groups, near=True, same=True).tolist() == [
        KEEP,
        KEEP,
        KEEP,
        NEAR,
        NEAR,
    ]
    assert duplicates.duplicates(exact, groups, near=False, same=True).tolist() == [KEEP] * 5
    same = np.zeros((3, 2), np.uint64)
    assert duplicates.duplicates(same, [], near=False, same=True).tolist() == [KEEP, EXACT, EXACT]
    assert duplicates.duplicates(same, [], near=False, same=False).tolist() == [KEEP] * 3


def test_no_two_passages_of_the_probe_are_alike() -> None:
    texts = [(text, tag) for tag in LANGUAGES for text in load("probe").passages(tag).values()]
    assert set(fates(texts)) == {KEEP}


def test_a_long_text_costs_bounded_memory() -> None:
    import tracemalloc

    found = np.random.default_rng(0).integers(0, 1 << 63, size=300_000, dtype=np.uint64)
    tracemalloc.start()
    duplicates.signature(found, CONFIG)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("language", LANGUAGES)
def test_contamination(language: str) -> None:
    probe = list(load("probe").passages(language).values())
    exam = Exam("exam", {language: probe[:10]})
    found = Contamination([exam], CONFIG, SCALES)
    inside = f"{probe[20]} {probe[3]} {probe[21]}"
    assert found.find(simplify(inside), language) == [f"exam {language} 4"]
    half = probe[5][: len(probe[5]) // 2]
    assert found.find(simplify(f"{probe[22]} {half.upper()}"), language) == [f"exam {language} 6"]
    assert not any(found.find(simplify(text), language) for text in probe[10:])
    assert found.short == {"exam": 0}


def test_what_is_too_short_to_tell_is_said() -> None:
    exam = Exam(
        "capitals",
        {"en": ["The capital of France is Paris"], "ko": ["프랑스의 수도는 파리"], "sw": ["x" * 500]},
    )
    found = Contamination([exam], CONFIG, SCALES)
    assert found.short == {"capitals": 2} and not found.items
    assert found.find("the capital of france is paris " * 3, "en") == []


def test_korean_needs_its_package_only_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert duplicates.morphemes(CONFIG) is False
    with pytest.raises(OnggiError, match=r"pip install 'onggi\[corpus\]'"):
        duplicates.morphemes(Cleaning(korean="morphemes"))


@pytest.mark.parametrize("language", ["en", "ru"])
def test_agrees_with_datatrove_on_which_pairs(
    language: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same shingles, our signature and datatrove's: both find the near pairs and only those."""
    minhash = pytest.importorskip("datatrove.pipeline.dedup.minhash")
    from datatrove.utils.hashing import HashConfig

    words = pytest.importorskip("datatrove.utils.word_tokenizers")

    class Spaces(words.WordTokenizer):  # type: ignore[name-defined, misc]
        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        sent_tokenize = span_tokenize = word_tokenize

    theirs = minhash.MinhashDedupSignature(
        str(tmp_path_factory.mktemp("signatures")),
        minhash.MinhashConfig(hash_config=HashConfig(hash_fc="sha1")),  # its xxhash fails with xxhash 4
        language=Spaces(),
    )
    probe = list(load("probe").passages(language).values())
    long = ["\n".join(probe[i : i + 8]) for i in range(0, 40, 8)]
    random.Random(0).shuffle(long)
    texts = [*long, *(edited(text, language, 0.05) for text in long)]
    scales = scale.scales([language], {})
    for i, one in enumerate(texts):
        for j, other in enumerate(texts[:i]):
            ours = [
                duplicates.signature(
                    duplicates.shingles(text, simplify(text), language, CONFIG, scales[language], False),
                    CONFIG,
                )
                for text in (one, other)
            ]
            found = [theirs.get_signature(theirs.get_shingles(text)) for text in (one, other)]
            same = any(a == b for a, b in zip(*found, strict=True))
            assert bool((ours[0] == ours[1]).any()) == same == (i - j == 5)
