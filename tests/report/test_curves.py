"""The curves: a drawing that stands alone, with each language named, whatever its script and its end."""

from __future__ import annotations

import itertools
from xml.etree import ElementTree

from onggi.report.curves import curves

SVG = "{http://www.w3.org/2000/svg}"


def lines(languages: tuple[str, ...], steps: int = 120) -> list[dict]:
    found: list[dict] = [
        {"step": 0, "bits_per_byte": {tag: 3.0 + i / 100 for i, tag in enumerate(languages)}}
    ]
    for step in range(1, steps + 1):
        found.append({"step": step, "loss": 9 - step / 40, "gradients": 1.0, "learning_rate": 1e-3})
        if step % 40 == 0 and languages:
            bits = {tag: 3.0 - step / 100 + i / 100 for i, tag in enumerate(languages)}
            found.append({"step": step, "bits_per_byte": bits})
    return found if languages else found[1:]


def test_every_language_is_named_where_there_is_room() -> None:
    tags = ("en", "ko", "km", "ar", "zh-Hans", "el", "hi", "th", "ja", "ru", "de", "vi")
    drawn = curves(lines(tags))
    root = ElementTree.fromstring(drawn)
    assert root.tag == f"{SVG}svg" and root.get("font-family") == "sans-serif"
    texts = {"".join(element.itertext()): element for element in root.iter(f"{SVG}text")}
    for name in ("English", "Korean", "Khmer", "Chinese (Simplified)", "bits per byte by language", "steps"):
        assert name in texts, texts.keys()
    # No two names of curves on one line: they all end within a tenth of a bit.
    places = sorted(
        float(element.get("y", "nan"))
        for name, element in texts.items()
        if name in ("English", "Korean", "Khmer", "Arabic", "Chinese (Simplified)", "Greek", "Hindi", "Thai")
    )
    assert all(b - a > 10 for a, b in itertools.pairwise(places)), places


def test_without_validation_and_gone_back() -> None:
    alone = curves(lines(()))
    assert "bits per byte" not in alone and "loss of training" in alone
    back = curves([*lines(()), {"step": 80, "went_back_from": 95, "because": "nan"}])
    assert len(back) > len(alone)
    assert curves(lines(("ko", "el", "km"))) == curves(lines(("ko", "el", "km")))
