"""Studies made of answers that are there already, and a browser without a socket; shared by the tests of rate."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from onggi.rate import links, serve
from onggi.rate.study import Study
from onggi.stages import RateConfig
from onggi.stages import rate as plan
from onggi.stages.rate_people import InviteConfig, invite

MODELS = ("seoul-base", "w4-rtn", "w4-balanced")
# Long enough for the shuffling of an attention pair to be seen; what the models say of them differs by a word.
SENTENCES = {
    "ko": (
        "김치는 배추를 소금에 절인 다음 양념을 넣어 버무리고, 서늘한 곳에서 며칠 동안 익힙니다.",
        "맛이 {}하게 듭니다.",
    ),
    "en": (
        "Kimchi is cabbage that is salted, mixed with seasoning, and left for some days in a cool place.",
        "It tastes {}.",
    ),
    "ar": ("الكيمتشي ملفوف يُملَّح ثم يُخلط بالتوابل ويُترك أيامًا في مكان بارد حتى ينضج.", "طعمه {}."),
    "th": ("กิมจิคือผักกาดขาวที่หมักเกลือแล้วคลุกเครื่องปรุง จากนั้นเก็บไว้ในที่เย็นหลายวัน", "รสชาติ {}"),
    "km": ("គីមឈីគឺជាស្ពៃដែលប្រឡាក់អំបិល រួចលាយគ្រឿងទេស ហើយទុកនៅកន្លែងត្រជាក់ជាច្រើនថ្ងៃ។", "រសជាតិ {}។"),
    "ja": (
        "キムチは白菜を塩で漬け、調味料を混ぜてから、涼しい場所で数日のあいだ寝かせて作ります。",
        "味は{}です。",
    ),
}
QUESTIONS = {
    "ko": "김치는 어떻게 담그나요?",
    "en": "How is kimchi made?",
    "ar": "كيف يُصنع الكيمتشي؟",
    "th": "กิมจิทำอย่างไร",
    "km": "តើគេធ្វើគីមឈីដោយរបៀបណា?",
    "ja": "キムチはどうやって作りますか？",
}


def answers(
    folder: Path,
    tags: Sequence[str] = ("ko", "en", "ar"),
    prompts: int = 6,
    models: Sequence[str] = MODELS,
    said: Mapping[str, str] | None = None,
) -> list[str]:
    """A file of answers for each model, as the line of `onggi rate plan` names it. said: `{_id} {model}` → text."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ("sour", "fresh", "deep", "salty", "mild", "full", "sharp", "round")
    line = []
    for m, model in enumerate(models):
        rows = []
        for tag in tags:
            for number in range(prompts):
                key = f"{tag}-{number}"
                sentence, more = SENTENCES[tag]
                text = f"{sentence} {more.format(words[(number + m) % len(words)])}"
                text = (said or {}).get(f"{key} {model}", text)
                rows.append(
                    {"_id": key, "lang": tag, "prompt": f"{QUESTIONS[tag]} ({number})", "answer": text}
                )
        file = folder / f"{model}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        line.append(f"{model}={file}")
    return line


def study(folder: Path, line: Sequence[str], **options: Any) -> Study:
    """A study of these answers in `folder`/study."""
    made = plan(RateConfig(list(line), **{"raters": 3, **options}), folder / "study")
    return Study(made.path)


def invited(found: Study, lang: str, **options: Any) -> list[str]:
    """Paths of the links of new raters."""
    made = invite(InviteConfig(str(found.path), lang, **options))
    return [own["url"].removeprefix("http://127.0.0.1:8321") for own in made]


class Server:
    """A study's page, asked without a socket. Browsers of it keep their cookies apart."""

    def __init__(self, found: Study):
        store = serve.Store(found.ratings, found.id)
        made = store.fact("secret")
        store.close()
        assert made
        self.study = found
        self.service = serve.Service(found, links.signer(found.id, made))
        self.app = serve.application(self.service)
        # In a thread of its own: a test may have a browser open, which keeps a loop running in this one.
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine, in the server's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def browser(self, path: str = "") -> Browser:
        """A browser; `path`: of the link that it opens."""
        made = Browser(self)
        if path:
            made.get(path)
        return made

    def close(self) -> None:
        self.service.close()
        self.loop.call_soon_threadsafe(self.loop.stop)


class Browser:
    """What a rater's browser does: follows redirects, keeps the session, sends the forms that it was given."""

    def __init__(self, server: Server):
        self.server = server
        transport = httpx2.ASGITransport(app=server.app, raise_app_exceptions=True)
        self.client = httpx2.AsyncClient(
            transport=transport, base_url="http://testserver", follow_redirects=True
        )
        self.page: httpx2.Response

    def ask(self, method: str, path: str, **options: Any) -> httpx2.Response:
        self.page = self.server.run(self.client.request(method, path, **options))
        return self.page

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.ask("GET", path, **options)

    def post(self, path: str, fields: Any, **options: Any) -> httpx2.Response:
        return self.ask("POST", path, data=fields, **options)

    def hidden(self, name: str, page: str | None = None, form: str = "/rate") -> str:
        """A hidden field of a form of the page."""
        whole = page or self.page.text
        part = whole.split(f'action="{form}"', 1)[1].split("</form>", 1)[0]
        found = re.search(rf'name="{name}" value="([^"]*)"', part)
        assert found
        return found[1]

    def rate(self, choice: str, **more: Any) -> httpx2.Response:
        """Rate the pair on the page."""
        fields = {"pair": self.hidden("pair"), "key": self.hidden("key"), "choice": choice, **more}
        return self.post("/rate", fields)

    def undo(self) -> httpx2.Response:
        """Press the button."""
        fields = {name: self.hidden(name, form="/undo") for name in ("pair", "key")}
        return self.post("/undo", fields)

    @property
    def at_end(self) -> bool:
        return 'action="/rate"' not in self.page.text
