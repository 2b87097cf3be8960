# SPDX-License-Identifier: Apache-2.0
"""Networks by address: what comes from a server and is no network does not stay, and every way to name one
works in every reader."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import convert
import gen_images
import train
from dnnlib import util
from generation import render
from tests.file_server import FileServer, running
from torch_utils.persistence import save_network_pickle
from training.generator import Generator, build_stem
from training.networks import files, finetune, stems
from training.networks.reader import load

READERS: dict[str, Callable[[str], Any]] = {
    "gen_images": render.load_network,
    "convert": lambda address: convert.read(address, False),
    "--init-from": finetune.read,
    "--path_stem": stems.read_stem,
    "generator": load,
}
HALF_PAGE = b"<!DOCTYPE html><html>quota exceeded</html>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """net.pkl, and net.safetensors with net.json."""
    torch.manual_seed(0)
    G: Generator = build_stem("stylegan3-t", 16, 0, syn_layers=6, cbase=256, cmax=8)
    path = tmp_path_factory.mktemp("networks")
    save_network_pickle(
        path / "net.pkl", {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": {}}
    )
    files.write_safetensors(path / "net.safetensors", files.NetworkFile({"G_ema": G}))
    return path


@pytest.fixture
def server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.delenv("DNNLIB_OFFLINE", raising=False)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(util.time, "sleep", lambda seconds: None)
    with running() as server:
        yield server


def kept(tmp_path: Path) -> list[str]:
    path = tmp_path / "cache" / "downloads"
    return sorted(os.listdir(path)) if path.exists() else []


@pytest.mark.parametrize(
    "reader, bad",
    [*((name, "web page") for name in READERS), ("convert", "half a file"), ("convert", "nothing")],
)
def test_a_bad_answer_is_not_kept(
    reader: str, bad: str, server: FileServer, folder: Path, tmp_path: Path
) -> None:
    whole = (folder / "net.pkl").read_bytes()
    server.answers["/net.pkl"] = {
        "web page": HALF_PAGE,
        "half a file": whole[: len(whole) // 2],
        "nothing": b"",
    }[bad]
    with pytest.raises(
        ValueError,
        match=rf"^{server.root}/net\.pkl: not a network pickle .* \(the copy {tmp_path}\S+ is removed",
    ) as error:
        READERS[reader](f"{server.root}/net.pkl")
    assert kept(tmp_path) == [] and "\n" not in str(error.value)
    server.answers["/net.pkl"] = whole
    READERS[reader](f"{server.root}/net.pkl")
    READERS[reader](f"{server.root}/net.pkl")
    assert server.requests == ["/net.pkl"] * 2 and len(kept(tmp_path)) == 1


@pytest.mark.parametrize("reader", ["gen_images", "--path_stem"])
def test_a_copy_that_went_bad_is_fetched_again(reader: str, server: FileServer, folder: Path) -> None:
    server.answers["/net.pkl"] = (folder / "net.pkl").read_bytes()
    Path(files.fetch(f"{server.root}/net.pkl")).write_bytes(HALF_PAGE)
    READERS[reader](f"{server.root}/net.pkl")
    assert server.requests == ["/net.pkl"] * 2


@pytest.mark.parametrize(
    "reader, config",
    [
        ("gen_images", "net.json"),
        ("convert", "config.json"),
        ("--init-from", "net.json"),
        ("--path_stem", "net.json"),
    ],
)
def test_the_json_of_safetensors_comes_along(
    reader: str, config: str, server: FileServer, folder: Path, tmp_path: Path
) -> None:
    server.answers["/a/net.safetensors"] = (folder / "net.safetensors").read_bytes()
    with pytest.raises(
        FileNotFoundError, match=r"net\.safetensors: the server has no net\.json or config\.json beside it"
    ):
        READERS[reader](f"{server.root}/a/net.safetensors")
    server.answers[f"/a/{config}"] = HALF_PAGE
    with pytest.raises(ValueError, match=r"not valid JSON.*is removed"):
        READERS[reader](f"{server.root}/a/net.safetensors")
    assert kept(tmp_path) == []
    server.answers[f"/a/{config}"] = (folder / "net.json").read_bytes()
    READERS[reader](f"{server.root}/a/net.safetensors")
    assert len(kept(tmp_path)) == 2
    server.answers.clear()
    READERS[reader](f"{server.root}/a/net.safetensors")


def test_half_of_safetensors_is_not_kept(server: FileServer, folder: Path, tmp_path: Path) -> None:
    server.answers["/net.safetensors"] = (folder / "net.safetensors").read_bytes()[:-100]
    server.answers["/net.json"] = (folder / "net.json").read_bytes()
    with pytest.raises(ValueError, match=rf"^{server.root}/net\.safetensors: not a safetensors file"):
        render.load_network(f"{server.root}/net.safetensors")
    assert kept(tmp_path) == []


def test_a_stem_may_be_safetensors(folder: Path) -> None:
    stem = stems.read_stem(str(folder / "net.safetensors"))
    pickled = stems.read_stem(str(folder / "net.pkl"))
    assert (
        stem.stems[0]["sha256"] == util.sha256_file(folder / "net.safetensors")
        and stem.stems[0]["resolution"] == 16
    )
    state = pickled.generator.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in stem.generator.state_dict().items())


def test_a_whole_file_that_is_refused_stays(server: FileServer, tmp_path: Path) -> None:
    """It may be wanted with --trust-pickle, and would come again the same."""
    save_network_pickle(tmp_path / "other.pkl", {"G_ema": torch.nn.Linear(2, 2)})
    server.answers["/other.pkl"] = (tmp_path / "other.pkl").read_bytes()
    for _ in range(2):
        with pytest.raises(
            ValueError, match=rf"^{server.root}/other\.pkl: .*not a generator.* \(the copy is {tmp_path}"
        ):
            render.load_network(f"{server.root}/other.pkl")
    assert server.requests == ["/other.pkl"]


@pytest.mark.parametrize("reader", ["gen_images", "--path_stem"])
def test_odd_but_good_addresses(reader: str, server: FileServer, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "my nét.pkl"
    path.write_bytes((folder / "net.pkl").read_bytes())
    server.answers["/my%20n%C3%A9t.pkl"] = path.read_bytes()
    for address in (f"{server.root}/my nét.pkl", path.as_uri(), str(path)):
        READERS[reader](address)


def test_commands_take_file_addresses(folder: Path, tmp_path: Path) -> None:
    address = (folder / "net.pkl").as_uri()
    result = CliRunner().invoke(
        gen_images.main,
        ["--network", address, "--seeds=0", "--outdir", str(tmp_path / "out"), "--device=cpu"],
    )
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(
        convert.main, ["--source", address, "--dest", str(tmp_path / "n.safetensors")]
    )
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(
        convert.main, ["--source", (tmp_path / "n.safetensors").as_uri(), "--dest", str(tmp_path / "n.pkl")]
    )
    assert result.exit_code == 0, result.output
    for flag in ("--init-from", "--resume"):
        result = CliRunner().invoke(train.main, [flag, "file:///no%20where/x.pkl", "--outdir", str(tmp_path)])
        assert result.exit_code == 1 and f"{flag}=/no where/x.pkl: no such file" in result.output
