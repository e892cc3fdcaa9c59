"""The command line: verbs, each from its stage's config; nothing but argument → stage call."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .errors import OnggiError, nearest
from .ledger import Artifact
from .progress import console, say

if TYPE_CHECKING:
    from .stages import Stage

_OVERRIDE = re.compile(r"(--)?[A-Za-z0-9][\w-]*\.[\w.-]+=.*", re.DOTALL)
_OTHER = {
    "run": "run a recipe: named stages in YAML; skips what is done, goes on with what is not",
    "inspect": "what a model or an artifact is, and the folder to load it from",
    "chat": "one prompt to several models at once, answers side by side",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors of the user's are one message, no traceback."""
    # Libraries' own bars would run through ours; no model is ever asked for over the network
    # unless a hub id says so.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _dispatch(words)
        finally:
            sys.stdout.flush()  # now, so that a reader who has gone is noticed below
    except OnggiError as error:
        print(f"onggi: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `onggi … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"onggi: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        say("Stopped." if words[:1] == ["chat"] else "Stopped. The same command goes on from here.")
        return 130
    finally:
        console.quiet = False  # --quiet is of this command, not of the next one in the same process


def _dispatch(words: list[str]) -> int:
    from .stages import VERBS

    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"onggi {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb == "run":
        return _run(rest)
    if verb == "inspect":
        return _inspect(rest)
    if verb == "chat":
        return _chat(rest)
    if verb == "rate":
        return _rate(rest)
    if verb not in VERBS:
        raise OnggiError(f"there is no command {verb!r}.{nearest(verb, [*VERBS, *_OTHER])} See onggi --help.")
    return _stage(verb, rest)


def _help() -> str:
    from .stages import VERBS

    lines = [
        "usage: onggi VERB …",
        "",
        "Quantise a language model and see what it costs in each language.",
        "",
    ]
    summaries = {verb: (stage.config.__doc__ or "").strip().split("\n")[0] for verb, stage in VERBS.items()}
    lines += [f"  {verb:10} {text}" for verb, text in {**summaries, **_OTHER}.items()]
    lines += ["", "onggi VERB --help shows every option with its type, default, unit and why."]
    return "\n".join(lines)


def parser(verb: str) -> Any:
    """The parser of `onggi VERB`, whole; the option tables of docs/ are written from it."""
    from . import arguments

    if verb == "run":
        return _run_parser()
    if verb == "inspect":
        return _inspect_parser()
    if verb == "chat":
        return _chat_parser()
    if verb.startswith("rate ") and verb not in ("rate plan", "rate results"):
        return _rate_parser(verb)
    stage = _stage_of(verb)
    made = arguments.parser(stage)
    if verb == "evaluate":
        made.add_argument("--list-tasks", action="store_true", help="Print the tasks there are, and end.")
    if stage.dry_run:
        made.add_argument(
            "--dry-run",
            action="store_true",
            help="Print what it would make or take, and end; needs no --out.",
        )
    if stage.preview:
        made.add_argument(
            "--preview",
            action="store_true",
            help="Print which tokens carry loss, in colour, and end; needs no --out.",
        )
    made.add_argument("--out", required=True, metavar="DIR", help="Folder for the outputs; made if missing.")
    _add_switches(
        made, "Print one JSON object and no table: `path`, `verb`, `outputs` and the rest of DIR/stage.json."
    )
    return made


def _stage_of(verb: str) -> Stage:
    """The stage of `onggi VERB`: of `rate`, which has verbs of its own, the plan."""
    from .stages import VERBS, rate_results
    from .stages.rate import PLAN

    return {"rate": PLAN, "rate plan": PLAN, "rate results": rate_results.STAGE}.get(verb) or VERBS[verb]


def _add_switches(parser: Any, json_help: str) -> None:
    """What every verb has for scripts. Errors are one line on stderr and exit code 1 with both."""
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="Print nothing but errors and what was asked for: --json, --dry-run's plan, inspect's facts.",
    )
    parser.add_argument("--json", action="store_true", help=json_help)


def _parse(parser: Any, words: list[str], prog: str) -> Any:
    """Parsed arguments; a mistake is an OnggiError in words. With --quiet, quiet from here on."""
    import jsonargparse

    from . import arguments

    flags = [flag for action in parser._actions for flag in action.option_strings]
    # --max-tokens is --max_tokens, which is the key in YAML and Python.
    spelt = {flag.replace("_", "-"): flag for flag in flags}
    words = [spelt.get((name := word.split("=")[0]), name) + word[len(name) :] for word in words]
    for word in words:
        name = word.split("=")[0]
        if name.startswith("--") and len(name) > 2 and name not in flags:
            hint = nearest(name, flags)
            raise OnggiError(f"{prog} has no option {name}.{hint}")
    try:
        parsed = parser.parse_args(words)
    except jsonargparse.ArgumentError as error:
        text = str(error)
        key = re.search(r'Parser key "([\w.]+)"', text)
        missing = re.search(r"the following arguments are required: (.+)", text)
        if missing:
            raise OnggiError(f"{prog} needs {missing[1]}; see {prog} --help.") from error
        place = f"--{key[1]}: " if key else ""
        raise OnggiError(f"{prog}: {place}{arguments.said(text)}") from error
    console.quiet = bool(parsed.get("quiet"))
    return parsed


def _stage(verb: str, words: list[str]) -> int:
    from dataclasses import fields

    stage = _stage_of(verb)
    if verb == "evaluate" and "--list-tasks" in words:
        from .stages.evaluate import list_tasks

        print(list_tasks())
        return 0
    asks = (stage.dry_run and "--dry-run" in words) or (stage.preview and "--preview" in words)
    if asks and not any(word.split("=")[0] == "--out" for word in words):
        words = [*words, "--out", os.devnull]
    parsed = _parse(parser(verb), words, f"onggi {verb}")
    config = stage.config(**{field.name: parsed[field.name] for field in fields(stage.config)})
    if stage.dry_run and parsed.dry_run:
        if parsed.json and stage.outlook:
            _print_json(stage.outlook(config))
        else:
            print(stage.dry_run(config))
        return 0
    if stage.preview and parsed.preview:
        stage.preview(config)
        return 0
    artifact = stage.run(config, Path(parsed.out))
    if int(os.environ.get("RANK", 0)) > 0:  # of several processes (torchrun) the first speaks
        return 0
    if parsed.json:
        _print_json(_record(artifact))
    elif stage.show and not parsed.quiet:
        stage.show(artifact)
    else:
        say(f"{artifact.path}: {', '.join(sorted(artifact.record['outputs'])[:4])} …")
    return 0


def _rate(words: list[str]) -> int:
    """`onggi rate VERB`: a study is planned and counted as any stage is; between, people are served."""
    from dataclasses import fields

    from .stages import rate_people

    verbs = ["plan", *rate_people.VERBS, "results"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_rate_help(verbs))
        parser("rate").print_help()
        return 0
    name, rest = words[0], words[1:]
    if name not in verbs:
        raise OnggiError(f"there is no command 'rate {name}'.{nearest(name, verbs)} See onggi rate --help.")
    if name in ("plan", "results"):
        return _stage(f"rate {name}", rest)
    verb = rate_people.VERBS[name]
    parsed = _parse(parser(f"rate {name}"), rest, f"onggi rate {name}")
    found = verb.run(verb.config(**{field.name: parsed[field.name] for field in fields(verb.config)}))
    if parsed.json:
        _print_json({"invitations": found} if isinstance(found, list) else found or {})
    elif said := verb.words(found):  # a link is what was asked for, with --quiet too
        print(said)
    return 0


def _rate_help(verbs: list[str]) -> str:
    lines = ["usage: onggi rate VERB …", "", (_stage_of("rate").config.__doc__ or "").split("\n")[0], ""]
    for name in verbs:
        words = parser(f"rate {name}").description.split("\n")[0]
        words = (
            "make the answers, or take existing ones, and build a study of them" if name == "plan" else words
        )
        lines.append(f"  {name:10} {words}")
    return "\n".join([*lines, "", "onggi rate VERB --help shows the options of each; those of plan:", ""])


def _rate_parser(verb: str) -> Any:
    from dataclasses import fields

    from . import arguments
    from .stages import rate_people

    found = rate_people.VERBS[verb.removeprefix("rate ")]
    plain: dict[str, dict[str, Any]] = {name: {} for name in found.positional}
    plain |= {f"--{f.name}": {"action": "store_true"} for f in fields(found.config) if f.default is False}
    made = arguments.verb_parser(verb, found.config, plain)
    _add_switches(made, "Print one JSON object in place of words.")
    return made


def _record(artifact: Artifact) -> dict[str, Any]:
    return {"path": str(artifact.path), **artifact.record}


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _run_parser() -> Any:
    import jsonargparse

    made = jsonargparse.ArgumentParser(
        prog="onggi run",
        description="Run a recipe. STAGE.KEY=VALUE overrides an option of a stage, as in balanced.tokens=4096.",
        exit_on_error=False,
    )
    made.add_argument("recipe", help="The recipe, a YAML file.")
    made.add_argument("--runs", default="runs", metavar="DIR", help="Outputs go to DIR/NAME/STAGE.")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="Print the plan: stages, tokens, peak memory, disk, what is done.",
    )
    _add_switches(
        made,
        "Print one JSON object and no table: `recipe`, its name, and `stages`, each with `path` and its "
        "stage.json; with --dry-run each with its row of the plan (memory and disk in bytes).",
    )
    made.usage = "onggi run RECIPE.yaml [STAGE.KEY=VALUE …] [--runs DIR] [--dry-run] [--quiet] [--json]"
    return made


def _run(words: list[str]) -> int:
    overrides = [word for word in words if _OVERRIDE.fullmatch(word)]
    parsed = _parse(_run_parser(), [word for word in words if word not in overrides], "onggi run")
    from . import run
    from .stages import VERBS

    recipe, runs = Path(parsed.recipe), Path(parsed.runs)
    if parsed.dry_run:
        rows = run.dry_run(recipe, overrides, runs)
        if parsed.json:
            _print_json(_by_stage({row["stage"]: row for row in rows}))
        else:
            _print_plan(rows)
        return 0
    made = run.run(recipe, overrides, runs)
    if parsed.json:
        _print_json(_by_stage({name: _record(artifact) for name, artifact in made.items()}))
    elif not parsed.quiet:
        for artifact in made.values():
            if show := VERBS[artifact.record["verb"]].show:
                show(artifact)
    return 0


def _by_stage(stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`stages` under the recipe's name: each one's path is RUNS/NAME/STAGE."""
    return {"recipe": Path(next(iter(stages.values()))["path"]).parent.name, "stages": stages}


def _print_plan(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("stage", "verb", "state", "tokens", "peak memory", "disk"):
        table.add_column(column, justify="right" if column in ("tokens", "peak memory", "disk") else "left")
    for row in rows:
        memory, disk, tokens = row["memory"], row["disk"], row["tokens"]
        table.add_row(
            row["stage"],
            row["verb"],
            row["state"],
            "?" if tokens is None else f"{tokens:,}",
            "?" if memory is None else f"{memory / 2**30:.1f} GiB",
            "?" if disk is None else f"{disk / 1e6:,.0f} MB",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "About, not exactly; ? is known only when an earlier stage has run or the model is fetched."
    )


def _inspect_parser() -> Any:
    import jsonargparse

    made = jsonargparse.ArgumentParser(
        prog="onggi inspect", description="What a model or an artifact is.", exit_on_error=False
    )
    made.add_argument("model", help="A model by any of its names, or a folder that onggi made.")
    _add_switches(made, "As one JSON object; `path` is the loadable folder.")
    return made


def _inspect(words: list[str]) -> int:
    from .stages import inspect

    parsed = _parse(_inspect_parser(), words, "onggi inspect")
    facts = inspect(parsed.model)
    if parsed.json:
        _print_json(facts)
    else:
        for key, value in facts.items():
            print(
                f"{key:20} {json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value}"
            )
    return 0


def _chat_parser() -> Any:
    from . import arguments
    from .stages import ChatConfig

    # A prompt is any text: jsonargparse would read `null` and `#` in one as YAML does.
    plain: dict[str, dict[str, Any]] = {
        "models": {"nargs": "+"},
        "--prompt": {"type": str, "metavar": "TEXT"},
        "--raw": {"action": "store_true"},
    }
    made = arguments.verb_parser("chat", ChatConfig, plain)
    _add_switches(made, "Print one JSON object, NAME → text, tokens, seconds, end; needs a prompt.")
    return made


def _chat(words: list[str]) -> int:
    from dataclasses import asdict, fields

    from .stages import ChatConfig, chat, chat_terminal

    parsed = _parse(_chat_parser(), words, "onggi chat")
    config = ChatConfig(**{field.name: parsed[field.name] for field in fields(ChatConfig)})
    if not parsed.json:
        return chat_terminal.run(config)
    answers = chat(chat_terminal.with_prompt(config))
    _print_json({name: asdict(answer) for name, answer in answers.items()})
    return 0
