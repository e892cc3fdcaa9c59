"""Other shapes of a model: parts that do nothing are found, and a model without them is the same model."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from conftest import save_tokenizer
from onggi.errors import OnggiError
from onggi.models import checkpoint
from onggi.models.reshape import importance, select, shape
from onggi.models.reshape.shape import Choice
from onggi.text.tokens import Tokens

TEXTS = {
    "ko": "장독대에 볕이 들면 뚜껑을 연다. 해가 지기 전에 닫는다.",
    "el": "Το πιθάρι στέκεται στον ήλιο όλη μέρα και το βράδυ κλείνει.",
    "th": "โอ่งตั้งอยู่กลางแดดทั้งวันแล้วปิดฝาตอนเย็น",
    "he": "הכד עומד בשמש כל היום ובערב סוגרים אותו.",
}
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": False},
    "Mistral": {"tie_word_embeddings": True, "sliding_window": None},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"tie_word_embeddings": False, "head_dim": 32},
    "SmolLM3": {"tie_word_embeddings": True, "no_rope_layers": [1, 0, 1, 1], "pad_token_id": None},
    "Gemma3Text": {
        "tie_word_embeddings": True,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    },
}


@functools.cache
def _tokenizer() -> Path:
    folder = Path(tempfile.mkdtemp())
    assert save_tokenizer(folder) == 1024
    return folder


def save(folder: Path, kind: str, change: Any = None) -> Path:
    """A model in fp32 with 4 layers of 4 heads (2 key-value heads), 128 wide, the MLP 160."""
    shutil.copytree(_tokenizer(), folder)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.1,
        **KINDS[kind],
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for module in model.modules():  # norms and biases that are not all alike
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                    assert name in ("weight", "bias")
        if change:
            change(model)
    model.save_pretrained(folder)
    return folder


def make(folder: Path, choice: Choice, out: Path) -> Any:
    """The model of `choice` of the one in `folder`, through its files."""
    config, source = shape.load(folder), checkpoint.Checkpoint(folder)
    new = shape.configured(config, choice)
    checkpoint.write_shard(out / checkpoint.SINGLE, shape.tensors(source, config, choice))
    new.architectures = source.config["architectures"]
    new.save_pretrained(out)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert sum(p.numel() for p in model.parameters()) == shape.parameters(new)
    return model.eval()


def ids(folder: Path) -> dict[str, list[list[int]]]:
    tokens = Tokens(folder)
    return {tag: [[tokens.prefix, *tokens.encode(text)]] for tag, text in TEXTS.items()}


def measured(folder: Path) -> dict[str, importance.Importance]:
    return importance.measure(folder, ids(folder), torch.device("cpu"), lambda count, language: None)


@torch.no_grad()
def logits(model: Any, folder: Path) -> torch.Tensor:
    return torch.cat([model(torch.tensor(runs), use_cache=False).logits[0] for runs in ids(folder).values()])


DEAD_COLUMNS, DEAD_CHANNELS = list(range(3, 160, 5)), list(range(1, 128, 4))


def deaden(model: Any) -> None:
    """In every layer the first group of heads and a fifth of the MLP add nothing; a quarter of the channels
    are never written to.
    """
    model.get_input_embeddings().weight[:, DEAD_CHANNELS] = 0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:, :64] = 0
        layer.mlp.down_proj.weight[:, DEAD_COLUMNS] = 0
        for writes in (layer.self_attn.o_proj, layer.mlp.down_proj):
            writes.weight[DEAD_CHANNELS] = 0


@pytest.mark.parametrize("kind", KINDS)
def test_dead_parts_are_found_and_not_missed(kind: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", kind, deaden)
    found, have = measured(folder), shape.of(shape.load(folder))
    heads, groups = select.heads(found, have, 2, 1)
    columns = select.columns(found, have, 128)
    width = select.width(found, 128, 96)
    assert heads == [[2, 3]] * 4 and groups == [[1]] * 4
    assert columns == [[c for c in range(160) if c not in DEAD_COLUMNS]] * 4
    assert width == [c for c in range(128) if c not in DEAD_CHANNELS]
    gains = shape.gains(shape.load(folder), width, select.squares(found))
    choice = Choice(heads=heads, groups=groups, columns=columns, width=width, gains=gains)
    before = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    after = make(folder, choice, tmp_path / "cut")
    assert after.num_parameters() < 0.7 * before.num_parameters()
    torch.testing.assert_close(logits(after, folder), logits(before, folder), rtol=2e-3, atol=2e-3)
    # And not because nothing matters: without the gains it is another model.
    other = make(folder, Choice(width=width), tmp_path / "no gains")
    assert float((logits(other, folder) - logits(before, folder)).abs().max()) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_does_nothing_goes_first(kind: str, tmp_path: Path) -> None:
    def idle(model: Any) -> None:
        layer = model.model.layers[2]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()

    folder = save(tmp_path / "model", kind, idle)
    kept = select.layers(measured(folder), 4, 3)
    assert kept == [0, 1, 3]
    before = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    after = make(folder, Choice(layers=kept), tmp_path / "cut")
    torch.testing.assert_close(logits(after, folder), logits(before, folder), rtol=1e-4, atol=1e-4)
    for key in ("layer_types", "no_rope_layers"):
        old = getattr(before.config, key, None)
        if old is not None:
            assert getattr(after.config, key) == [old[0], old[1], old[3]]


@pytest.mark.parametrize("kind", ["Llama", "SmolLM3", "Gemma3Text"])
def test_a_deeper_model_runs_its_layers_twice(kind: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", kind)
    order = shape.deeper(4, 6)
    assert order == [0, 1, 2, 1, 2, 3]
    after = make(folder, Choice(layers=order), tmp_path / "deep")
    by_hand = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    layers = by_hand.model.layers
    by_hand.model.layers = torch.nn.ModuleList(layers[index] for index in order)
    by_hand.config = by_hand.model.config = after.config
    torch.testing.assert_close(logits(after, folder), logits(by_hand, folder))


def test_exact_parameters_of_the_course_s_models() -> None:
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=12,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    ends = select.layers(None, 12, 10)
    assert ends == [*range(12)][:5] + [*range(12)][-5:]
    assert shape.parameters(shape.configured(config, Choice(layers=ends))) == 217_601_024
    deeper = shape.deeper(12, 16)
    assert deeper == [*range(12)][:-4] + [*range(12)][4:]
    assert shape.parameters(shape.configured(config, Choice(layers=deeper))) == 308_839_424


def test_a_part_that_one_language_leans_on_stays() -> None:
    # The fourth part is Khmer's alone; the loudness of a language and its number of tokens say nothing.
    khmer = torch.tensor([1.0, 1.0, 1.0, 7.0])
    english = 1000 * torch.tensor([4.0, 3.0, 2.0, 1.0])
    korean = torch.tensor([4.0, 2.0, 3.0, 1.0])
    score = select.together([english, korean, khmer])
    torch.testing.assert_close(score, select.together([english / 1e6, khmer, korean * 9]))
    assert sorted(score.tolist(), reverse=True)[0] == score[3] == pytest.approx(0.7)
    assert select.together([english, korean])[3] == pytest.approx(0.1)


HAVE = shape.Shape(12, 9, 3, 64, 1536, 576, 49152)


@pytest.mark.parametrize(
    ("wanted", "heads"),
    [
        ({}, (9, 3)),
        ({"heads": 6}, (6, 2)),
        ({"heads": 3}, (3, 1)),
        ({"kv_heads": 2}, (6, 2)),
        ({"heads": 6, "kv_heads": 3}, (6, 3)),
        ({"heads": 2, "kv_heads": 1}, (2, 1)),
    ],
)
def test_heads_and_their_groups(wanted: dict[str, int], heads: tuple[int, int]) -> None:
    assert select.checked(select.Wanted(**wanted), HAVE) == heads
    queries, groups = select.heads(None, HAVE, *heads)
    assert [len(queries[0]), len(groups[0])] == [*heads]
    # Each query head stands where its key-value head looks for it.
    assert [head // 3 for head in queries[0]] == [g for g in groups[0] for _ in range(heads[0] // heads[1])]


def test_one_key_value_head_for_all() -> None:
    gemma = shape.Shape(18, 4, 1, 256, 2048, 640, 262144)
    assert select.checked(select.Wanted(heads=3), gemma) == (3, 1)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"layers": 13}, "layers: 13 cannot be kept of 12; name a number from 1 to 12."),
        ({"layers": 0}, "layers: 0 cannot be kept"),
        ({"heads": 10}, "heads: 10 cannot be kept of 9"),
        ({"mlp": -4}, "mlp: -4 cannot be kept of 1536"),
        ({"width": 577}, "width: 577 cannot be kept of 576"),
        (
            {"heads": 7},
            "heads: 7 do not divide over 3 key-value heads of at most 3 each; of 9 heads, 3, 6 can",
        ),
        ({"heads": 6, "kv_heads": 1}, "heads: 6 do not divide over 1 key-value heads of at most 3"),
    ],
)
def test_shapes_that_cannot_be(wanted: dict[str, int], said: str) -> None:
    with pytest.raises(OnggiError) as error:
        select.checked(select.Wanted(**wanted), HAVE)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("to", [12, 11, 25])
def test_depths_that_two_copies_do_not_have(to: int) -> None:
    with pytest.raises(
        OnggiError, match=f"deepen: {to} layers cannot be made of two copies of 12; from 13 to 24"
    ):
        shape.deeper(12, to)
    assert len(shape.deeper(12, 24)) == 24 and len(shape.deeper(12, 13)) == 13


def test_models_that_are_refused(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "모델"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())

    def load(**changes: Any) -> Any:
        (folder / "config.json").write_text(json.dumps(config | changes))
        return shape.load(folder)

    with pytest.raises(OnggiError, match="is quantised; reshape the model it was made from"):
        load(quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(OnggiError, match=r"does not know the architecture 'gpt2'.*gemma3_text, llama"):
        load(model_type="gpt2")
    with pytest.raises(OnggiError, match=r"hidden size .130. is not a multiple"):
        shape.configured(load(), Choice(width=list(range(130))))
    wrong = load(intermediate_size=255)
    with pytest.raises(
        OnggiError, match=r"mlp.gate_proj.weight has shape \(256, 128\), its config.json asks"
    ):
        shape.tensors(checkpoint.Checkpoint(folder), wrong, Choice())
    load()
    source = checkpoint.Checkpoint(folder)
    source.entries["model.layers.0.self_attn.절.weight"] = source.entries["model.norm.weight"]
    with pytest.raises(OnggiError, match=r"knows no tensor named model.layers.0.self_attn.절.weight"):
        shape.tensors(source, shape.load(folder), Choice())
