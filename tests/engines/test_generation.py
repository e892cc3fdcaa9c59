"""Answers made together are those made alone, in any script, and end where they should."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from onggi.engines.protocol import Answer, Sampling
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError

PROMPTS = [
    "버스가 늦나요?",
    "هل الحافلة متأخرة اليوم أم لا؟ لا أعرف متى تصل إلى المحطة القديمة.",
    "รถเมล์มาช้าไหม",
    "Is the bus late? It was late yesterday, and the day before, and it will be late again tomorrow.",
    "ឡានក្រុង",
    "e\u0301",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}a: "
)


def lively(folder: Path) -> Engine:
    """A tiny model whose answers wander: with tied embeddings it would repeat one token for ever."""
    engine = Engine(folder)
    order = torch.randperm(engine.head.vocabulary, generator=torch.Generator().manual_seed(0))
    object.__setattr__(engine.head, "weight", engine.head.weight[order])
    return engine


def alone(engine: Engine, prompt: str, count: int) -> str:
    ids = [engine.tokens.prefix, *engine.tokens.encode(prompt)]
    return str(engine.tokens.tokenizer.decode(list(engine.follow(ids, count))))


@pytest.mark.parametrize("kind", ["tiny", "tiny_gemma"])
def test_together_as_alone(kind: str, request: pytest.FixtureRequest) -> None:
    engine = lively(request.getfixturevalue(kind))
    found = dict(engine.generate(PROMPTS, Sampling(max_tokens=30)))  # past the tiny Gemma's window of 16
    assert sorted(found) == list(range(len(PROMPTS)))
    for i, prompt in enumerate(PROMPTS):
        assert found[i].text == alone(engine, prompt, 30)
        assert found[i].finish == ("length" if found[i].tokens == 30 else "stop")
        assert found[i].prompt_tokens == 1 + len(engine.tokens.encode(prompt))


def test_rows_end_one_by_one(tiny: Path) -> None:
    engine = lively(tiny)
    whole = dict(engine.generate(PROMPTS, Sampling(max_tokens=24)))
    # Every token that the first answer says at its sixth place ends an answer from now on.
    ids = [engine.tokens.prefix, *engine.tokens.encode(PROMPTS[0])]
    engine.ends = frozenset({list(engine.follow(ids, 6))[5]})
    ended = dict(engine.generate(PROMPTS, Sampling(max_tokens=24)))
    assert ended[0].finish == "stop" and ended[0].tokens <= 5
    assert any(answer.finish == "length" for answer in ended.values())
    for i, answer in ended.items():
        assert whole[i].text.startswith(answer.text.rstrip("\ufffd"))
        assert answer.text == alone(engine, PROMPTS[i], 24)


def test_stop_texts_end_an_answer_and_are_not_in_it(tiny: Path) -> None:
    engine = lively(tiny)
    whole: dict[int, Answer] = dict(engine.generate(PROMPTS, Sampling(max_tokens=24)))
    stop = whole[3].text[8:11]
    cut = dict(engine.generate(PROMPTS, Sampling(max_tokens=24, stop=(stop,))))
    assert cut[3].text == whole[3].text[: whole[3].text.find(stop)]
    assert cut[3].finish == "stop" and cut[3].tokens < 24
    assert all(stop not in answer.text for answer in cut.values())


def test_draws_do_not_depend_on_the_batch(tiny: Path) -> None:
    engine = lively(tiny)
    sampling = Sampling(max_tokens=12, temperature=1.0, top_p=0.9, seed=7)
    together = dict(engine.generate(PROMPTS, sampling))
    assert dict(engine.generate(PROMPTS[:1], sampling))[0].text == together[0].text
    assert len({answer.text for answer in together.values()}) == len(PROMPTS)
    assert dict(engine.generate(PROMPTS, Sampling(12, 1.0, 0.9, seed=8)))[0].text != together[0].text


def test_messages_go_through_the_template(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "talker")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    messages = [{"role": "system", "content": "짧게"}, {"role": "user", "content": PROMPTS[1]}]
    engine, base = lively(folder), lively(tiny)
    said = dict(engine.generate([messages], Sampling(max_tokens=10)))[0].text
    assert said == alone(engine, f"system: 짧게\nuser: {PROMPTS[1]}\na: ", 10)
    plain = dict(base.generate([messages], Sampling(max_tokens=10)))[0].text
    assert plain == alone(base, f"짧게\n{PROMPTS[1]}", 10)


def test_the_window(tiny: Path) -> None:
    engine = lively(tiny)
    engine.ends = frozenset()
    engine.window = 20
    prompt = PROMPTS[2][:6]
    answer = dict(engine.generate([prompt], Sampling(max_tokens=99)))[0]
    assert answer.finish == "length" and answer.prompt_tokens + answer.tokens == 20
    with pytest.raises(OnggiError, match="leaves no room in the window of 20"):
        list(engine.generate([PROMPTS[3] * 5], Sampling()))
