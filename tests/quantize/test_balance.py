"""Calibration is drawn so that each language has its share, whatever a tokenizer charges it."""

import pytest
import torch

from onggi.errors import OnggiError
from onggi.quantize.balance import Calibration, draw

BOS = 999_999
# Korean costs this tokenizer one token a character, Khmer three a character: like real ones, uneven.
PASSAGES = {
    "en": {str(i): f"The lamp in room {i} is still on." for i in range(200)},
    "ko": {str(i): f"{i}호실 등이 아직 켜져 있다." for i in range(200)},
    "km": {str(i): f"ចង្កៀងក្នុងបន្ទប់ {i} នៅភ្លឺ។" for i in range(200)},
}


def encode(text: str) -> list[int]:
    return list(text.encode()) if any("\u1780" <= c <= "\u17ff" for c in text) else [ord(c) for c in text]


def drawn(tokens: int = 1500, *, balanced: bool = True, share: str = "tokens", seed: int = 0) -> Calibration:
    return draw(PASSAGES, encode, BOS, tokens, balanced=balanced, share=share, seed=seed, length=128)


def test_equal_tokens_and_equal_weight_for_each_language() -> None:
    found = drawn()
    assert found.counts == {"en": 500, "ko": 500, "km": 500}
    assert found.names == ("en", "ko", "km") and found.owner.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # 500 tokens are three whole sequences and a part, start tokens included.
    assert found.ids.shape == (12, 128)
    assert bool((found.ids[:, 0] == BOS).all()) and len(found.weights[:, 0].unique()) == 1
    content = found.weights[:, 1:]
    each = content.reshape(3, -1).sum(1)
    torch.testing.assert_close(each, each.mean().expand(3))
    assert float(content[content > 0].mean()) == pytest.approx(1)
    assert int((found.weights > 0).sum()) == 1500


def test_a_portion_of_equal_shares_is_what_is_drawn_without_spare() -> None:
    pool = draw(PASSAGES, encode, BOS, 1500, balanced=True, length=128, spare=3)
    assert set(pool.counts.values()) == {1500}
    plain, found = drawn(), pool.portion(dict.fromkeys(PASSAGES, 2.0), 1500)
    assert torch.equal(found.ids, plain.ids) and torch.equal(found.owner, plain.owner)
    torch.testing.assert_close(found.weights, plain.weights)
    assert found.counts == plain.counts and not found.short


def test_a_portion_has_tokens_and_weights_by_the_shares() -> None:
    pool = draw(PASSAGES, encode, BOS, 1500, balanced=True, length=128, spare=2)
    found = pool.portion({"en": 0.2, "ko": 0.2, "km": 1.6}, 1500)
    # 1,200 of Khmer are asked for and 1,000 are there: they weigh what 1,200 would.
    assert found.counts == {"en": 150, "ko": 150, "km": 1000} and found.short == {"km": 200}
    content = found.weights.clone()
    content[:, 0] = 0
    each = torch.stack([content[found.owner == number].sum() for number in range(3)])
    torch.testing.assert_close(each / each.sum(), torch.tensor([0.1, 0.1, 0.8]))
    assert bool((found.ids[:, 0] == BOS).all()) and found.ids[found.weights == 0].eq(BOS).all()
    assert int((found.weights > 0).sum()) == 1300


def test_a_language_whose_text_runs_short_keeps_its_weight(capsys: pytest.CaptureFixture[str]) -> None:
    few = PASSAGES | {"km": dict(list(PASSAGES["km"].items())[:3])}
    found = draw(few, encode, BOS, 1500, balanced=True, length=128)
    assert found.counts["km"] < 300 and found.short == {"km": 500 - found.counts["km"]}
    content = found.weights[:, 1:]
    is_khmer = torch.zeros(len(found.ids), dtype=torch.bool)
    is_khmer[-_rows(found.counts["km"]) :] = True
    assert float(content[is_khmer].sum()) == pytest.approx(float(content.sum()) / 3, rel=1e-4)
    assert "runs short in km" in capsys.readouterr().err


def test_pooled_text_goes_by_what_a_language_is_charged() -> None:
    found = drawn(balanced=False)
    assert sum(found.counts.values()) == pytest.approx(1500, abs=12)
    assert found.counts["km"] > 1.8 * found.counts["ko"]
    kept = found.weights[:, 1:][found.weights[:, 1:] > 0]
    torch.testing.assert_close(kept, torch.ones_like(kept))


def test_equal_content_takes_the_same_passages() -> None:
    found = drawn(share="content")
    assert found.counts["km"] > 1.8 * found.counts["ko"]
    assert sum(found.counts.values()) <= 1500
    each = [
        float(part.sum()) for part in found.weights[:, 1:].split([_rows(found.counts[t]) for t in PASSAGES])
    ]
    assert each == pytest.approx([each[0]] * 3, rel=1e-4)


def _rows(count: int) -> int:
    return -(-count // 128)


def test_the_same_seed_draws_the_same_and_adding_a_language_does_not_redraw_others() -> None:
    first, again, other = drawn(), drawn(), drawn(seed=1)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.ids, other.ids)
    two = draw({k: PASSAGES[k] for k in ("en", "ko")}, encode, BOS, 1000, balanced=True, length=128)
    assert torch.equal(two.ids, first.ids[: len(two.ids)])


def test_the_order_is_shuffled_not_the_top_of_the_file() -> None:
    text = "".join(chr(i) for i in drawn().ids[0, 1:].tolist())
    assert not text.startswith("The lamp in room 0 ")


@pytest.mark.parametrize(
    ("passages", "tokens", "message"),
    [
        ({"en": {"1": "a"}, "ko": {}}, 100, "no text in ko"),
        (PASSAGES, 5, "too few for 3 languages"),
    ],
)
def test_what_cannot_be_drawn_is_said(passages: dict, tokens: int, message: str) -> None:
    with pytest.raises(OnggiError, match=message):
        draw(passages, encode, BOS, tokens, balanced=True)


def test_equal_content_needs_parallel_text() -> None:
    apart = {"en": {"1": "one"}, "ko": {"2": "둘"}, "km": {"3": "បី"}}
    with pytest.raises(OnggiError, match="every language"):
        draw(apart, encode, BOS, 100, balanced=True, share="content")
