# SPDX-License-Identifier: Apache-2.0
"""Downloads over http(s): resumed after a break, bounded, checked, one process at a time. `dnnlib.util.open_url` is the way in.

Beside a download NAME there are NAME.part, which holds what has arrived, and NAME.part.json, the server's mark (ETag or Last-Modified) of that
content. A later attempt, or a later process, asks for the rest of it, and gets all of it if the server's content has changed since.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

try:
    import fcntl
except ImportError:  # Windows: two processes at once download twice, and the last one wins
    fcntl = None  # type: ignore[assignment]

SCHEMES = ("http", "https")
MAX_BYTES = 64 * 2**30  # of a download
MAX_BYTES_IN_MEMORY = 4 * 2**30
_SPARE_BYTES = 64 * 2**20  # of disk, that a download leaves free
_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_MAX_WAIT_SECONDS = 30.0
# Answers that mean "later", everything else in 4xx means "never".
_RETRY_STATUS = (408, 425, 429)

_T = TypeVar("_T")
Progress = Callable[[int, int | None], None]  # bytes that are here, bytes in all if the server has said so


def download(url: str, path: str, sha256: str | None, num_attempts: int, progress: Progress | None = None) -> None:
    """Put what an http(s) address holds into the file `path`, which appears when it is complete and, if `sha256` is given, right.

    Raises ValueError (redirected to something odd, too large, another hash) and OSError (no attempt succeeded, no room).
    """
    with _partial(path + ".part") as file:
        if os.path.isfile(path) and (sha256 is None or _sha256(path) == sha256.lower()):
            os.unlink(path + ".part")  # another process was faster
            return
        with_attempts(url, num_attempts, lambda: _continue(url, file, path + ".part.json", sha256, progress))
        file.flush()
        os.fsync(file.fileno())
        try:
            compare_sha256(url, _sha256(path + ".part"), sha256)
        except ValueError:
            os.unlink(path + ".part")
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + ".part.json")
        os.replace(path + ".part", path)


def fetch(url: str, sha256: str | None, num_attempts: int) -> io.BytesIO:
    """What an http(s) address holds, in memory. Raises as `download` does."""

    def attempt() -> bytes:
        with _open(url, {}) as response:
            return b"".join(_blocks(url, response, 0, MAX_BYTES_IN_MEMORY))

    data = with_attempts(url, num_attempts, attempt)
    compare_sha256(url, hashlib.sha256(data).hexdigest(), sha256)
    return io.BytesIO(data)


def with_attempts(url: str, num_attempts: int, action: Callable[[], _T]) -> _T:
    """Runs `action`, again after what may pass by itself (connection, timeout, busy server). Raises OSError."""
    wait = 1.0
    for attempt in range(1, num_attempts + 1):
        try:
            return action()
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in _RETRY_STATUS:
                raise OSError(f"cannot download {url}: the server answers {error.code} {error.reason}") from None
            reason = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        if attempt < num_attempts:
            time.sleep(wait)
            wait = min(2 * wait, _MAX_WAIT_SECONDS)
    raise OSError(f"cannot download {url}: {reason} ({num_attempts} attempt{'s' if num_attempts > 1 else ''})")


def compare_sha256(what: str, found: str, wanted: str | None) -> None:
    """Raises ValueError if a hash is wanted and another one found."""
    if wanted is not None and found != wanted.lower():
        raise ValueError(f"{what}: sha256 is {found}, expected {wanted.lower()}; the file is damaged or another one")


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _partial(path: str) -> Iterator[IO[bytes]]:
    """The partial file, locked, for reading and writing. It stays only if it holds something that a later attempt can go on with."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # freed when its process ends, however it ends
        if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            break
        file.close()  # another process finished or removed it while this one waited
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())) and (file.seek(0, os.SEEK_END) == 0 or not os.path.exists(path + ".json")):
                os.unlink(path)
        file.close()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to http(s) addresses only, and from https to https only."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url).scheme, urllib.parse.urlsplit(newurl).scheme
        if new not in SCHEMES or (old == "https" and new != "https"):
            raise ValueError(
                f"{req.full_url}: the server redirects to {newurl[:200]!r}, which is refused: not {'https' if old == 'https' else 'http(s)'}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any) -> Any:
        target = headers.get("location") or headers.get("uri") or ""
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", target)  # before urllib's own, longer, message
        if scheme and scheme[1].lower() not in SCHEMES:
            raise ValueError(f"{req.full_url}: the server redirects to {target[:200]!r}, which is refused: not http(s)")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _open(url: str, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "dnnlib", "Accept-Encoding": "identity", **headers})
    response = urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT_SECONDS)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        response.close()
        raise ValueError(f"{url}: the server sends the file in an encoding that was not asked for, {encoding[:40]!r}")
    return response


def _blocks(url: str, response: Any, start: int, limit: int) -> Iterator[bytes]:
    """The body of an answer, block by block; raises when it ends before its announced length, or is longer than anything we download."""
    announced = response.headers.get("Content-Length")
    if announced is not None and (not announced.isdecimal() or start + int(announced) > limit):
        raise ValueError(f"{url}: the server announces {announced[:40]} bytes, and at most {limit:,} are read")
    received = 0
    while block := response.read(_BLOCK_BYTES):
        received += len(block)
        if start + received > limit:
            raise ValueError(f"{url}: the server sends more than {limit:,} bytes")
        yield block
    if announced is not None and received != int(announced):
        raise http.client.HTTPException(f"the connection ended after {start + received} of {start + int(announced)} bytes")


def _continue(url: str, file: IO[bytes], state: str, sha256: str | None, progress: Progress | None) -> None:
    """One attempt: the rest of what `file` has a beginning of, or all of it."""
    mark = _read_mark(state, url)
    start = file.seek(0, os.SEEK_END) if mark or sha256 else 0
    headers = {"Range": f"bytes={start}-", **({"If-Range": mark} if mark else {})} if start else {}
    try:
        response = _open(url, headers)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        error.close()
        start, response = 0, _open(url, {})  # what is there is not the beginning of what the server has now
    with response:
        if start and (response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {start}-")):
            if response.status == 206:
                raise http.client.HTTPException("the server sends another part than was asked for")
            start = 0
        file.seek(start)
        file.truncate()
        if not start:
            _write_mark(state, url, response.headers)
        announced = response.headers.get("Content-Length")
        _check_room(url, state, announced)
        total = start + int(announced) if announced and announced.isdecimal() else None
        for block in _blocks(url, response, start, MAX_BYTES):
            file.write(block)
            if progress is not None:
                progress(file.tell(), total)
    file.flush()


def _check_room(url: str, path: str, announced: str | None) -> None:
    if announced is not None and announced.isdecimal():
        free = shutil.disk_usage(os.path.dirname(path) or ".").free
        if int(announced) + _SPARE_BYTES > free and int(announced) <= MAX_BYTES:
            raise OSError(
                f"cannot download {url}: it needs {int(announced) / 2**30:.1f} GiB, and {os.path.dirname(path)} has {free / 2**30:.1f} GiB free"
            )


def _read_mark(state: str, url: str) -> str | None:
    try:
        with open(state, encoding="utf-8") as file:
            content = json.loads(file.read(10_000))
        mark = content["mark"] if content["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mark if isinstance(mark, str) and mark.isprintable() else None


def _write_mark(state: str, url: str, headers: Any) -> None:
    """Keep what identifies the content; nothing where the server says nothing that could (weak ETags do not)."""
    etag = headers.get("ETag", "")
    mark = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if mark:
        with open(state, "w", encoding="utf-8") as file:
            json.dump({"url": url, "mark": mark}, file)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(state)
