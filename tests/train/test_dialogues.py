"""Dialogues as batches: packed whole and apart, languages in turn, plain text in its share, the loss on answers alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from onggi.engines.transformers import Engine
from onggi.text.chat import Taught, given, standard
from onggi.text.tokens import Tokens
from onggi.train.dialogues import AnswerLoss, DialogueBatches, packed, plain
from onggi.train.tokens import next_token

TALKS = {
    "ko": [
        ("버스가 언제 와요?", "곧 옵니다."),
        ("김치는요?", "냉장고에 두세요."),
        ("안녕?", "안녕하세요. 무엇을 도와드릴까요?"),
    ],
    "el": [("Πού είναι;", "Εδώ δίπλα."), ("Τι ώρα είναι;", "Είναι τρεις.")],
    "km": [("តើនៅឯណា?", "នៅទីនេះ។"), ("អរុណសួស្តី", "អរុណសួស្តី!")],
}


@pytest.fixture(scope="module")
def taught(tiny: Path) -> dict[str, list[Taught]]:
    tokens = Tokens(tiny)
    # The tiny tokenizer's end of text ends a turn here, so that no row has to be added to the model.
    source = standard(tokens).source.replace("<|im_end|>", "</s>").replace("<|im_start|>", "#")
    template = given(type(standard(tokens))("test", source, ("#", "</s>")), tiny, tokens)
    return {
        language: [
            template.teach([{"role": "user", "content": a}, {"role": "assistant", "content": b}], {1})
            for a, b in own
        ]
        for language, own in TALKS.items()
    }


def texts(tokens: Tokens) -> dict[str, list[Taught]]:
    said = {"ja": "今日は雨です。傘を持って行きましょう。" * 3, "ar": "السماء صافية اليوم والجو لطيف. " * 3}
    return {tag: plain(tokens.encode(text), tokens.prefix, 1, 64) for tag, text in said.items()}


def test_no_document_sees_another(tiny: Path, taught: dict[str, list[Taught]]) -> None:
    """The loss of a packed step is that of its dialogues, each alone."""
    engine = Engine(tiny)
    rows = packed(taught["ko"], 192)
    assert (
        len(rows) == 1
        and (rows[0].positions == 0).sum() == 3
        and not rows[0].learnt[rows[0].positions == 0].any()
    )
    batches = DialogueBatches({"ko": rows}, {}, 1, 0.0, 1, 0)
    batch = batches.rows(0, 0, 1)
    assert float(batch["weights"].sum()) == pytest.approx(1)
    together = float(next_token(torch.float32)(engine.model, batch))
    each = AnswerLoss({"ko": taught["ko"]}).each(engine.model)["ko"]
    assert [count for _, count in each] == [sum(own.learnt) for own in taught["ko"]]
    alone = sum(nats for nats, _ in each) / sum(count for _, count in each)
    assert together == pytest.approx(alone, abs=1e-5)
    naive = []
    for own in taught["ko"]:
        logits = engine.model(torch.tensor([own.ids])).logits[0].log_softmax(-1)
        naive.append(-sum(float(logits[i - 1, own.ids[i]]) for i in range(1, len(own.ids)) if own.learnt[i]))
    assert [nats for nats, _ in each] == pytest.approx(naive, abs=1e-3)


def test_languages_in_turn_and_text_in_its_share(tiny: Path, taught: dict[str, list[Taught]]) -> None:
    tokens = Tokens(tiny)
    rows = {language: packed(own, 64) for language, own in taught.items()}
    replay = {language: packed(own, 64) for language, own in texts(tokens).items()}
    batches = DialogueBatches(rows, replay, 5, 0.2, 1, 3)
    read = [batches.row(n) for n in range(300)]
    assert sum(is_plain for _, is_plain, _ in read) == 60
    for kind, names in ((False, rows), (True, replay)):
        counts = Counter(language for language, is_plain, _ in read if is_plain == kind)
        assert counts.keys() == names.keys() and max(counts.values()) - min(counts.values()) <= 1
    for step in range(4):
        whole = batches.rows(step, 0, 5)
        assert float(whole["weights"].sum()) == pytest.approx(1)
        parts = [batches.rows(step, start, stop) for start, stop in ((0, 2), (2, 5))]
        assert sum(float(part["weights"].sum()) for part in parts) == pytest.approx(1)
        for part, rows_of in zip(parts, (slice(0, 2), slice(2, 5)), strict=True):
            wide = part["ids"].shape[1]
            assert torch.equal(part["ids"], whole["ids"][rows_of, :wide])
            assert not whole["weights"][rows_of, wide:].any()
        one_plain = sum(is_plain for _, is_plain, _ in (batches.row(5 * step + i) for i in range(5)))
        plain_rows = [i for i in range(5) if batches.row(5 * step + i)[1]]
        assert float(whole["weights"][plain_rows].sum()) == pytest.approx(one_plain / 5)
    nothing = batches.rows(0, 2, 2)  # of a process that has no row left for its last pass
    assert nothing["ids"].numel() and not nothing["weights"].any()
    # Raised from the tenth step on, what was read before stays what it was.
    batches.raise_to(0.4, 10)
    assert [batches.row(n)[0] for n in range(50)] == [language for language, _, _ in read[:50]]
    assert sum(batches.row(n)[1] for n in range(50, 100)) == 20
    counts = batches.tokens(0, 10)
    assert (
        counts["ja"]["learnt"] == 0 < counts["ja"]["replayed"]
        and counts["km"]["replayed"] == 0 < counts["km"]["learnt"]
    )


def test_each_sequence_is_read_before_any_is_read_again(taught: dict[str, list[Taught]]) -> None:
    rows = {"ko": [packed([own], 64)[0] for own in taught["ko"]]}
    batches = DialogueBatches(rows, {}, 3, 0.0, 1, 0)
    for turn in range(4):
        seen = [batches.row(3 * turn + i)[2].ids.tobytes() for i in range(3)]
        assert len(set(seen)) == 3
    first = DialogueBatches(rows, {}, 3, 0.0, 1, 0)
    other = DialogueBatches(rows, {}, 3, 0.0, 1, 1)
    order = [[made.row(n)[2].ids.tobytes() for n in range(12)] for made in (batches, first, other)]
    assert order[0] == order[1] != order[2]


def test_plain_text_is_cut_into_parts_and_ended() -> None:
    parts = plain(range(10, 20), 0, 1, 5)
    assert [part.ids for part in parts] == [[0, 10, 11, 12, 13], [0, 14, 15, 16, 17], [0, 18, 19, 1]]
    assert all(all(part.learnt) for part in parts) and np.array_equal(
        packed(parts, 14)[0].learnt[[0, 5, 10]], [0, 0, 0]
    )
