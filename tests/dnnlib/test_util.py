# SPDX-License-Identifier: Apache-2.0
"""dnnlib.util: dictionaries, logging, atomic files, parsing, objects by name, and downloads from a server in
this process.
"""

import errno
import hashlib
import http.server
import io
import os
import pickle
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import dnnlib
from dnnlib import downloads, util
from tests import waiting

ROOT = Path(__file__).resolve().parent.parent.parent
BODY = bytes(range(256)) * 5000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Answers /file, /missing (404), /short (ends early), /flaky (503 twice, then the file), and others.
    Notes what is asked for.

    /resumed sends a fifth of what is left at a time, and the rest when asked; `etag` is the mark of its
    content, `body` the content.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[str] = []
        self.failures = 2
        self.etag, self.body = '"1"', BODY
        self.ranges: list[str | None] = []

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        name = self.path.split("?")[0].rsplit("/", 1)[-1]
        if name == "missing":
            return self.send_error(404)
        if name == "flaky" and self.server.failures > 0:
            self.server.failures -= 1
            return self.send_error(503)
        if name == "resumed":
            return self._resumed()
        if name == "redirect":
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        if name == "zipped":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(2**60 if name == "huge" else len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[: len(BODY) // 2] if name == "short" else BODY)
        return None

    def _resumed(self) -> None:
        asked, body = self.headers.get("Range"), self.server.body
        self.server.ranges.append(asked)
        start = (
            int(asked.removeprefix("bytes=").removesuffix("-"))
            if asked and self.headers.get("If-Range") in (self.server.etag, None)
            else 0
        )
        if start > len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if self.server.etag:
            self.send_header("ETag", self.server.etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        left = len(body) - start
        self.wfile.write(body[start : start + (left // 5 if left > 1000 else left)])
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.delenv("DNNLIB_OFFLINE", raising=False)
    monkeypatch.setattr(util.time, "sleep", lambda seconds: None)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_easy_dict() -> None:
    d = dnnlib.EasyDict(a=1)
    d.b = 2
    assert d == {"a": 1, "b": 2} and d.a == 1 and d["b"] == 2
    del d.a
    assert "a" not in d and not hasattr(d, "a")
    with pytest.raises(AttributeError, match="'a'"):
        del d.a
    assert pickle.loads(pickle.dumps(d)).b == 2


def test_no_torch_is_imported() -> None:
    command = "import dnnlib, sys; sys.exit('torch' in sys.modules)"
    waiting.run([sys.executable, "-c", command], cwd=Path(util.__file__).parents[1], check=True)


def test_logger_copies_both_streams_and_gives_them_back(tmp_path, capsys) -> None:
    before = sys.stdout, sys.stderr
    with util.Logger(tmp_path / "log.txt") as log:
        print("one")
        print("two", file=sys.stderr)
        log.write("three\n")
        assert (tmp_path / "log.txt").read_text() == "one\ntwo\nthree\n"  # flushed at once
        with util.Logger(tmp_path / "inner.txt"):
            print("four")
    assert (sys.stdout, sys.stderr) == before
    log.close()
    assert (tmp_path / "log.txt").read_text() == "one\ntwo\nthree\nfour\n"
    assert (tmp_path / "inner.txt").read_text() == "four\n"
    assert capsys.readouterr() == ("one\nthree\nfour\n", "two\n")
    with util.Logger(tmp_path / "log.txt", file_mode="a"):
        print("five")
    assert (tmp_path / "log.txt").read_text().endswith("four\nfive\n")


def test_logger_gives_streams_back_after_an_error(tmp_path) -> None:
    before = sys.stdout
    with pytest.raises(KeyError), util.Logger(tmp_path / "log.txt"):
        raise KeyError
    assert sys.stdout is before


@pytest.mark.parametrize(
    "seconds,text",
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (187, "3m 07s"),
        (3600, "1h 00m 00s"),
        (7509, "2h 05m 09s"),
        (98400, "1d 03h 20m"),
        (-5, "-5s"),
    ],
)
def test_format_time(seconds: float, text: str) -> None:
    assert util.format_time(seconds) == text


@pytest.mark.parametrize("text", ["4x2", "4,2", " 4 X 2 ", "04,2"])
def test_a_grid_is_columns_and_rows(text):
    assert util.parse_grid(text) == (4, 2)


@pytest.mark.parametrize("text", ["4", "4x", "0x2", "4,0", "-4,2", "4x2x1", "4.5x2", "axb", ""])
def test_what_is_no_grid_is_refused(text):
    with pytest.raises(ValueError, match="write columns x rows, for example 8x4"):
        util.parse_grid(text)


def test_number_parsing() -> None:
    assert util.parse_int_list("0,1, 4-6") == [0, 1, 4, 5, 6]
    assert util.parse_int_list("7") == [7] and util.parse_int_list([3, 1]) == [3, 1]
    assert util.parse_vec2("0.5,-1") == (0.5, -1.0) and util.parse_vec2((1, 2)) == (1.0, 2.0)


@pytest.mark.parametrize(
    "text,words",
    [
        ("1,x", "'x'"),
        ("", "empty"),
        ("3-1", "is descending"),
        ("-1", "'-1'"),
        ("1,,2", "''"),
        ("0-99999999999", "more than"),
    ],
)
def test_bad_int_lists(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        util.parse_int_list(text)


@pytest.mark.parametrize("text", ["1", "1,2,3", "a,b", "1,nan", "inf,0"])
def test_bad_pairs(text: str) -> None:
    with pytest.raises(ValueError, match="two"):
        util.parse_vec2(text)


def test_objects_by_name() -> None:
    assert util.get_obj_by_name("os.path.join") is os.path.join
    assert util.get_obj_by_name("dnnlib.util.EasyDict.keys") is util.EasyDict.keys
    assert util.get_obj_by_name("json") is __import__("json")
    assert util.call_func_by_name(2, 5, func_name="builtins.pow", mod=7) == 4
    assert util.construct_class_by_name({"a": 1}, class_name="dnnlib.EasyDict").a == 1


def test_objects_that_are_not_there(tmp_path, monkeypatch) -> None:
    with pytest.raises(ImportError, match="no module named 'no_such_module'"):
        util.get_obj_by_name("no_such_module.thing")
    with pytest.raises(AttributeError, match="has no member 'joint'"):
        util.get_obj_by_name("os.path.joint")
    with pytest.raises(TypeError, match="is not callable"):
        util.call_func_by_name(func_name="os.sep")
    (tmp_path / "broken_module.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ImportError, match="no_such_dependency"
    ):  # its own fault, not "no module broken_module"
        util.get_obj_by_name("broken_module.thing")


def test_a_full_disk_is_told_with_the_file(tmp_path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: .*x\.pkl") as caught,
        util.atomic_write(tmp_path / "x.pkl"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "x.pkl") and list(tmp_path.iterdir()) == []
    with pytest.raises(OSError) as caught, util.atomic_write(tmp_path / "x.pkl"):
        raise OSError(errno.ECONNRESET, "reset")  # of something else than the file
    assert caught.value.filename is None


def test_a_folder_that_is_not_there_is_told_with_the_file(tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as caught, util.atomic_write(tmp_path / "none" / "x.pkl"):
        pass
    assert caught.value.filename == str(tmp_path / "none" / "x.pkl")


def test_files_of_several_threads_keep_the_umask(tmp_path) -> None:
    def write(i: int) -> None:
        with util.atomic_write(tmp_path / f"{i}") as file:
            file.write(b"x")

    before = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(200)))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_atomic_write(tmp_path) -> None:
    path = tmp_path / "file.bin"
    with util.atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists()
    with pytest.raises(RuntimeError, match="stop"), util.atomic_write(path, "w") as file:
        file.write("half")
        raise RuntimeError("stop")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file.bin"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(ValueError, match="'a'"), util.atomic_write(path, "a"):
        pass


def test_is_url_and_cache_dir(monkeypatch) -> None:
    assert util.is_url("https://example.com/a.pkl") and util.is_url("http://h:80/a")
    assert not any(
        util.is_url(x) for x in ("a/b.pkl", "http://", "file:///a", "ftp://h/a", "C:\\a", None, "http://[bad")
    )
    assert util.is_url("file:///a", allow_file_urls=True)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", "/cache")
    assert util.make_cache_dir_path("a", "b") == os.path.join("/cache", "a", "b")
    monkeypatch.delenv("DNNLIB_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert util.make_cache_dir_path() == os.path.join("/xdg", "dnnlib")


def test_local_files(tmp_path) -> None:
    path = tmp_path / "a file.bin"
    path.write_bytes(BODY)
    for address in (str(path), path.as_uri()):
        with util.open_url(address, sha256=SHA256.upper()) as file:
            assert file.read() == BODY
        assert util.open_url(address, return_filename=True) == str(path)
    assert util.sha256_file(path) == SHA256
    with pytest.raises(ValueError, match=r"sha256 is .* expected 00"):
        util.open_url(str(path), sha256="00")
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nothing"):
        util.open_url(str(tmp_path / "nothing"))


@pytest.mark.parametrize("url", ["ftp://host/a", "s3://bucket/a", "file://host/a", "http:///a"])
def test_odd_addresses_are_refused(url: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=url):
        util.open_url(url, cache_dir=str(tmp_path))


def test_download_is_cached(server: Server, tmp_path, capsys) -> None:
    cache, url = str(tmp_path / "cache"), f"{server.root}/file?key=1"
    path = util.open_url(url, cache, return_filename=True, sha256=SHA256)
    assert Path(path).read_bytes() == BODY and os.listdir(cache) == [os.path.basename(path)]
    with util.open_url(url, cache) as file:
        assert file.read() == BODY
    assert server.requests == ["/file?key=1"]
    assert util.open_url(f"{server.root}/file?key=2", cache, verbose=False, return_filename=True) != path
    assert capsys.readouterr().err == f"Downloading {url}\n"


def test_download_without_cache(server: Server, tmp_path) -> None:
    with util.open_url(
        f"{server.root}/file", str(tmp_path), cache=False, verbose=False, sha256=SHA256
    ) as file:
        assert file.read() == BODY
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="needs cache=True"):
        util.open_url(f"{server.root}/file", cache=False, return_filename=True)


def test_a_damaged_cache_is_fetched_again(server: Server, tmp_path) -> None:
    url = f"{server.root}/file"
    path = Path(util.open_url(url, str(tmp_path), return_filename=True, verbose=False))
    path.write_bytes(b"damage")
    assert (
        Path(
            util.open_url(url, str(tmp_path), return_filename=True, verbose=False, sha256=SHA256)
        ).read_bytes()
        == BODY
    )
    assert len(server.requests) == 2


def test_a_busy_server_is_asked_again(server: Server, tmp_path) -> None:
    with util.open_url(f"{server.root}/flaky", str(tmp_path), verbose=False) as file:
        assert file.read() == BODY
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "name,attempts,requests,words",
    [
        ("missing", 5, 1, "the server answered 404"),
        ("short", 3, 3, r"ended after .* \(3 attempts\)"),
        ("flaky", 1, 1, r"503 .*\(1 attempt\)"),
    ],
)
def test_failures_leave_nothing_behind(
    server: Server, tmp_path, name: str, attempts: int, requests: int, words: str
) -> None:
    with pytest.raises(OSError, match=words):
        util.open_url(f"{server.root}/{name}", str(tmp_path), num_attempts=attempts, verbose=False)
    assert len(server.requests) == requests and os.listdir(tmp_path) == []


def test_a_wrong_hash_leaves_nothing_behind(server: Server, tmp_path) -> None:
    for cache in (True, False):
        with pytest.raises(ValueError, match="sha256 is"):
            util.open_url(f"{server.root}/file", str(tmp_path), verbose=False, sha256="0" * 64, cache=cache)
    assert os.listdir(tmp_path) == [] and len(server.requests) == 2


def test_a_broken_download_goes_on_where_it_stopped(server: Server, tmp_path) -> None:
    url = f"{server.root}/resumed"
    with pytest.raises(OSError, match=r"ended after \d+ of 1280000 bytes \(3 attempts\)"):
        util.open_url(url, str(tmp_path), num_attempts=3, verbose=False)
    parts = sorted(path.name.split("resumed")[1] for path in tmp_path.iterdir())
    assert parts == [".part", ".part.json"] and server.ranges[0] is None
    starts = [int((text or "").removeprefix("bytes=").removesuffix("-")) for text in server.ranges[1:]]
    assert starts == [256_000, 460_800]
    with util.open_url(
        url, str(tmp_path), num_attempts=50, verbose=False, sha256=SHA256
    ) as file:  # as another process would
        assert file.read() == BODY
    assert server.ranges[3] == "bytes=624640-" and len(os.listdir(tmp_path)) == 1


def test_a_download_whose_content_changed_starts_anew(server: Server, tmp_path) -> None:
    url = f"{server.root}/resumed"
    with pytest.raises(OSError, match="ended after"):
        util.open_url(url, str(tmp_path), num_attempts=2, verbose=False)
    server.etag, server.body = '"2"', BODY[::-1]
    with util.open_url(url, str(tmp_path), num_attempts=50, verbose=False) as file:
        assert file.read() == BODY[::-1]
    (part,) = tmp_path.iterdir()
    part.rename(
        str(part) + ".part"
    )  # a partial file that is longer than the content by now, and whose mark still holds
    Path(str(part) + ".part.json").write_text(f'{{"url": "{url}", "mark": "\\"2\\""}}')
    server.body = BODY[:500]
    with util.open_url(url, str(tmp_path), num_attempts=2, verbose=False) as file:
        assert file.read() == BODY[:500]


def test_without_a_mark_nothing_is_kept_but_a_hash_will_do(server: Server, tmp_path) -> None:
    server.etag = ""
    with pytest.raises(OSError, match="ended after 256000 of 1280000"):
        util.open_url(f"{server.root}/resumed", str(tmp_path), num_attempts=3, verbose=False)
    assert server.ranges == [None] * 3 and os.listdir(tmp_path) == []
    with util.open_url(
        f"{server.root}/resumed", str(tmp_path), num_attempts=50, verbose=False, sha256=SHA256
    ) as file:
        assert file.read() == BODY
    assert server.ranges[4] == "bytes=256000-"


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://x", "javascript:x"]
)
def test_redirections_to_other_schemes_are_refused(server: Server, target: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"redirects to .* refused") as error:
        util.open_url(f"{server.root}/redirect?{target}", str(tmp_path), verbose=False)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == [] and len(server.requests) == 1
    with util.open_url(f"{server.root}/redirect?/file", str(tmp_path), verbose=False) as file:
        assert file.read() == BODY


def test_https_is_not_given_up_for_http() -> None:
    request = util.downloads.urllib.request.Request("https://host/a")
    with pytest.raises(ValueError, match="refused: not https"):
        util.downloads._Redirects().redirect_request(request, None, 302, "Found", {}, "http://host/a")


@pytest.mark.parametrize("cache", [True, False])
def test_odd_answers_are_refused_at_once(server: Server, tmp_path, cache: bool, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"announces 1152921504606846976 bytes"):
        util.open_url(f"{server.root}/huge", str(tmp_path), verbose=False, cache=cache)
    with pytest.raises(ValueError, match="encoding that was not requested, 'gzip'"):
        util.open_url(f"{server.root}/zipped", str(tmp_path), verbose=False, cache=cache)
    if cache:
        monkeypatch.setattr(util.downloads, "_SPARE_BYTES", 2**62)
        with pytest.raises(OSError, match=r"it needs .* GiB free"):
            util.open_url(f"{server.root}/file", str(tmp_path), verbose=False)
    assert os.listdir(tmp_path) == []


def test_two_processes_download_once(server: Server, tmp_path) -> None:
    url = f"{server.root}/file"
    code = (
        f"import sys; from dnnlib import util; print(len(util.open_url({url!r}, sys.argv[1], "
        "verbose=False).read()))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "DNNLIB_OFFLINE"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    assert [out for out, _ in waiting.finish(*processes)] == [f"{len(BODY)}\n"] * 4
    assert len(server.requests) == 1 and len(os.listdir(tmp_path)) == 1


def test_no_server(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(util.time, "sleep", lambda seconds: None)
    monkeypatch.delenv("DNNLIB_OFFLINE", raising=False)
    with socket.socket() as silent:  # has a port, and accepts no connection
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/file"
        with pytest.raises(OSError, match=r"cannot download .*\(2 attempts\)"):
            util.open_url(address, str(tmp_path), num_attempts=2, verbose=False)
        with pytest.raises(ValueError, match="num_attempts"):
            util.open_url(address, str(tmp_path), num_attempts=0)


def test_offline_reads_the_cache_and_nothing_else(server: Server, tmp_path, monkeypatch) -> None:
    url = f"{server.root}/file"
    util.open_url(url, str(tmp_path), verbose=False).close()
    monkeypatch.setenv("DNNLIB_OFFLINE", "1")
    util.open_url(url, str(tmp_path)).close()
    with pytest.raises(OSError, match=r"DNNLIB_OFFLINE is set.* put the file at") as error:
        util.open_url(f"{server.root}/other", str(tmp_path))
    assert "\n" not in str(error.value) and server.requests == ["/file"]
    monkeypatch.setenv("DNNLIB_OFFLINE", "0")
    util.open_url(f"{server.root}/other", str(tmp_path), verbose=False).close()


def test_progress_counts_what_was_there_and_survives_a_silent_server(server, tmp_path):
    seen: list[tuple[int, int | None]] = []
    downloads.download(
        f"{server.root}/resumed",
        str(tmp_path / "x"),
        None,
        50,
        lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (len(BODY), len(BODY)) and [done for done, _ in seen] == sorted(
        {done for done, _ in seen}
    )


@pytest.mark.parametrize("place", ["/proc/none/cache", "file"])
def test_a_download_without_a_cache_folder_goes_to_a_temporary_one(server, tmp_path, monkeypatch, place):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / place))
    monkeypatch.setattr(util.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir(mode=0o700)
    url = f"{server.root}/file"
    for _ in range(2):  # the second time it is there
        with pytest.warns(
            UserWarning, match=r"cache folder .*downloads is not writable .*; set DNNLIB_CACHE_DIR"
        ):
            path = util.open_url(url, return_filename=True, verbose=False)
    assert (
        Path(path).read_bytes() == BODY
        and Path(path).is_relative_to(tmp_path / "tmp")
        and server.requests == ["/file"]
    )
    monkeypatch.setattr(util.tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(
        OSError, match=r"downloads is not writable .*, and .* is not usable .*: set DNNLIB_CACHE_DIR"
    ):
        util.open_url(url, return_filename=True, verbose=False)


def test_warnings_of_scripts_are_lines(monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    util.plain_warnings()
    util.plain_warnings()
    ours, others = util.__file__, "/usr/lib/python3/site-packages/torch/nn.py"
    assert warnings.formatwarning(UserWarning("no cache"), UserWarning, ours, 7) == "Warning: no cache\n"
    assert "nn.py:7: UserWarning: odd input" in warnings.formatwarning(
        UserWarning("odd input"), UserWarning, others, 7
    )
    assert ": DeprecationWarning: gone soon" in warnings.formatwarning(
        DeprecationWarning("gone soon"), DeprecationWarning, ours, 7
    )


def test_stdout_escapes_what_it_cannot_write(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    util.print_any_name()
    print("caf\xe9 \udce9", end="", flush=True)
    assert stream.buffer.getvalue() == rb"caf\xe9 \udce9"
    stream.close()
    util.print_any_name()  # of a program without a stdout: nothing to do


def test_a_convenience_warns_of_files_alone(tmp_path):
    reason = (
        r"curves\.png cannot be written: No such file or directory \(.*curves\.png\); continuing without it"
    )
    with pytest.warns(UserWarning, match=reason), util.warn_if_unwritable("curves.png"):
        (tmp_path / "nowhere" / "curves.png").write_text("")
    with pytest.raises(ValueError, match="a mistake"), util.warn_if_unwritable("curves.png"):
        raise ValueError("a mistake")


def test_an_error_that_cannot_travel_is_described() -> None:
    class Local(Exception):
        pass

    class LocalValue(ValueError):
        pass

    error = pickle.loads(util.pickled_error(Local("reason")))
    assert type(error) is RuntimeError and str(error) == "Local: reason"
    error = pickle.loads(util.pickled_error(LocalValue("reason")))
    assert type(error) is ValueError and str(error) == "LocalValue: reason"
    error = pickle.loads(util.pickled_error(util.Damaged("reason")))
    assert type(error) is util.Damaged and str(error) == "reason"
