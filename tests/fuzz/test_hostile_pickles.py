# SPDX-License-Identifier: Apache-2.0
"""The hostile corpus and a short fuzzing run: nothing runs, nothing hangs, memory stays bounded."""

import io
import json
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import waiting
from tests.example_counts import examples
from tests.fuzz import hostile
from tools.fuzz_pickles import mutate

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def files():
    good = hostile.good_files()
    for content in good:
        hostile.attempt(content)
    return good + [content for _, content in hostile._chains() if len(content) < 2000]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every payload that runs would leave a file here."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def test_the_watch_sees_executions(tmp_path, monkeypatch):
    """Without this the tests below could pass blindly."""
    import pickle

    with hostile.watch() as events:
        pickle.loads(pickle.dumps({"G_ema": hostile.Evil()}))
    assert {event.split()[0] for event in events} >= {"exec", "open", "pickle.find_class"}
    Path("pwned").unlink()
    with hostile.watch() as events:
        hostile.attempt(hostile.small_file())
    assert not events


@pytest.mark.parametrize("options", [["--short"], pytest.param([], marks=pytest.mark.exhaustive)])
def test_corpus(options, tmp_path):
    """In a process of its own, whose memory is measured."""
    result = waiting.run(
        [sys.executable, "-m", "tools.fuzz_pickles", "--corpus", *options],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["inputs"] > 1500 and report["refused"] > 1000
    assert report["executions"] == report["hangs"] == report["errors"] == 0
    assert report["peak_mb"] < 256


@pytest.mark.parametrize(
    "dotted",
    [
        "os.system",
        "posix.system",
        "subprocess.Popen",
        "builtins.eval",
        "builtins.exec",
        "builtins.__import__",
    ],
)
def test_classics_are_refused_by_name(dotted, files):
    found = [
        content for case, content in hostile._calls() if case in (f"{dotted} reduce", f"{dotted} protocol 2")
    ]
    assert len(found) == 2
    for content in found:
        with pytest.raises(ValueError, match=f"refused global {dotted}".replace(".", r"\.")):
            hostile.persistence.read_network_pickle(io.BytesIO(content))


def test_every_cut_of_a_small_file(files):
    content = hostile.small_file()
    assert len(content) < 2000
    with hostile.watch() as events:
        for end in range(len(content)):
            assert hostile.attempt(content[:end]) == "refused"
    assert hostile.attempt(content) == "inert" and not events


@pytest.mark.parametrize("name", ["z_dim", "w_dim"])
def test_sizes_beyond_int64_are_refused(name, files):
    G = hostile.persistence.read_network_pickle(io.BytesIO(files[0]))["G_ema"]
    G.state[name] = 2**255
    with pytest.raises(ValueError, match="its sizes are impossible"):
        hostile.from_stub(G)


@settings(deadline=None, max_examples=examples(200))
@given(st.integers(0, 2**64))
def test_any_damage(files, seed):
    content = mutate(random.Random(seed), files)
    with hostile.watch() as events:
        hostile.attempt(content)
    assert not events


@settings(deadline=None, max_examples=examples(200))
@given(st.binary(max_size=200))
def test_any_bytes(files, content):
    with hostile.watch() as events:
        hostile.attempt(content)
        hostile.attempt(b"\x80\x04" + content + b".")
    assert not events
