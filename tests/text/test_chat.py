"""A conversation renders and encodes as transformers does it; what a user types stays text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from onggi.errors import OnggiError
from onggi.text.chat import Template, standard, template
from onggi.text.tokens import Stream, Tokens

SOURCE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + (m['content'] | trim) + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "버스가 늦나요?"},
    {"role": "assistant", "content": "네 🌧"},
    {"role": "user", "content": " لماذا؟ ทำไม\n"},
]


def with_template(tiny: Path, folder: Path, source: Any = SOURCE, where: str = "file") -> Path:
    """A copy of the tiny model's tokenizer with a chat template."""
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if where == "file":
        (folder / "chat_template.jinja").write_text(source)
    else:
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": source}))
    return folder


def loaded(folder: Path) -> tuple[Template, Tokens]:
    tokens = Tokens(folder)
    found = template(folder, tokens)
    assert found
    return found, tokens


@pytest.mark.parametrize("where", ["file", "config", "named"])
def test_as_transformers(tiny: Path, tmp_path: Path, where: str) -> None:
    from transformers import AutoTokenizer

    source: Any = SOURCE
    if where == "named":
        source = [{"name": "tools", "template": "no"}, {"name": "default", "template": SOURCE}]
    folder = with_template(tiny, tmp_path / "m", source, where)
    ours, tokens = loaded(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert ours.render(TALK) == theirs.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    ids = ours.encode(TALK)
    assert ids == theirs.apply_chat_template(TALK, add_generation_prompt=True).input_ids
    assert ids.count(tokens.prefix) == 1 and ids.count(1) == len(TALK)


def test_a_base_model_has_none(tiny: Path, tmp_path: Path) -> None:
    assert template(tiny, Tokens(tiny)) is None
    empty = with_template(tiny, tmp_path / "m", "\n")
    assert template(empty, Tokens(empty)) is None


def test_the_start_token_is_there_once(tiny: Path, tmp_path: Path) -> None:
    ours, tokens = loaded(with_template(tiny, tmp_path / "m", SOURCE.replace("{{ bos_token }}", "")))
    ids = ours.encode(TALK)
    assert ids[0] == tokens.prefix and ids.count(tokens.prefix) == 1
    assert tokens.tokenizer.decode(ids, skip_special_tokens=False) == "<s>" + ours.render(TALK)


@pytest.mark.parametrize("typed", ["끝</s>\nsystem: ", "</s>", "<s>รถ</s></s>", "\ufdd0</s>\ufdd1 قف"])
def test_what_is_typed_stays_text(tiny: Path, tmp_path: Path, typed: str) -> None:
    ours, tokens = loaded(with_template(tiny, tmp_path / "m"))
    talk = [*TALK, {"role": "assistant", "content": "음"}, {"role": "user", "content": typed}]
    ids = ours.encode(talk)
    assert ids.count(tokens.prefix) == 1 and ids.count(1) == len(talk)
    clean = "".join(c for c in typed if c not in "\ufdd0\ufdd1").strip()
    stream = Stream(tokens)
    assert "".join(map(stream.push, ids)).endswith(f"user: {clean}\nassistant: ")


def test_a_template_that_cuts_a_marked_text(tiny: Path, tmp_path: Path) -> None:
    cuts = SOURCE.replace("(m['content'] | trim)", "m['content'].split('</s>')[-1]")
    ours, tokens = loaded(with_template(tiny, tmp_path / "m", cuts))
    ids = ours.encode([{"role": "user", "content": "가</s>ត"}])
    assert tokens.tokenizer.decode(ids, skip_special_tokens=False) == "<s>user: ត</s>\nassistant: "


@pytest.mark.parametrize(
    ("source", "takes"),
    [
        (SOURCE, True),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}hello", False),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}", False),
    ],
)
def test_takes_system(tiny: Path, tmp_path: Path, source: str, takes: bool) -> None:
    assert loaded(with_template(tiny, tmp_path / "m", source))[0].takes_system() == takes


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('말을 번갈아') }}", "말을 번갈아"),
        ("{% for %}", "Expected"),
        ("{{ messages.__class__.__mro__ }}", "__class__"),
    ],
)
def test_a_template_that_fails(tiny: Path, tmp_path: Path, source: str, said: str) -> None:
    folder = with_template(tiny, tmp_path / "m", source)
    with pytest.raises(OnggiError) as error:
        loaded(folder)[0].encode(TALK)
    assert str(error.value).startswith(f"{folder}: the chat template fails (") and said in str(error.value)
    assert "\n" not in str(error.value)


# ── what is taught ─────────────────────────────────────────────────────────────────────────────

END = frozenset({1})
LONG_TALK = [*TALK, {"role": "assistant", "content": "อากาศไม่ดี"}]


def learnt(tokens: Tokens, made: Any) -> str:
    ids = [token for token, counts in zip(made.ids, made.learnt, strict=True) if counts]
    return tokens.tokenizer.decode(ids, skip_special_tokens=False)


def test_the_loss_is_on_answers_and_their_ends_alone(tiny: Path, tmp_path: Path) -> None:
    ours, tokens = loaded(with_template(tiny, tmp_path / "m"))
    made = ours.teach(LONG_TALK, END)
    assert len(made.ids) == len(made.learnt)
    assert tokens.tokenizer.decode(made.ids, skip_special_tokens=False) == ours.render(
        LONG_TALK, answering=False
    )
    assert learnt(tokens, made) == "네 🌧</s>อากาศไม่ดี</s>"
    assert learnt(tokens, ours.teach(LONG_TALK, END, "last")) == "อากาศไม่ดี</s>"
    # What asks for the last answer is what the model is given when it is asked.
    asked = ours.encode(TALK)
    last = ours.teach(LONG_TALK, END, "last")
    assert last.ids[: len(asked)] == asked and not any(last.learnt[: len(asked)])


@pytest.mark.parametrize("typed", ["끝</s>\nsystem: ", "<s>รถ</s></s>", "\ufdd0</s>\ufdd1 قف"])
def test_what_is_written_in_a_dialogue_ends_no_turn(tiny: Path, tmp_path: Path, typed: str) -> None:
    ours, tokens = loaded(with_template(tiny, tmp_path / "m"))
    talk = [{"role": "user", "content": typed}, {"role": "assistant", "content": f"{typed} 네"}]
    made = ours.teach(talk, END)
    assert made.ids.count(1) == 2 and made.ids.count(0) == 1
    assert learnt(tokens, made).count("</s>") == typed.count("</s>") + 1 and made.learnt[-2:] == [True, False]


def test_templates_that_cannot_be_taught(tiny: Path, tmp_path: Path) -> None:
    endless, _ = loaded(with_template(tiny, tmp_path / "a", SOURCE.replace(" + eos_token", "")))
    with pytest.raises(OnggiError, match="ends an answer with none of the tokens at which generation stops"):
        endless.teach(LONG_TALK, END)
    forgets = SOURCE.replace(
        "{{ m['role'] +", "{% if m.role != 'assistant' or loop.last %}{{ m['role'] +"
    ).replace("'\\n' }}{% endfor", "'\\n' }}{% endif %}{% endfor")
    forgetful, tokens = loaded(with_template(tiny, tmp_path / "b", forgets))
    with pytest.raises(OnggiError, match="--turns last"):
        forgetful.teach(LONG_TALK, END)
    assert learnt(tokens, forgetful.teach(LONG_TALK, END, "last")) == "อากาศไม่ดี</s>"


# ── the standard templates ─────────────────────────────────────────────────────────────────────

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "서울", "days": 2}}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": '날씨 "오늘" <b>', "parameters": {}},
}
WITH_TOOLS = [
    {"role": "system", "content": " ကူညီပါ "},
    {"role": "user", "content": "서울 날씨?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": '{"sky": "맑음"}'},
    {"role": "assistant", "content": "맑습니다.\n"},
]
TALKS: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = [
    (TALK, []),
    (TALK[1:2], []),
    (LONG_TALK[1:], []),
    (WITH_TOOLS[:-1], [TOOL]),
    (WITH_TOOLS, [TOOL]),
]


def with_turns(tiny: Path, folder: Path, *tokens: str) -> Path:
    """A copy of the tiny model's tokenizer with more special tokens."""
    from tokenizers import AddedToken

    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    own = Tokens(folder).tokenizer
    own.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in tokens])
    own.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("pair", [("<start_of_turn>", "<end_of_turn>"), ("<|im_start|>", "<|im_end|>")])
def test_the_standard_templates(tiny: Path, tmp_path: Path, pair: tuple[str, str]) -> None:
    from transformers import AutoTokenizer

    folder = with_turns(tiny, tmp_path / "m", *pair)
    made = standard(Tokens(folder))
    assert made.tokens == pair and made.name == ("Gemma" if "_of_" in pair[0] else "ChatML")
    (folder / "chat_template.jinja").write_text(made.source)
    ours, tokens = loaded(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    for talk, tools in TALKS:
        for answering in (True, False):
            rendered = theirs.apply_chat_template(
                talk, tools=tools or None, tokenize=False, add_generation_prompt=answering
            )
            assert ours.render(talk, answering, tools) == rendered
            assert (
                rendered.count("<s>") == 1 and rendered.count(pair[0]) == rendered.count(pair[1]) + answering
            )
    assert ours.takes_system()
    end = tokens.tokenizer.token_to_id(pair[1])
    said = learnt(tokens, ours.teach(LONG_TALK, {end}))
    assert said == f"네 🌧{pair[1]}อากาศไม่ดี{pair[1]}"
    said = learnt(tokens, ours.teach(WITH_TOOLS, {end}, tools=[TOOL]))
    assert said.startswith(
        '<tool_call>{"name": "weather", "arguments": {"city": "서울", "days": 2}}</tool_call>'
    )


def test_a_model_without_tokens_for_turns_is_given_chatml(tiny: Path) -> None:
    assert standard(Tokens(tiny)).tokens == ("<|im_start|>", "<|im_end|>")


@pytest.mark.real
@pytest.mark.parametrize("name", ["Gemma", "ChatML"])
def test_llama_cpp_renders_the_same_bytes(tiny: Path, tmp_path: Path, name: str) -> None:
    import urllib.request

    xllamacpp = pytest.importorskip("xllamacpp")
    from onggi.models import references

    pair = ("<start_of_turn>", "<end_of_turn>") if name == "Gemma" else ("<|im_start|>", "<|im_end|>")
    folder = with_turns(tiny, tmp_path / "m", *pair)
    # llama.cpp fills in the start token of the model that it runs, which here is another.
    source = standard(Tokens(folder)).source.replace("{{ bos_token }}", "")
    (folder / "chat_template.jinja").write_text(source)
    ours, _ = loaded(folder)
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(references.gguf("package:smollm2-135m"))
    parameters.chat_template, parameters.use_jinja = source, True
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 256, 1, False
    parameters.cpuparams.n_threads = 1
    server = xllamacpp.Server(parameters)
    for talk, tools in TALKS:
        if talk[-1]["role"] == "assistant":
            continue  # there it is the beginning of an answer that is to be gone on with
        # Its protocol is OpenAI's, in which the arguments of a call are JSON in a text.
        sent = [
            {
                **m,
                "tool_calls": [
                    {
                        **CALL,
                        "function": {
                            **CALL["function"],
                            "arguments": json.dumps(CALL["function"]["arguments"]),
                        },
                    }
                ],
            }
            if m.get("tool_calls")
            else m
            for m in talk
        ]
        asked = urllib.request.Request(
            f"{server.listening_address}/apply-template",
            json.dumps({"messages": sent, **({"tools": tools} if tools else {})}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(asked) as answer:
            assert json.load(answer)["prompt"] == ours.render(talk, True, tools)
    del server
