"""Types by llama-quantize's rules, against files that it made."""

from collections import Counter
from typing import get_args

import gguf
import pytest

from onggi.grids import BLOCKS
from onggi.quantize import mixtures
from onggi.stages import quantize_gguf
from onggi.stages.quantize import Format, Like

LINEARS = {
    "attn_q": (1024, 640),
    "attn_k": (256, 640),
    "attn_v": (256, 640),
    "attn_output": (640, 1024),
    "ffn_gate": (2048, 640),
    "ffn_up": (2048, 640),
    "ffn_down": (640, 2048),
}


def gemma(layers: int = 18) -> dict[str, tuple[int, ...]]:
    """Shapes of Gemma 3 270M."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (262144, 640), "output_norm.weight": (640,)}
    for index in range(layers):
        found |= {f"blk.{index}.{kind}.weight": shape for kind, shape in LINEARS.items()}
        found |= {f"blk.{index}.{kind}_norm.weight": (640,) for kind in ("attn", "attn_q", "post_ffw", "ffn")}
    return found


def llama(layers: int = 16, width: int = 2048) -> dict[str, tuple[int, ...]]:
    """Shapes of a Llama with an output head of its own, all of whole blocks."""
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (32000, width),
        "output.weight": (32000, width),
        "output_norm.weight": (width,),
    }
    for index in range(layers):
        found |= {f"blk.{index}.{kind}.weight": (width, width) for kind in LINEARS}
    return found


def fitted(mixture: str, shapes: dict[str, tuple[int, ...]], gqa: int = 4) -> dict[str, str]:
    asked = mixtures.wanted(mixture, shapes, gqa, calibrated=True)
    return {name: mixtures.fitting(kind, shapes[name][-1]) for name, kind in asked.items()}


def counts(found: dict[str, str], kind: str) -> dict[str, int]:
    return dict(Counter(its for name, its in found.items() if f".{kind}." in name))


def test_gemmas_q4_k_m_is_as_the_packaged_file_of_that_name() -> None:
    """The types that onggi.json notes of `package:gemma3-270m`, which llama-quantize made."""
    found = fitted("Q4_K_M", gemma())
    assert found["token_embd.weight"] == "Q8_0"
    assert counts(found, "attn_v") == {"Q8_0": 9, "Q5_0": 9}
    assert counts(found, "ffn_down") == {"Q6_K": 9, "Q4_K": 9}
    assert counts(found, "attn_output") == {"Q4_K": 18}
    for kind in ("attn_q", "attn_k", "ffn_gate", "ffn_up"):
        assert counts(found, kind) == {"Q5_0": 18}
    assert {its for name, its in found.items() if "norm" in name} == {"F32"}


def test_mixtures_of_whole_blocks() -> None:
    found = fitted("Q4_K_M", llama())
    assert (found["token_embd.weight"], found["output.weight"]) == ("Q4_K", "Q6_K")
    assert [found[f"blk.{i}.ffn_down.weight"] for i in range(7)] == ["Q6_K", "Q6_K"] + ["Q4_K"] * 2 + [
        "Q6_K",
        "Q4_K",
        "Q4_K",
    ]
    assert counts(fitted("Q3_K_M", llama()), "attn_v") == {"Q5_K": 2, "Q4_K": 14}
    assert counts(fitted("Q3_K_M", llama()), "ffn_down") == {"Q5_K": 1, "Q4_K": 15}
    assert counts(fitted("Q2_K", llama()), "attn_v") == {"Q4_K": 16}
    assert counts(fitted("Q2_K", llama(), gqa=1), "attn_v") == {"Q3_K": 16}
    assert counts(fitted("Q4_0", llama()), "ffn_down") == {"Q4_1": 2, "Q4_0": 14}
    assert counts(fitted("IQ4_XS", llama()), "attn_v") == {"Q5_K": 16}
    assert set(fitted("Q8_0", llama()).values()) == {"Q8_0", "F32"}
    assert set(fitted("BF16", llama()).values()) == {"BF16", "F32"}


def test_rows_that_do_not_fit_take_no_more_bytes_than_theirs() -> None:
    theirs = {
        "Q2_K": "Q4_0",
        "Q3_K": "Q4_0",
        "Q4_K": "Q5_0",
        "Q5_K": "Q5_1",
        "Q6_K": "Q8_0",
        "IQ4_XS": "IQ4_NL",
    }
    for wanted, took in theirs.items():
        ours = mixtures.fitting(wanted, 640)
        assert BLOCKS[ours].bytes == BLOCKS[took].bytes and BLOCKS[ours].block == 32
    assert mixtures.fitting("Q4_K", 100) == "F16"
    assert mixtures.scheme("Q4_K").for_columns(640).name == "Q5_0"
    assert mixtures.scheme("Q4_K").for_columns(512).name == "Q4_K"


def test_every_name_is_offered_and_has_a_number() -> None:
    offered = [one for one in get_args(Format) if one.startswith("gguf:")]
    assert sorted(offered) == sorted(f"gguf:{name}" for name in mixtures.MIXTURES)
    assert set(get_args(Like)) <= set(mixtures.MIXTURES)
    for name in mixtures.MIXTURES:
        assert name == "F32" or hasattr(gguf.LlamaFileType, f"MOSTLY_{name}")
        grid = BLOCKS.get(mixtures.MIXTURES[name])
        assert quantize_gguf.bits(name) == pytest.approx(
            grid.bits_per_weight if grid else 8 * mixtures.PLAIN[name]
        )
    assert tuple(mixtures.PLAIN) == quantize_gguf.PLAIN
