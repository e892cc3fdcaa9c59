"""Exact scores of a GGUF: against the dequantised model by transformers, and against themselves."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from onggi.engines.llamascores import Scorer
from onggi.errors import OnggiError
from onggi.models import references
from onggi.text.tokens import Tokens

PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a city of many bridges"),
    ("The capital of France is ", "Paris"),
    ("대한민국의 수도는", " 서울"),
    ("대한민국의 수도는", " 부산과 대구"),
    ("عاصمة مصر هي", " القاهرة"),
    ("", "옹기 and οστρακο"),
    ("국 " * 400, "끝"),
]


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(OnggiError, match=r"옹기\.gguf: exact scores .* need llama-cpp-python; pip install"):
        Scorer(Path("옹기.gguf"), Tokens(tiny))


@pytest.mark.real
def test_scores_of_smollm2() -> None:
    pytest.importorskip("llama_cpp")
    import torch
    from transformers import AutoModelForCausalLM

    path = references.gguf("package:smollm2-135m")
    assert path is not None
    folder = references.resolve("package:smollm2-135m")
    tokens = Tokens(folder)
    with Scorer(path, tokens, context=640) as scorer:
        found = dict(scorer.score(PAIRS))
        # What is shared makes no difference beyond the last bits.
        for index, pair in enumerate(PAIRS[:6]):
            scorer._held = []
            ((_, alone),) = scorer.score([pair])
            assert alone.logprob == pytest.approx(found[index].logprob, abs=0.02)
            assert (alone.tokens, alone.greedy) == (found[index].tokens, found[index].greedy)
        with pytest.raises(OnggiError, match="exceeds the context of 640"):
            list(scorer.score([("짧은 글", "긴 글 " * 900)]))
    assert sorted(found) == list(range(len(PAIRS)))
    assert found[0].greedy and not found[1].greedy and found[0].logprob > found[1].logprob
    assert found[2] == found[0]  # the space belongs to the continuation
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for index, (context, continuation) in enumerate(PAIRS):
        whole = [tokens.prefix, *tokens.encode(context + continuation)]
        count = len(whole) - 1 - len(tokens.encode(context.rstrip()))
        whole = [tokens.prefix, *whole[1:][-640:]]
        with torch.no_grad():
            rows = model(torch.tensor([whole])).logits[0, -count - 1 : -1].double().log_softmax(-1)
        exact = [rows[i, token].item() for i, token in enumerate(whole[-count:])]
        assert found[index].tokens == count
        # llama.cpp computes with activations of 8 bits: close, token by token, and not equal.
        assert abs(found[index].logprob - np.sum(exact)) / count < 0.15, (context, continuation)


@pytest.mark.real
def test_logits_of_smollm2_are_the_models_own() -> None:
    pytest.importorskip("llama_cpp")
    import torch

    from onggi.engines.transformers import Engine

    path = references.gguf("package:smollm2-135m")
    assert path is not None
    engine = Engine(references.resolve("package:smollm2-135m"))
    for text in (
        "The capital of France is Paris, and of Spain Madrid.",
        "대한민국의 수도는 서울이다.",
        "عاصمة مصر هي القاهرة",
    ):
        ids = [engine.tokens.prefix, *engine.tokens.encode(text)]
        (states, _), wanted = engine.states([text])[0], [0, 3, len(ids) - 2]
        log_p = engine.head.logits(states[wanted]).log_softmax(-1)
        with Scorer(path, engine.tokens, context=640) as scorer:
            found = dict(scorer.logits(ids, wanted))
            assert list(found) == wanted
            with pytest.raises(OnggiError, match="641 tokens exceed the context of 640"):
                list(scorer.logits([ids[0]] * 700, [640]))
        log_q = torch.stack([torch.from_numpy(found[at]) for at in wanted]).log_softmax(-1)
        assert float((log_p.exp() * (log_p - log_q)).sum(-1).mean()) < 0.05  # of activations in 8 bits
