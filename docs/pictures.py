"""The README's pictures: the top of the quickstart's own report, in English and in Korean.

    python docs/pictures.py [runs/quickstart/scores]

writes docs/report.en.png and docs/report.ko.png; needs Chromium and the developers' environment.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from onggi.stages import ReportConfig, report

HERE = Path(__file__).resolve().parent


def main(scores: Path) -> None:
    """Make the report of `scores` anew in each language and photograph it."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 800}, device_scale_factor=1.5)
        for language in ("en", "ko"):
            made = report(ReportConfig([str(scores)], language), Path(folder) / language)
            page.goto((made.path / "report.html").resolve().as_uri())
            end = page.locator("table").first.bounding_box()  # models by language, and which to ship
            page.screenshot(
                path=HERE / f"report.{language}.png",
                clip={"x": 0, "y": 0, "width": 1000, "height": end["y"] + end["height"] + 8},
                full_page=True,
            )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/scores"))
