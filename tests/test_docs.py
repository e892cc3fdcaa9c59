"""The pages of docs/ say what the code says, there is one for every verb, and their links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import onggi.stages
from onggi import cli
from onggi.recipe import load

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(generate: ModuleType) -> None:
    wrong = generate.main(check=True)
    assert not wrong, "\n".join(wrong)


def test_what_is_wrong_is_named(generate: ModuleType, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(DOCS, docs)
    (docs / "text.md").unlink()
    (docs / "run.md").write_text("# 실행 · تشغيل · run\n", encoding="utf-8")
    page = docs / "quantize.md"
    written = page.read_text(encoding="utf-8")
    page.write_text(written.replace("`0.1`", "`0.2`"), encoding="utf-8")
    missing, stale, markless = generate.main(check=True, docs=docs)
    assert missing.startswith("docs/text.md is missing: every verb has a page.")
    assert stale == "docs/quantize.md is not what the code says; run `make docs`."
    assert markless.startswith("docs/run.md needs the lines <!-- options -->")
    generate.main(check=False, docs=docs)
    assert page.read_text(encoding="utf-8") == written


SING = '''
from dataclasses import dataclass
from typing import Literal
from onggi.languages import Languages

@dataclass(frozen=True)
class SingConfig:
    """Sings."""
    song: str
    """아리랑, ἀοιδή or another."""
    languages: Languages | None = None
    """As ko,el,km."""
    voice: Literal["high", "low"] = "high"
    """Which | of both."""
'''


def test_a_verb_that_makes_no_artifact(
    generate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sing.py").write_text(SING, encoding="utf-8")
    monkeypatch.setattr(onggi.stages, "__path__", [*onggi.stages.__path__, str(tmp_path)])
    monkeypatch.setitem(cli._OTHER, "sing", "sings")
    try:
        wrong = generate.main(check=True)
        assert len(wrong) == 2 and "README.md" in wrong[0] and "docs/sing.md is missing" in wrong[1]
        assert generate.table("sing").splitlines()[2:] == [
            "| `song` | text | required | 아리랑, ἀοιδή or another. |",
            "| `--languages` | languages | none | As ko,el,km. |",
            "| `--voice` | `high`, `low` | `high` | Which \\| of both. |",
        ]
    finally:
        sys.modules.pop("onggi.stages.sing", None)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_recipe_on_its_page_is_sound(tmp_path: Path) -> None:
    [recipe] = re.findall(r"```yaml\n(.*?)```", (DOCS / "run.md").read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "요리법.yaml"
    file.write_text(recipe, encoding="utf-8")
    assert [step.name for step in load(file).steps] == ["calibration", "w4", "scores", "report"]
