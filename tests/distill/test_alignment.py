"""One text cut by two tokenizers: which places they share, and the loss on what lies between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import save_fallback_tokenizer, save_model, save_tokenizer
from onggi.distill.alignment import SPANS, THEIR_SPANS, THEIRS, Aligned, Spans, cut, shared, spans
from onggi.engines.transformers import Engine
from onggi.text.tokens import Tokens
from onggi.train.tokens import batches

TEXTS = {
    "ko": "옹기는 숨을 쉬는 그릇입니다.",
    "en": "The jar breathes, so the sauce keeps.",
    "th": "ไหดินเผาระบายอากาศได้ดี",
    "ar": "الجرة تتنفس 😀 é",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    """A vocabulary of a third of the size, so that it cuts finer, often within letters."""
    folder = tmp_path_factory.mktemp("small")
    save_tokenizer(folder, 330)
    return Tokens(folder)


def test_spans_spell_the_same_text(tiny: Path, small: Tokens) -> None:
    large = Tokens(tiny)
    for text in TEXTS.values():
        (ids, ends), (theirs, their_ends) = cut(large, text), cut(small, text)
        assert len(theirs) > len(ids)
        numbers, their_numbers = spans(ends, their_ends)
        assert sorted(set(numbers)) == sorted(set(their_numbers)) == list(range(max(numbers) + 1))
        assert numbers == sorted(numbers) and their_numbers == sorted(their_numbers)
        for number in set(numbers):
            one, other = (
                tokens.tokenizer.decode([i for i, own in zip(row, place, strict=True) if own == number])
                for tokens, row, place in ((large, ids, numbers), (small, theirs, their_numbers))
            )
            assert one == other and "\ufffd" not in one


def test_one_tokenizer_shares_all_but_what_ends_within_a_letter(tiny: Path, small: Tokens) -> None:
    ids, ends = cut(small, TEXTS["en"])
    numbers, theirs = spans(ends, ends)
    assert numbers == theirs == list(range(len(ids)))
    share = shared(small, small, {"en": [TEXTS["en"]], "th": [TEXTS["th"]]})
    assert share["en"] == 1 > share["th"]  # Thai's letters are several tokens each
    found = shared(Tokens(tiny), small, {tag: [text] for tag, text in TEXTS.items()})
    assert all(0.3 < value <= 1 for value in found.values())


def test_a_tokenizer_of_another_kind(tmp_path: Path, small: Tokens) -> None:
    """As SentencePiece's: spaces belong to the words after them, letters it does not know go as bytes."""
    other = Tokens(save_fallback_tokenizer(tmp_path))
    text = "the bell 버가 ห"
    (ids, ends), (theirs, their_ends) = cut(small, text), cut(other, text)
    numbers, their_numbers = spans(ends, their_ends)
    assert max(numbers) == max(their_numbers) > 3
    assert len(numbers) == len(ids) and len(their_numbers) == len(theirs)


def made(student: Engine, teacher: Engine) -> Aligned:
    runs = {
        tag: [[student.tokens.prefix, *student.tokens.encode(text * 2)][:24] for _ in range(2)]
        for tag, text in TEXTS.items()
    }
    return Aligned(batches(runs, student.tokens.prefix, 2, 4, 0), student.tokens, teacher.tokens)


@pytest.mark.parametrize(("temperature", "text"), [(1.0, 0.0), (20.0, 0.3)])
def test_the_loss_is_that_of_its_definition(
    temperature: float, text: float, tiny: Path, tmp_path: Path
) -> None:
    student, teacher = Engine(tiny), Engine(save_model(tmp_path, "Llama", 330, num_hidden_layers=1))
    batch = made(student, teacher).rows(0, 0, 4)
    languages = list(TEXTS)
    weigh = {tag: 1.0 + number / 4 for number, tag in enumerate(languages)}
    student.model.requires_grad_(True)
    lesson = Spans(teacher, languages, lambda: weigh, text=text, temperature=temperature)
    found = lesson(student.model, batch)
    parameters = [student.model.lm_head.weight, student.model.model.layers[0].mlp.up_proj.weight]
    mine = torch.autograd.grad(found, parameters)

    def likelihoods(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        return logits.log_softmax(-1).gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)

    own = likelihoods(student.model, batch["ids"])
    with torch.no_grad():
        theirs = likelihoods(teacher.model, batch[THEIRS])
    whole = torch.zeros(())
    for row in range(4):
        weights = batch["weights"][row, 1:] * weigh[languages[int(batch["languages"][row, 0])]]
        whole = whole - text * (weights * own[row]).sum()
        for number in range(int(batch[SPANS][row].max()) + 1):
            inside, outside = batch[SPANS][row, 1:] == number, batch[THEIR_SPANS][row, 1:] == number
            q, p = (
                (own[row][inside].sum() / temperature).exp(),
                (theirs[row][outside].sum() / temperature).exp(),
            )
            far = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
            whole = whole + (1 - text) * temperature * weights[inside].sum() * far
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-6)
    for one, other in zip(mine, torch.autograd.grad(whole, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=1e-6)


def test_batches_keep_their_weights_and_start_tokens(tiny: Path, tmp_path: Path) -> None:
    student, teacher = Engine(tiny), Engine(save_model(tmp_path, "Llama", 330, num_hidden_layers=1))
    aligned = made(student, teacher)
    whole = aligned.rows(1, 0, 4)
    assert bool((whole["ids"][:, 0] == student.tokens.prefix).all()) and not whole["weights"][:, 0].any()
    assert float(whole["weights"].sum()) == pytest.approx(1, abs=0.15)
    assert bool(((whole["weights"] > 0) == (whole[SPANS] >= 0)).all())
    part = aligned.rows(1, 2, 3)
    size = int((part[SPANS] >= 0).sum())
    assert torch.equal(part["ids"][0, : size + 1], whole["ids"][2, : size + 1])
