"""One tag for a language, however it is written; one type for a list of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from onggi import languages, recipe
from onggi.errors import OnggiError
from onggi.languages import Languages, canonical


@pytest.mark.parametrize(
    ("written", "tag"),
    [
        ("zh-cn", "zh-Hans"),
        ("zh", "zh-Hans"),
        ("zh_TW", "zh-Hant"),
        ("cmn_Hans", "zh-Hans"),
        ("en-us", "en"),
        ("EN_US", "en"),
        ("en-GB", "en-GB"),
        ("eng_Latn", "en"),
        ("kor", "ko"),
        ("kor_Hang", "ko"),
        ("ko-Kore-KR", "ko"),
        ("arb_Arab", "ar"),
        ("ja_Jpan", "ja"),
        ("khm_Khmr", "km"),
        ("pt-BR", "pt"),
        ("pt-PT", "pt-PT"),
        ("sr_Cyrl", "sr"),
        ("sr-Latn", "sr-Latn"),
        ("iw", "he"),
        ("no", "no"),
        (" th\n", "th"),
    ],
)
def test_one_tag_for_each(written: str, tag: str) -> None:
    assert canonical(written) == tag
    assert canonical(tag) == tag  # once canonical, always


@pytest.mark.parametrize(
    "value", ["", "xx", "klingonish", "한국어", "en,ko", "und", 1, None, True, ["ko"], {}]
)
def test_what_is_no_language_is_named(value: Any) -> None:
    with pytest.raises(OnggiError) as error:
        canonical(value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    "value",
    [
        "en,zh-cn,kor_Hang",
        "en, zh-Hans ,ko,",
        ["en", "zh", "ko"],
        ("en-US", "zh-Hans", "ko"),
        "en,en_US,zh,ko,kor",
    ],
)
def test_a_list_is_one_type_however_it_is_written(value: Any) -> None:
    made = Languages(value)
    assert made == ("en", "zh-Hans", "ko")
    assert str(made) == "en,zh-Hans,ko"
    assert Languages(str(made)) == made == Languages(made)


@pytest.mark.parametrize("value", ["", " , ", [], 3, None, True, {"en": 1}, [["en"]], ["en", 3], "en;ko"])
def test_what_is_no_list_of_languages(value: Any) -> None:
    with pytest.raises(OnggiError):
        Languages(value)


@pytest.mark.parametrize(
    "written",
    ["no", "[no]", '"no"', "[ko, no]", "'ko,no'", "\n      - ko\n      - no", "[NO]", "[kor_Hang, nor]"],
)
def test_norwegian_in_yaml(tmp_path: Path, written: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"stages:\n  a:\n    verb: text\n    source: probe\n    languages: {written}\n")
    step = recipe.load(file).steps[0]
    assert recipe.config(step, {}).languages[-1] == "no"
    if written == "no":  # what a YAML reader makes of it otherwise
        assert yaml.safe_load(file.read_text())["stages"]["a"]["languages"] is False


def test_scripts_and_names() -> None:
    assert [languages.script(tag) for tag in ("ko", "zh-Hans", "en", "km", "ar", "sr-Latn")] == [
        *("Kore", "Hans", "Latn", "Khmr", "Arab", "Latn")
    ]
    assert [languages.is_latin(tag) for tag in ("en", "sr-Latn", "sr", "ja")] == [True, True, False, False]
    assert languages.name("km") == "Khmer"
    assert languages.name("km", "ko") == "크메르어"
