"""Calls give the same here and on a local Ray cluster of two workers, whatever befalls them there."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from clusters import sent
from onggi import fanout
from onggi.errors import OnggiError, UnavailableError

JARS = {"ko": ["항아리", "옹기", "된장"], "el": ["πιθάρι", "λάδι"], "ar": ["جرة", "زيت", "ملح"], "en": []}


@pytest.fixture(scope="module", autouse=True)
def functions(ray: None) -> Iterator[None]:
    with sent(__name__):
        yield


def jars(language: str) -> Iterator[tuple[str, int]]:
    for word in JARS[language]:
        time.sleep(0.05)
        yield word, os.getpid()


def test_the_same_results_from_other_processes() -> None:
    calls = [functools.partial(jars, language) for language in JARS]
    here, there = list(fanout.each(calls)), list(fanout.each(calls, "ray"))
    for number, words in enumerate(JARS.values()):  # those of one call in its order
        for found in (here, there):
            assert [word for n, (word, _) in found if n == number] == words
    assert {pid for _, (_, pid) in here} == {os.getpid()}
    assert len({pid for _, (_, pid) in there} - {os.getpid()}) == 2
    assert list(fanout.each([], "ray")) == []


def threads() -> Iterator[tuple[str, int]]:
    import torch

    yield os.environ["OMP_NUM_THREADS"], torch.get_num_threads()


def test_cores_go_with_memory_and_are_never_more_than_there_are() -> None:
    assert fanout._share(12, 1 << 20) == (1, 0)
    assert fanout._share(12, 1 << 60) == fanout._share(1, 0) == (2, 0)
    # A worker is used again with other cores.
    for memory, cores in ((1 << 20, 1), (1 << 60, 2), (1 << 20, 1)):
        found = list(fanout.each([threads] * 2, "ray", memory))
        assert [result for _, result in found] == [(str(cores), cores)] * 2


def fails(error: Exception) -> Iterator[str]:
    yield "된장"
    raise error


def test_an_error_comes_back_as_it_was() -> None:
    message = "/모델/ខ្មែរ: holds no tensor named λ."
    with pytest.raises(UnavailableError) as caught:
        list(fanout.each([functools.partial(fails, UnavailableError(message))], "ray"))
    assert str(caught.value) == message
    with pytest.raises(ZeroDivisionError, match="in fails"):  # a defect of ours keeps its traceback
        list(fanout.each([functools.partial(fails, ZeroDivisionError("λ"))], "ray"))


def dies(folder: Path, lives: int, kept: list[str]) -> Iterator[str]:
    missing = [word for word in ("항아리", "πιθάρι", "جرة") if word not in kept]
    for count, word in enumerate(missing):
        before = len(list(folder.iterdir()))
        if before < lives and count == 1:
            (folder / str(before)).touch()
            os._exit(1)
        yield word


def test_a_call_whose_worker_died_is_sent_again_as_it_is_by_then(tmp_path: Path) -> None:
    kept: list[str] = []
    for _, word in fanout.each([functools.partial(dies, tmp_path, 2, kept)], "ray"):
        kept.append(word)
    assert kept == ["항아리", "πιθάρι", "جرة"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_worker_that_dies_every_time_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="a worker of the Ray cluster died 4 times"):
        list(fanout.each([functools.partial(dies, tmp_path, 99, [])], "ray"))


def endless() -> Iterator[str]:
    while True:
        time.sleep(0.1)
        yield "ក្អម"


def test_what_is_in_hand_is_cancelled() -> None:
    # Both cores are taken and two more calls wait.
    with pytest.raises(KeyboardInterrupt):
        for _ in fanout.each([endless] * 4, "ray"):
            raise KeyboardInterrupt
    found = list(fanout.each([functools.partial(jars, "ko")] * 2, "ray"))
    assert len(found) == 6


def test_a_cluster_that_is_not_ours_is_left_running() -> None:
    fanout.stop()
    assert len(list(fanout.each([functools.partial(jars, "el")], "ray"))) == 2


@pytest.mark.parametrize(
    ("address", "said"),
    [("127.0.0.1:9", "Connection refused"), ("ray://127.0.0.1:10001", "the cluster itself")],
)
def test_a_cluster_that_is_not_there(monkeypatch: pytest.MonkeyPatch, address: str, said: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(OnggiError, match=f"at RAY_ADDRESS={address} cannot be joined .*{said}"):
        list(fanout.each([functools.partial(jars, "ko")], "ray"))


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OnggiError, match=r"on: ray is not installed; pip install 'onggi\[ray\]'"):
        fanout.check("ray")
    fanout.check(None)
