"""The examples in the stages' docstrings do what they say, one after another in one folder."""

from __future__ import annotations

import doctest
import io
from pathlib import Path

import pytest

from onggi.stages import VERBS, inspect


def test_every_stage_has_an_example_that_runs(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(tiny)
    monkeypatch.chdir(tmp_path)
    for function in (*(stage.run for stage in VERBS.values()), inspect):
        [example] = doctest.DocTestFinder(recurse=False, exclude_empty=False).find(function, globs={})
        assert example.examples, (
            f"{function.__module__}: {function.__name__} has no >>> example in its docstring"
        )
        told = io.StringIO()
        failed = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=told.write)
        assert not failed.failed, told.getvalue()
