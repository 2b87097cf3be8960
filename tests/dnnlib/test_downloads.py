# SPDX-License-Identifier: Apache-2.0
"""Downloads from servers that mean no good: slow, endless, in circles; and addresses that people write."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dnnlib import downloads, util
from tests import waiting
from tests.file_server import FileServer, Handler, running

ROOT = Path(__file__).resolve().parents[2]
BODY = bytes(range(256)) * 100


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.delenv("DNNLIB_OFFLINE", raising=False)
    monkeypatch.setattr(util.time, "sleep", lambda seconds: None)
    with running() as server:
        yield server


def trickle(handler: Handler, start: bytes) -> None:
    """A byte now and then, without end."""
    handler.wfile.write(start)
    while not handler.server.closing.wait(0.02):
        handler.wfile.write(b"x")


SLOW: dict[str, Callable[[Handler], None]] = {
    "body": lambda handler: trickle(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"),
    "body of unknown length": lambda handler: trickle(handler, b"HTTP/1.0 200 OK\r\n\r\n"),
    "status": lambda handler: trickle(handler, b"HTTP/1.1 200 "),
    "header": lambda handler: trickle(handler, b"HTTP/1.1 200 OK\r\nX: "),
    "chunk": lambda handler: trickle(handler, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "nothing": lambda handler: trickle(handler, b"") if handler.server.closing.wait() else None,
}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("what", SLOW)
def test_a_server_that_trickles_is_left(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, cache: bool
) -> None:
    """However fast or busy this machine is: what is asked for is more than any server sends."""
    monkeypatch.setattr(downloads, "_WINDOW_SECONDS", 0.1)
    monkeypatch.setenv(downloads.MIN_RATE_VARIABLE, "1e9")
    server.answers["/file"] = SLOW[what]
    with pytest.raises(
        OSError, match=r"cannot download .* too slow: below .*DNNLIB_MIN_DOWNLOAD_RATE.*\(2 attempts\)"
    ) as error:
        util.open_url(f"{server.root}/file", str(tmp_path), cache=cache, verbose=False)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == []


def test_a_slow_start_is_no_fault(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(downloads.MIN_RATE_VARIABLE, "0")
    monkeypatch.setattr(downloads, "_WINDOW_SECONDS", 0.01)

    def answer(handler: Handler) -> None:
        handler.server.closing.wait(0.2)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    server.answers["/file"] = answer
    assert util.open_url(f"{server.root}/file", str(tmp_path), verbose=False).read() == BODY


def endless(handler: Handler) -> None:
    handler.wfile.write(b'HTTP/1.0 200 OK\r\nETag: "1"\r\n\r\n')
    while not handler.server.closing.is_set():
        handler.wfile.write(b"x" * 2**16)


@pytest.mark.parametrize("cache", [True, False])
def test_a_download_without_end_ends(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: bool
) -> None:
    monkeypatch.setenv(downloads.MAX_GB_VARIABLE, "0.01")
    server.answers["/file"] = endless
    with pytest.raises(
        ValueError, match=r"sent more than the limit of 10,000,000 bytes \(DNNLIB_MAX_DOWNLOAD_GB\)"
    ):
        util.open_url(f"{server.root}/file", str(tmp_path), cache=cache, verbose=False)
    assert os.listdir(tmp_path) == [] and len(server.requests) == 1


def test_an_announced_length_is_believed_up_to_the_limit(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answers["/file"] = BODY
    monkeypatch.setenv(downloads.MAX_GB_VARIABLE, str((len(BODY) - 1) / 1e9))
    with pytest.raises(ValueError, match="announces 25600 bytes; the limit is 25,599"):
        util.open_url(f"{server.root}/file", str(tmp_path), verbose=False)
    monkeypatch.setenv(downloads.MAX_GB_VARIABLE, str(len(BODY) / 1e9))
    assert util.open_url(f"{server.root}/file", str(tmp_path), verbose=False).read() == BODY


@pytest.mark.parametrize("variable", [downloads.MAX_GB_VARIABLE, downloads.MIN_RATE_VARIABLE])
@pytest.mark.parametrize("value", ["many", "-1", "nan", "inf"])
def test_settings_are_numbers(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    server.answers["/file"] = BODY
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable}={value}: must be a non-negative number"):
        util.open_url(f"{server.root}/file", str(tmp_path), verbose=False)


def redirect(target: str, body: bytes = b"") -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.wfile.write(f"HTTP/1.0 302 Found\r\nLocation: {target}\r\n\r\n".encode() + body)
        while body and not handler.server.closing.is_set():
            handler.wfile.write(body)

    return answer


def test_redirections_in_a_circle(server: FileServer, tmp_path: Path) -> None:
    server.answers.update({"/a": redirect("/b"), "/b": redirect("/a")})
    with pytest.raises(OSError, match=r"/a: the server redirects in a loop$"):
        util.open_url(f"{server.root}/a", str(tmp_path), verbose=False)
    assert len(server.requests) < 30 and os.listdir(tmp_path) == []


def test_the_body_of_a_redirection_is_not_read(server: FileServer, tmp_path: Path) -> None:
    server.answers.update({"/a": redirect("/b", b"x" * 2**16), "/b": BODY})
    assert util.open_url(f"{server.root}/a", str(tmp_path), verbose=False).read() == BODY


@pytest.mark.parametrize(
    "written, asked",
    [
        ("/a file.pkl", "/a%20file.pkl"),
        ("/a%20file.pkl", "/a%20file.pkl"),
        ("/Zürich/网络.pkl?key=ä b&x=1", "/Z%C3%BCrich/%E7%BD%91%E7%BB%9C.pkl?key=%C3%A4%20b&x=1"),
        ("/100%.pkl", "/100%25.pkl"),
        ("/a(1)+b,c;d=e@f:g~h.pkl", "/a(1)+b,c;d=e@f:g~h.pkl"),
    ],
)
def test_addresses_as_people_write_them(server: FileServer, tmp_path: Path, written: str, asked: str) -> None:
    server.answers[asked] = BODY
    assert util.open_url(server.root + written, str(tmp_path), verbose=False).read() == BODY
    assert server.requests == [asked]


def test_hosts_beyond_ascii() -> None:
    assert (
        downloads.encoded("https://bücher.example:8443/ä?b#c")
        == "https://xn--bcher-kva.example:8443/%C3%A4?b"
    )
    with pytest.raises(ValueError, match="host name cannot be encoded in ASCII"):
        downloads.encoded(f"https://{'ü' * 80}/x")


def test_an_address_that_is_none_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DNNLIB_OFFLINE", raising=False)
    with pytest.raises(ValueError, match="not a valid URL"):
        util.open_url("http://127.0.0.1:port/file", str(tmp_path), verbose=False)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such rights here")
def test_cache_folders_are_private_whatever_the_umask(server: FileServer, tmp_path: Path) -> None:
    server.answers["/file"] = BODY
    code = "import os, sys; os.umask(0); from dnnlib import util; util.open_url(sys.argv[1], verbose=False)"
    environment = os.environ | {"DNNLIB_CACHE_DIR": str(tmp_path / "a" / "b")}
    waiting.run([sys.executable, "-c", code, f"{server.root}/file"], cwd=ROOT, env=environment, check=True)
    folders = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "downloads"]
    assert [path.stat().st_mode & 0o777 for path in folders] == [0o700] * 3
    (copy,) = folders[-1].iterdir()
    assert copy.stat().st_mode & 0o022 == 0


def test_a_second_file_comes_along(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    server.answers.update({"/a/n.bin?key=1": b"one", "/a/config.json?key=1": b"{}"})
    path = util.fetch(f"{server.root}/a/n.bin?key=1", beside=("n.json", "config.json"))
    assert Path(path).read_bytes() == b"one" and Path(path).with_suffix(".json").read_bytes() == b"{}"
    assert server.requests == ["/a/n.bin?key=1", "/a/n.json?key=1", "/a/config.json?key=1"]
    assert (
        util.fetch(f"{server.root}/a/n.bin?key=1", beside=("n.json", "config.json")) == path
        and len(server.requests) == 3
    )
    server.answers["/m.bin"] = b"two"
    with pytest.raises(
        FileNotFoundError, match=r"m\.bin: the server has no m\.json or config\.json beside it"
    ):
        util.fetch(f"{server.root}/m.bin", beside=("m.json", "config.json"))


def test_what_a_reader_finds_damaged_leaves_the_cache(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    url = f"{server.root}/file"

    def read(path: str) -> bytes:
        content = Path(path).read_bytes()
        if content == b"<html>":
            raise util.Damaged(f"{path}: it is a web page")
        if content == b"odd":
            raise ValueError(f"{path}: it is odd")
        return content

    server.answers["/file"] = b"<html>"
    for _ in range(2):
        with pytest.raises(
            util.Damaged, match=rf"^{url}: it is a web page \(the copy {tmp_path}\S* is removed"
        ):
            util.read_from(url, read)
    assert len(server.requests) == 2 and os.listdir(tmp_path / "downloads") == []
    Path(util.open_url(url, return_filename=True)).write_bytes(b"<html>")  # as an earlier version left it
    server.answers["/file"] = BODY
    assert util.read_from(url, read) == BODY
    server.answers["/odd"] = b"odd"  # whole, but nothing for us: no reason to fetch it again and again
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^{server.root}/odd: it is odd \(the copy is {tmp_path}"):
            util.read_from(f"{server.root}/odd", read)
    assert server.requests.count("/odd") == 1


def test_a_damaged_copy_is_told_offline_too(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path))
    server.answers["/file"] = BODY
    url = f"{server.root}/file"
    util.fetch(url)
    monkeypatch.setenv("DNNLIB_OFFLINE", "1")

    def read(path: str) -> None:
        raise util.Damaged(f"{path}: half a file")

    with pytest.raises(util.Damaged, match="half a file"):
        util.read_from(url, read)


def test_file_addresses_are_paths(tmp_path: Path) -> None:
    path = tmp_path / "a file ä.bin"
    path.write_bytes(BODY)
    for address in (
        path.as_uri(),
        f"file://localhost{path.as_uri()[7:]}",
        f"file:{path.as_uri()[7:]}",
        str(path),
    ):
        assert util.plain_path(address) == str(path) and util.fetch(address) == str(path)
        assert util.read_from(address, lambda local: Path(local).read_bytes()) == BODY
        assert util.open_url(address).read() == BODY
    assert util.plain_path("http://host/a") == "http://host/a" and util.plain_path("fileless") == "fileless"
