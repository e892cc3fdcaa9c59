"""The command line as a user meets it: help at once, one line for a mistake, never a traceback."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from onggi import __version__
from onggi.arguments import docs
from onggi.cli import main
from onggi.stages import VERBS
from onggi.stages.base import flag

ONGGI = [sys.executable, "-m", "onggi"]

HELP = """
import contextlib, io, json, sys
from onggi.cli import main
said = {}
for verb in [None, *sys.argv[1:]]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([verb, "--help"] if verb else ["--help"])
    said[verb or ""] = out.getvalue()
print(json.dumps([said, sorted({"torch", "transformers", "accelerate"} & sys.modules.keys())]))
"""


def test_help_needs_no_torch_and_shows_every_option() -> None:
    verbs = [*VERBS, "run", "inspect", "chat"]
    done = subprocess.run([sys.executable, "-c", HELP, *verbs], capture_output=True, text=True, check=True)
    said, loaded = json.loads(done.stdout)
    assert loaded == []
    assert all(re.search(rf"^  {verb} ", said[""], re.M) for verb in verbs)
    for verb, stage in VERBS.items():
        words = " ".join(said[verb].split())
        for field in fields(stage.config):
            assert (field.name if field.name in stage.positional else f"--{flag(field.name)} ") in words
            assert docs(stage)[field.name].split(".")[0] in words
        assert "--out DIR" in words
    assert all("--quiet" in said[verb] and "--json" in said[verb] for verb in verbs)
    assert "<class" not in "".join(said.values())
    assert "--dry-run" in said["run"] and "--json" in said["inspect"]


@pytest.mark.parametrize("words", [[], ["--help"], ["help"], ["--version"]])
def test_asking_is_no_mistake(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert (__version__ if words == ["--version"] else "usage: onggi VERB") in said.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("txt probe", "there is no command 'txt'. Did you mean 'text'? See onggi --help."),
        ("text", "onggi text needs source, languages, out; see onggi text --help."),
        ("text probe --languages en", "onggi text needs out; see"),
        (
            "text probe --languags en --out {out}",
            "onggi text has no option --languags. Did you mean '--languages'",
        ),
        (
            "text probe more --languages en --out {out}",
            "source: several sources are mixed into rows; add --rows, or name one",
        ),
        (
            "text probe --languages en,klingonish --out {out}",
            "onggi text: --languages: 'klingonish' is not a lan",
        ),
        ("text probe --languages= --out {out}", "onggi text: --languages: The list of languages is empty"),
        ("text probe --languages no --out {out}", "probe: has no text in no; it has en, de, es"),
        ("text probee --languages en --out {out}", "probee: no such text. A source is"),
        ("text debian:libreofice-help --languages en --out {out}", "Did you mean 'libreoffice-help'?"),
        ("quantize m --text probe --out {out}", "text: the probe is for measuring and never for calibration"),
        (
            "quantize m --text starter --tokens many --out {out}",
            "onggi quantize: --tokens: expected int, not many",
        ),
        (
            "quantize m --method rtn --scheme w3 --out {out}",
            "onggi quantize: --scheme: expected one of w4a16-g128,",
        ),
        ("quantize m --text starter --tokens 0 --out {out}", "tokens: 0 is not a number of tokens"),
        (
            "quantize no/such/folder --text starter --out {out}",
            "no/such/folder: no such folder or file. A model is",
        ),
        ("quantize package:gemma3-270 --text starter --out {out}", "Did you mean 'gemma3-270m'?"),
        ("evaluate a=x a=y --reference z --out {out}", "two models are named 'a' (x and y); name them apart"),
        ("evaluate b a/b --reference z --out {out}", "two models are named 'b' (b and a/b); name them apart"),
        ("evaluate --out {out}", "onggi evaluate needs models"),
        ("evaluate x --reference x --margin 2 --out {out}", "margin: 2.0 is not a share between 0 and 1"),
        ("evaluate x --reference x --limit 0 --out {out}", "limit: 0 is not a number of passages"),
        ("report {tmp} --out {out}", "{tmp}: is not a finished folder of `onggi evaluate`"),
        ("inspect {tmp}", "{tmp}: is not a model folder (it has no config.json)"),
        ("inspect http://host/v1#m", "models behind a server cannot be loaded"),
        ("inspect", "onggi inspect needs model; see onggi inspect --help."),
        ("run", "onggi run needs recipe; see onggi run --help."),
        ("run {tmp}/none.yaml", "{tmp}/none.yaml: cannot be read (No such file or directory)"),
        ("run x.yaml --dryrun", "onggi run has no option --dryrun. Did you mean '--dry-run'?"),
        ("run x.yaml a.b", "onggi run: unrecognized arguments: a.b"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"tmp": str(tmp_path), "out": str(tmp_path / "out")}
    assert main([word.format(**places) for word in words.split()]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("onggi: ") and error.count("\n") == 1
    assert said.format(**places) in error
    assert not (tmp_path / "out" / "stage.json").exists()


def test_a_mistake_has_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [*ONGGI, "text", "none.jsonl", "--languages", "ko", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("onggi: none.jsonl: no such text") and "Traceback" not in done.stderr


def test_stopped_by_the_user(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    os.mkfifo(recipe)  # reading it waits for what is never written
    running = subprocess.Popen(
        [*ONGGI, "run", str(recipe)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with recipe.open("w"):  # opens when the other side does
        running.send_signal(signal.SIGINT)
        _, said = running.communicate()
    assert running.returncode == 130
    assert said == "Stopped. The same command goes on from here.\n"


@pytest.mark.parametrize("words", [["--help"], ["text", "--help"]])
def test_nobody_reads_the_output(words: list[str]) -> None:
    hear, tell = os.pipe()
    os.close(hear)
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [*ONGGI, *words], env=buffered, stdout=tell, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(tell)
    assert (done.returncode, done.stderr) == (0, "")


def test_text_and_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "own.jsonl"
    source.write_text(json.dumps({"_id": 7, "no": "God dag.", "ko": "안녕하세요.", "km": "សួស្តី។"}))
    out = tmp_path / "out"
    assert main(["text", str(source), "--languages", "no,kor_Hang", "--out", str(out)]) == 0
    assert pq.read_table(out / "text.parquet").to_pylist() == [
        {"_id": "7", "no": "God dag.", "ko": "안녕하세요."}
    ]
    capsys.readouterr()
    assert main(["inspect", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["path"], facts["verb"], facts["passages"]) == (str(out), "text", {"no": 1, "ko": 1})


def test_inspect_a_model(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tiny), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["path"], facts["architecture"], facts["layers"]) == (str(tiny), "LlamaForCausalLM", 3)
    assert facts["bytes_by_type"] == {"bfloat16": facts["bytes"]}
    assert main(["inspect", str(tiny)]) == 0
    assert str(tiny) in capsys.readouterr().out


RECIPE = """
name: small
stages:
  words: {verb: text, source: starter, languages: en}
  w4: {verb: quantize, model: owner/name, text: starter, tokens: 64}
"""


@contextlib.contextmanager
def hub() -> Iterator[tuple[dict[str, str], list[str]]]:
    """A hub that has nothing: the environment that leads to it, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield (
                {**os.environ, "HF_ENDPOINT": address, "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"},
                asked,
            )
        finally:
            server.shutdown()


def test_dry_run_prints_the_plan_and_fetches_nothing(tmp_path: Path) -> None:
    recipe, runs = tmp_path / "recipe.yaml", tmp_path / "runs"
    recipe.write_text(RECIPE)
    words = ["run", str(recipe), "w4.tokens=4096", "--words.languages=ko", "--runs", str(runs)]
    with hub() as (environment, asked):
        environment |= {"HF_HOME": str(tmp_path / "hf")}
        run = lambda *more: subprocess.run(  # noqa: E731
            [*ONGGI, *words, *more], env=environment, capture_output=True, text=True, check=False
        )
        dry = run("--dry-run")
        assert (dry.returncode, asked) == (0, []), dry.stderr
        assert re.search(r"words .* text .* to do", dry.stdout) and "4,096" in dry.stdout
        assert not runs.exists()
        wet = run()
        assert wet.returncode == 1 and asked  # the counter counts
        last = wet.stderr.strip().splitlines()[-1]
        assert f"onggi: {recipe}: stages.w4: owner/name: is no folder here and could not be fetched" in last
        assert (runs / "small" / "words" / "text.parquet").is_file()
        assert "Traceback" not in wet.stderr


WHOLE = """
name: whole
stages:
  words: {{verb: text, source: starter, languages: [en, ko, km]}}
  w4: {{verb: quantize, model: {model}, text: "${{words}}", tokens: 256}}
  scores: {{verb: evaluate, models: "w4=${{w4}}", reference: {model}, languages: "en,ko,km", limit: 2}}
  page: {{verb: report, inputs: "${{scores}}"}}
"""


def test_for_scripts(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--quiet and --json on every verb: one object on stdout, nothing else where quiet."""
    recipe, runs = tmp_path / "한글.yaml", str(tmp_path / "runs")
    recipe.write_text(WHOLE.format(model=tiny), encoding="utf-8")
    words = ["run", str(recipe), "--runs", runs]

    def said(*more: str) -> tuple[str, str]:
        assert main(more) == 0
        return tuple(capsys.readouterr())  # type: ignore[return-value]

    plan = json.loads(said(*words, "--dry-run", "--json")[0])
    assert plan["recipe"] == "whole" and list(plan["stages"]) == ["words", "w4", "scores", "page"]
    assert plan["stages"]["w4"]["state"] == "to do" and plan["stages"]["w4"]["tokens"] == 256
    # The real thing in a process of its own: libraries warn on stderr too.
    done = subprocess.run(
        [*ONGGI, *words, "--json", "--quiet"], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    made = json.loads(done.stdout)
    assert made["recipe"] == "whole"
    assert [(name, stage["verb"]) for name, stage in made["stages"].items()] == [
        ("words", "text"),
        ("w4", "quantize"),
        ("scores", "evaluate"),
        ("page", "report"),
    ]
    for name, stage in made["stages"].items():
        path = Path(stage.pop("path"))
        assert path == Path(runs) / "whole" / name == Path(plan["stages"][name]["path"])
        assert stage == json.loads((path / "stage.json").read_text(encoding="utf-8"))
        # Each verb by itself says the same of its folder.
        [verb, *rest] = stage["command"].split()[1:]
        out, err = said(verb, *rest, "--json")
        assert json.loads(out) == {"path": str(path), **stage}
        assert said(verb, *rest, "--json", "--quiet") == (out, "")
        assert said(verb, *rest, "--quiet") == ("", "")
    assert "Khmer (km)" in said(verb, *rest)[0]
    out, err = said(*words, "--json")
    assert json.loads(out).keys() == made.keys() and err.count("done already") == 4
    assert said(*words, "--quiet") == ("", "")
    assert "Khmer (km)" in said(*words)[0]
    assert "done" in said(*words, "--quiet", "--dry-run")[0]
    assert str(tiny) in said("inspect", str(tiny), "--quiet")[0]


@pytest.mark.parametrize("verb", ["text none.jsonl --languages ko", "run none.yaml", "inspect none"])
@pytest.mark.parametrize("switches", ["--json", "--quiet", "--json --quiet"])
def test_a_mistake_in_a_script_is_one_line(
    verb: str, switches: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*verb.split(), *switches.split()]
    if verb.startswith("text"):
        words += ["--out", str(tmp_path / "out")]
    assert main(words) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("onggi: none") and error.count("\n") == 1
