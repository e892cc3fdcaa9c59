"""`onggi text --rows` beside datatrove alone: documents a second of CPU with the same filters, one process each.

The documents are pages of LibreOffice's help (debian:libreoffice-help), in English, German and Korean. Both
read JSONL, identify the language, mask personal data, apply Gopher's repetition and quality measures, drop
near duplicates by MinHash (14 groups of 8 hashes, shingles of 5 words) and write what is left. What datatrove
could not run without here is lent to it: our identification of languages (its own downloads a model), words cut
at spaces for English and German (its tokenizer is spaCy's), kiwipiepy's default model for Korean (it asks for
one that kiwipiepy no longer has), SHA-1 for xxhash (its call fails with xxhash 4), and for Korean a least mean
length of words of 1 letter in place of 3, which drops every Korean document. Ours does more:
normalisation, boilerplate, limits from the data, exact duplicates, evaluation sets, the mix, the funnel.

    python bench/text.py [--documents 3000] [--runs 3]

writes docs/benchmarks/text.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs" / "benchmarks"
LANGUAGES = {"en": "eng", "de": "deu", "ko": "kor"}


def documents(folder: Path, most: int) -> dict[str, int]:
    """FOLDER/LANGUAGE.jsonl, a page a row, `most` at most; bytes of each language."""
    from onggi import text

    sizes = {}
    for language in LANGUAGES:
        found = text.load("debian:libreoffice-help", ["en", language] if language != "en" else ["en"])
        pages: dict[str, list[str]] = {}
        for key, passage in found.passages(language).items():
            pages.setdefault(key.split("#")[0], []).append(passage)
        chosen = ["\n".join(page) for page in pages.values()][:most]
        with (folder / f"{language}.jsonl").open("w", encoding="utf-8") as file:
            for page in chosen:
                file.write(json.dumps({"text": page, "lang": language}, ensure_ascii=False) + "\n")
        sizes[language] = sum(len(page.encode()) for page in chosen)
    return sizes


def ours(folder: Path, language: str, out: Path) -> int:
    """Rows that are left."""
    from onggi.languages import Languages
    from onggi.stages import TextConfig, text

    config = TextConfig([str(folder / f"{language}.jsonl")], Languages(language), rows=True, workers=1)
    return int(text(config, out).record["passages"][language])


def theirs(folder: Path, language: str, out: Path) -> int:
    """The same with datatrove's blocks, run one after the other in this process. Rows that are left."""
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter, LambdaFilter
    from datatrove.pipeline.formatters.pii import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from datatrove.utils.logging import logger
    from datatrove.utils.word_tokenizers import WordTokenizer

    from onggi.text.corpus import measures

    class Spaces(WordTokenizer):
        """Words at spaces."""

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        sent_tokenize = span_tokenize = word_tokenize

    logger.remove()

    class Morphemes(Spaces):
        """Words of Korean by kiwipiepy, as datatrove's own has them."""

        def __init__(self) -> None:
            from kiwipiepy import Kiwi

            self.kiwi = Kiwi(num_workers=1)

        def word_tokenize(self, text: str) -> list[str]:
            return [text[token.start : token.end] for token in self.kiwi.tokenize(text)]

    words = Morphemes() if language == "ko" else Spaces()
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))
    filtered = str(out / "filtered")
    steps = [
        JsonlReader(str(folder), glob_pattern=f"{language}.jsonl"),
        LambdaFilter(lambda document: measures.tell(document.text, language, (language,))[1] > 0.1),
        PIIFormatter(),
        GopherRepetitionFilter(language=words),
        GopherQualityFilter(
            language=words, min_stop_words=0, min_avg_word_length=1 if language == "ko" else 3
        ),
        JsonlWriter(filtered),
    ]
    _run(steps)
    _run([JsonlReader(filtered), MinhashDedupSignature(str(out / "signatures"), config, language=words)])
    buckets = MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=config)
    for rank in range(config.num_buckets):
        buckets.run(None, rank, config.num_buckets)
    MinhashDedupCluster(str(out / "buckets"), str(out / "removed"), config=config).run(None, 0, 1)
    _run([JsonlReader(filtered), MinhashDedupFilter(str(out / "removed")), JsonlWriter(str(out / "left"))])
    return sum(1 for _ in JsonlReader(str(out / "left")).run())


def _run(steps: Sequence[object]) -> None:
    stream = None
    for step in steps:
        stream = step.run(stream, 0, 1)  # type: ignore[attr-defined]
    for _ in stream or ():
        pass


def _cpu() -> float:
    """Seconds of CPU of the processes that have ended: what else runs on the machine counts less than by the clock."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and write, or with --one be what is measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        which, folder, language, out = options.one
        print(
            json.dumps(
                {"left": {"onggi": ours, "datatrove": theirs}[which](Path(folder), language, Path(out))}
            )
        )
        return
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = documents(folder, options.documents)
        for language, size in sizes.items():
            count = (folder / f"{language}.jsonl").read_text("utf-8").count("\n")
            seconds: dict[str, list[float]] = {"onggi": [], "datatrove": []}
            left = {}
            for _ in range(options.runs):
                for which, times in seconds.items():  # in turns: the machine may be busier at one time
                    out = folder / "out"
                    started = _cpu()
                    done = subprocess.run(
                        [sys.executable, __file__, "--one", which, str(folder), language, str(out)],
                        stdout=subprocess.PIPE,
                        check=True,
                        text=True,
                    )
                    times.append(_cpu() - started)
                    left[which] = json.loads(done.stdout.splitlines()[-1])["left"]
                    shutil.rmtree(out, ignore_errors=True)
            rate = {which: count / statistics.median(times) for which, times in seconds.items()}
            results[language] = {
                "documents": count,
                "bytes": size,
                "left": left,
                "seconds": seconds,
                "rate": rate,
            }
            print(language, results[language], file=sys.stderr)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    lines = [
        "# `onggi text --rows` beside datatrove 0.10.1",
        "",
        f"{(__doc__ or '').split(chr(10) * 2)[1]}",
        "",
        f"On {machine}; median of {options.runs} runs in turns; CPU seconds of whole processes, their start included.",
        "",
        "| language | documents | MB | onggi, documents/s | datatrove, documents/s | ratio | left by onggi | by datatrove |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for language, one in results.items():
        rate = one["rate"]
        lines.append(
            f"| {language} | {one['documents']:,} | {one['bytes'] / 1e6:.1f} | {rate['onggi']:,.0f} | "
            f"{rate['datatrove']:,.0f} | {rate['onggi'] / rate['datatrove']:.2f} | {one['left']['onggi']:,} | "
            f"{one['left']['datatrove']:,} |"
        )
    DOCS.mkdir(exist_ok=True)
    (DOCS / "text.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (DOCS / "text.json").write_text(json.dumps({"machine": machine, "languages": results}, indent=2) + "\n")
    print("\n".join(lines[6:]))


if __name__ == "__main__":
    main()
