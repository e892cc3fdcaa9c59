"""Per-passage sums against the naive whole computation, and models that cannot be compared."""

from pathlib import Path

import pytest
import torch

from onggi import text
from onggi.engines.transformers import Engine
from onggi.evaluate.measure import Measured, measure
from onggi.head import Head

LANGUAGES = ("en", "ko", "ar")


@pytest.fixture(scope="module")
def passages() -> dict[str, list[str]]:
    found = text.load("probe", LANGUAGES).common(LANGUAGES, 3)
    return {language: list(texts.values()) for language, texts in found.items()}


def nudged(engine: Engine) -> list:
    """The same model with its states a little off, as quantisation leaves them."""
    generator = torch.Generator().manual_seed(0)
    return lambda states: [
        (hidden + 0.05 * torch.randn(hidden.shape, generator=generator), ids) for hidden, ids in states
    ]


@pytest.mark.parametrize("fixture", ["tiny", "tiny_gemma"])
def test_sums_are_those_of_the_whole_model(
    fixture: str, request: pytest.FixtureRequest, passages: dict[str, list[str]]
) -> None:
    engine = Engine(request.getfixturevalue(fixture))
    shift = nudged(engine)
    for language in LANGUAGES:
        states = engine.states(passages[language])
        other = shift(states)
        found = measure({"base": states, "other": other}, {"base": engine.head, "other": engine.head}, "base")
        for i, passage in enumerate(passages[language]):
            ids = [engine.tokens.prefix, *engine.tokens.encode(passage)]
            with torch.no_grad():
                logits = engine.model(torch.tensor([ids])).logits[0, :-1].double()
            log_p, targets = logits.log_softmax(-1), torch.tensor(ids[1:])
            nll = -float(log_p.gather(1, targets.unsqueeze(1)).sum())
            assert found["base"].nll[i] == pytest.approx(nll, rel=1e-5)
            assert found["base"].tokens[i] == len(ids) - 1
            log_q = (other[i][0].double() @ engine.head.weight.double().T).log_softmax(-1)
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)
            assert found["other"].kl is not None and found["other"].agree is not None
            assert found["other"].kl[i] == pytest.approx(float(kl.sum()), rel=1e-3)
            assert found["other"].agree[i] == int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        assert found["base"].kl is None
        assert found["other"].kl_p99 is not None and found["other"].kl_median is not None
        assert found["other"].kl_p99 > found["other"].kl_median > 0


def test_batches_do_not_change_a_passages_states(tiny_gemma: Path, passages: dict[str, list[str]]) -> None:
    engine = Engine(tiny_gemma)
    texts = passages["en"] + passages["ko"] + ["짧다", "x"]
    together = engine.states(texts)
    for one, (hidden, ids) in zip(texts, together, strict=True):
        alone, alone_ids = engine.states([one])[0]
        assert torch.equal(ids, alone_ids)
        torch.testing.assert_close(hidden, alone, rtol=1e-4, atol=1e-4)


def test_another_vocabulary_has_likelihood_but_no_divergence(
    tiny: Path, passages: dict[str, list[str]]
) -> None:
    engine = Engine(tiny)
    states = engine.states(passages["ko"])
    small = Head(engine.head.weight[:1000])
    clipped = [(hidden, ids.clamp_max(999)) for hidden, ids in states]
    found = measure({"base": states, "small": clipped}, {"base": engine.head, "small": small}, "base")
    assert found["small"].kl is None and found["small"].agree is None
    assert all(nats > 0 for nats in found["small"].nll)
    assert Measured(**found["small"].as_dict()) == found["small"]
