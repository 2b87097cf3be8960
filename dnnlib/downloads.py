# SPDX-License-Identifier: Apache-2.0
"""Downloads over http(s) for `dnnlib.util.open_url`: resumable, bounded, verified, one process at a time.

Two files lie beside an unfinished download NAME: NAME.part contains the bytes received so far, and
NAME.part.json the server's validator (ETag or Last-Modified) of that content. A later attempt or process
requests the rest, and gets the whole file if the server's content has changed since.

Two limits protect against servers that send without end or very slowly. Both can be set in the environment:
* DNNLIB_MAX_DOWNLOAD_GB: the largest file in GB; 16 if the server announces the length, 2 if it does not.
* DNNLIB_MIN_DOWNLOAD_RATE: bytes per second, 1000; a server below this rate for 20 seconds is given up. 0
  disables the limit.
"""

import contextlib
import errno
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from dnnlib.files import NO_SPACE
from dnnlib.locks import file_lock

SCHEMES = ("http", "https")
MAX_GB_VARIABLE, MIN_RATE_VARIABLE = "DNNLIB_MAX_DOWNLOAD_GB", "DNNLIB_MIN_DOWNLOAD_RATE"
MAX_GB = 16.0  # of one download
MAX_GB_UNANNOUNCED = 2.0  # if the server does not announce the length
MAX_BYTES_IN_MEMORY = 2**30
MIN_RATE = 1000.0  # bytes per second
_WINDOW_SECONDS = 20.0  # the rate is measured over this time
_HEADER_WINDOWS = 2  # a response must start within this many windows
_MAX_SLOW_ATTEMPTS = 2  # in a row
_SPARE_BYTES = 64 * 2**20  # disk space that a download leaves free
_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_MAX_WAIT_SECONDS = 30.0
# HTTP status codes after which a retry can succeed; other 4xx codes are final.
_RETRY_STATUS = (408, 425, 429)
_GONE_STATUS = (404, 410)
_PASSING = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)
_FULL = (*NO_SPACE, errno.EFBIG)
# Characters of a URL that have a meaning or are part of an encoding, and must not be encoded.
_SAFE = "!#$%&'()*+,/:;=?@[]~"

_T = TypeVar("_T")
Progress = Callable[[int, int | None], None]  # bytes received, total bytes (None if not announced)


def download(
    url: str, path: str, sha256: str | None, num_attempts: int, progress: Progress | None = None
) -> None:
    """Download an http(s) URL to `path`. The file appears under this name only when it is complete.

    Args:
        url: the address.
        path: the file to write.
        sha256: expected hash of the content; None = not checked.
        num_attempts: maximum number of attempts.
        progress: called with (bytes received, total bytes or None).

    Raises:
        ValueError: forbidden redirect, too large, or wrong hash; no partial file is kept.
        FileNotFoundError: the server does not have the file.
        OSError: every attempt failed, the server is too slow, or the disk is full.
    """
    mark = path + ".part.json"
    with _partial(path + ".part") as file:
        if os.path.isfile(path) and (sha256 is None or _sha256(path) == sha256.lower()):
            os.unlink(path + ".part")  # another process has finished the download in the meantime
            return
        try:
            with_attempts(url, num_attempts, lambda: _continue(url, file, mark, sha256, progress))
            file.flush()
            os.fsync(file.fileno())
            compare_sha256(url, _sha256(path + ".part"), sha256)
        except ValueError:
            _remove(path + ".part", mark)
            raise
        except OSError as error:
            if error.errno in _FULL and error.filename is None:
                error.filename = path  # the system's error does not name the file
            raise
        _remove(mark)
        os.replace(path + ".part", path)


def _remove(*paths: str) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def fetch(url: str, sha256: str | None, num_attempts: int) -> io.BytesIO:
    """Download an http(s) URL into memory. Raises the same errors as `download`."""

    def attempt() -> bytes:
        with _Watch() as watch, _open(url, {}, watch) as response:
            return b"".join(_blocks(url, response, 0, watch, MAX_BYTES_IN_MEMORY))

    data = with_attempts(url, num_attempts, attempt)
    compare_sha256(url, hashlib.sha256(data).hexdigest(), sha256)
    return io.BytesIO(data)


def with_attempts(url: str, num_attempts: int, action: Callable[[], _T]) -> _T:
    """Run `action`, and retry after transient errors (connection, timeout, busy server).

    Raises:
        OSError: every attempt failed.
        ValueError: the URL is not valid.
    """
    wait, slow = 1.0, 0
    for attempt in range(1, num_attempts + 1):
        try:
            return action()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in _RETRY_STATUS:
                raise _refusal(url, error) from None
            reason = f"{error.code} {error.reason}"
        except http.client.InvalidURL:
            raise ValueError(f"{url}: not a valid URL") from None
        except _PASSING as error:
            reason = str(getattr(error, "reason", "") or error) or "the connection was lost"
            slow = slow + 1 if isinstance(error, _TooSlow) else 0
        if slow == _MAX_SLOW_ATTEMPTS or attempt == num_attempts:
            break
        time.sleep(wait)
        wait = min(2 * wait, _MAX_WAIT_SECONDS)
    attempts = f"{attempt} attempt{'s' if attempt > 1 else ''}"
    raise OSError(f"cannot download {url}: {' '.join(reason.split())} ({attempts})")


def _refusal(url: str, error: urllib.error.HTTPError) -> OSError:
    """The exception for an HTTP error that a retry does not cure."""
    if "loop" in str(error.reason):  # urllib's message for too many redirects
        return OSError(f"cannot download {url}: the server redirects in a loop")
    text = f"cannot download {url}: the server answered {error.code} {' '.join(str(error.reason).split())}"
    return FileNotFoundError(text) if error.code in _GONE_STATUS else OSError(text)


def compare_sha256(what: str, found: str, wanted: str | None) -> None:
    """Raise ValueError if a hash is expected and a different one was found."""
    if wanted is not None and found != wanted.lower():
        raise ValueError(
            f"{what}: sha256 is {found}, expected {wanted.lower()}; the file is damaged or a different one"
        )


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _partial(path: str) -> Iterator[IO[bytes]]:
    """Open the partial file, locked, for reading and writing.

    At the end it is kept only if a later attempt can resume from it.
    """
    with (
        file_lock(path + ".lock", f"downloads {path}", remove=True),
        os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file,
    ):
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                is_ours = os.path.samestat(os.stat(path), os.fstat(file.fileno()))
                if is_ours and (file.seek(0, os.SEEK_END) == 0 or not os.path.exists(path + ".json")):
                    os.unlink(path)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only, and from https to https only."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if new not in SCHEMES or (old == "https" and new != "https"):
            raise ValueError(
                f"{req.full_url}: the server redirects to {newurl[:200]!r}, which is refused: not "
                f"{'https' if old == 'https' else 'http(s)'}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> Any:
        target = headers.get("location") or headers.get("uri") or ""
        scheme = re.match(
            r"([A-Za-z][A-Za-z0-9+.-]*):", target
        )  # checked before urllib, whose message is longer
        if scheme and scheme[1].lower() not in SCHEMES:
            raise ValueError(
                f"{req.full_url}: the server redirects to {target[:200]!r}, which is refused: not http(s)"
            )
        fp.close()  # otherwise urllib reads the whole body
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _TooSlow(http.client.HTTPException):
    """The server sends data below the minimum rate."""


class _Watch:
    """Shuts down a slow connection, so that the blocked reader returns; __exit__ then raises _TooSlow.

    Socket time-outs restart with every byte received, so a server that sends single bytes could block a
    reader without end.
    """

    def __init__(self) -> None:
        self.rate = _setting(MIN_RATE_VARIABLE, MIN_RATE)
        self.received = 0  # bytes of the body so far
        self.connection: http.client.HTTPConnection | None = None
        self.sock: socket.socket | None = None
        self._expired = False
        self._over = threading.Event()

    def __enter__(self) -> "_Watch":
        if self.rate > 0:
            threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: Any) -> None:
        self._over.set()
        if self._expired and (error is None or isinstance(error, Exception)):
            least = f"below {self.rate:,.0f} bytes per second for {_WINDOW_SECONDS:.0f} seconds"
            raise _TooSlow(
                f"the server is too slow: {least} (set {MIN_RATE_VARIABLE} to change the minimum)"
            ) from None

    def _run(self) -> None:
        before, windows = 0, 0
        while not self._over.wait(_WINDOW_SECONDS):
            windows += 1
            if self.received - before < self.rate * _WINDOW_SECONDS and (
                self.received or windows >= _HEADER_WINDOWS
            ):
                self._expired = True
                break
            before = self.received
        while self._expired and not self._over.is_set():
            self._cut()
            self._over.wait(1)  # a new connection may be opening right now

    def _cut(self) -> None:
        sock = getattr(self.connection, "sock", None) or self.sock
        if sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket.shutdown is not thread-safe

    def connecting(self, kind: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
        """A subclass of the connection class whose connections this watch can shut down."""
        watch = self

        class Connection(kind):  # type: ignore[misc, valid-type]
            def connect(self) -> None:
                watch.connection, watch.sock = self, None
                super().connect()
                watch.sock = self.sock  # urllib drops its reference while the body is read

        return Connection


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Opens http and https connections that a `_Watch` monitors."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self.watch.connecting(http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self.watch.connecting(http.client.HTTPSConnection), req, context=self._context)  # type: ignore[attr-defined]


def _setting(variable: str, default: float) -> float:
    """A non-negative number from an environment variable.

    Raises:
        ValueError: not a non-negative number.
    """
    text = os.environ.get(variable, "").strip()
    try:
        value = float(text or default)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise ValueError(f"{variable}={text}: must be a non-negative number")
    return value


def encoded(url: str) -> str:
    """Encode a URL for a request: spaces and non-ASCII characters as %XX, the host name in ASCII (IDNA).

    Raises:
        ValueError: the host name cannot be encoded.
    """
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc
    if not host.isascii():
        try:
            host = ":".join(part.encode("idna").decode() for part in host.split(":"))
        except UnicodeError:
            raise ValueError(f"{url}: the host name cannot be encoded in ASCII") from None
    rest = urllib.parse.urlunsplit(("", "", parts.path, parts.query, ""))
    quoted = urllib.parse.quote(re.sub("%(?![0-9A-Fa-f]{2})", "%25", rest), safe=_SAFE)
    return f"{parts.scheme}://{host}{quoted}"


def _open(url: str, headers: dict[str, str], watch: _Watch) -> Any:
    request = urllib.request.Request(
        encoded(url), headers={"User-Agent": "dnnlib", "Accept-Encoding": "identity", **headers}
    )
    response = urllib.request.build_opener(_Redirects, _Handler(watch)).open(
        request, timeout=_TIMEOUT_SECONDS
    )
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        response.close()
        raise ValueError(
            f"{url}: the server uses a content encoding that was not requested, {encoding[:40]!r}"
        )
    return response


def _blocks(
    url: str, response: Any, start: int, watch: _Watch, most: float = float("inf")
) -> Iterator[bytes]:
    """Yield the body of a response block by block as it arrives.

    Args:
        url: the address, for error messages.
        response: the open response.
        start: bytes of the file received by earlier attempts.
        watch: counts the received bytes.
        most: maximum size of the file in bytes, in addition to the general limit.

    Raises:
        ValueError: the file is larger than the limit.
        http.client.HTTPException: the body ends before its announced length.
    """
    announced = response.headers.get("Content-Length")
    limit = int(
        min(most, 1e9 * _setting(MAX_GB_VARIABLE, MAX_GB_UNANNOUNCED if announced is None else MAX_GB))
    )
    if announced is not None and (not announced.isdecimal() or start + int(announced) > limit):
        allowed = f"the limit is {limit:,} ({MAX_GB_VARIABLE})"
        raise ValueError(f"{url}: the server announces {announced[:40]} bytes; {allowed}")
    received = 0
    while block := response.read1(
        _BLOCK_BYTES
    ):  # returns what has arrived; read() would wait for a full block
        received += len(block)
        watch.received += len(block)
        if start + received > limit:
            sent = f"sent more than the limit of {limit:,} bytes ({MAX_GB_VARIABLE})"
            raise ValueError(f"{url}: the server did not announce a length and {sent}")
        yield block
    if announced is not None and received != int(announced):
        raise http.client.HTTPException(
            f"the connection ended after {start + received} of {start + int(announced)} bytes"
        )


def _continue(url: str, file: IO[bytes], state: str, sha256: str | None, progress: Progress | None) -> None:
    """One attempt: resume the partial `file`, or start from the beginning."""
    mark = _read_mark(state, url)
    start = file.seek(0, os.SEEK_END) if mark or sha256 else 0
    headers = {"Range": f"bytes={start}-", **({"If-Range": mark} if mark else {})} if start else {}
    with _Watch() as watch:
        try:
            response = _open(url, headers, watch)
        except urllib.error.HTTPError as error:
            if error.code != 416 or not start:
                raise
            error.close()
            start, response = 0, _open(url, {}, watch)  # the server's content has changed
        with response:
            if start and (
                response.status != 206
                or not response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            ):
                if response.status == 206:
                    raise http.client.HTTPException("the server sent a different byte range than requested")
                start = 0
            file.seek(start)
            file.truncate()
            if not start:
                _write_mark(state, url, response.headers)
            _receive(url, response, file, state, start, watch, progress)
    file.flush()


def _receive(
    url: str, response: Any, file: IO[bytes], path: str, start: int, watch: _Watch, progress: Progress | None
) -> None:
    """Write the body of a response to the file, while checking the free space of the disk of `path`."""
    announced = response.headers.get("Content-Length")
    total = start + int(announced) if announced and announced.isdecimal() else None
    checked_again_at = start
    for block in _blocks(url, response, start, watch):
        if file.tell() >= checked_again_at:
            checked_again_at = file.tell() + _SPARE_BYTES
            _check_room(url, path, len(block) if total is None else total - file.tell())
        file.write(block)
        if progress is not None:
            progress(file.tell(), total)


def _check_room(url: str, path: str, needed: int) -> None:
    folder = os.path.dirname(path) or "."
    free = shutil.disk_usage(folder).free
    if needed + _SPARE_BYTES > free:
        room = f"it needs {needed / 2**30:.1f} GiB, but {folder} has {free / 2**30:.1f} GiB free"
        raise OSError(f"cannot download {url}: {room}")


def _read_mark(state: str, url: str) -> str | None:
    try:
        with open(state, encoding="utf-8") as file:
            content = json.loads(file.read(10_000))
        mark = content["mark"] if content["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mark if isinstance(mark, str) and mark.isprintable() else None


def _write_mark(state: str, url: str, headers: Any) -> None:
    """Save the validator of the content. Without a usable one (weak ETags are not), delete the file."""
    etag = headers.get("ETag", "")
    mark = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if mark:
        with open(state, "w", encoding="utf-8") as file:
            json.dump({"url": url, "mark": mark}, file)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(state)
