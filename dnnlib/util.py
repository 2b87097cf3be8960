# SPDX-License-Identifier: Apache-2.0
"""Attribute dictionaries, tee logging, atomic files, cached downloads, objects by name, number parsing.

Names and signatures are those that StyleGAN-family code calls. Nothing here imports torch, and only
`open_url` opens network connections.
"""

import contextlib
import hashlib
import importlib
import io
import os
import pickle
import re
import sys
import tempfile
import threading
import time as time  # existing callers expect the name here
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, TextIO, TypeVar, overload

from dnnlib import downloads, outputs, trust
from dnnlib.files import names_file, temporary_prefix
from dnnlib.locks import file_lock as file_lock
from dnnlib.progress import Progress
from dnnlib.progress import format_time as format_time  # a published name of this module

_T = TypeVar("_T")
_UMASK_LOCK = threading.Lock()


class Damaged(ValueError):
    """A file is incomplete or not of the expected format, such as a partial download or a web page."""


class EasyDict(dict[str, Any]):
    """A dict whose string keys are also attributes: `d.x = 1`, `d["x"]`, `del d.x`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no attribute or key {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"no attribute or key {name!r}") from None


class Logger:
    """Copies everything written to stdout and stderr into a file.

    Use it as a context manager, or call `close()`. Loggers nest: closing one restores the streams that it
    replaced.

    Args:
        file_name: log file, or None for no copy (then only `should_flush` has an effect).
        file_mode: 'w' starts a new file, 'a' appends.
        should_flush: flush file and stream after every write, so that a crash loses nothing.
    """

    def __init__(
        self, file_name: str | os.PathLike[str] | None = None, file_mode: str = "w", should_flush: bool = True
    ) -> None:
        self.file: IO[str] | None = (
            None if file_name is None else open(file_name, file_mode, encoding="utf-8")  # noqa: SIM115
        )
        self._streams = (sys.stdout, sys.stderr)
        self._tees = (_Tee(sys.stdout, self.file, should_flush), _Tee(sys.stderr, self.file, should_flush))
        sys.stdout, sys.stderr = self._tees

    def __enter__(self) -> "Logger":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, text: str | bytes) -> None:
        """Write to the original stdout and to the file."""
        self._tees[0].write(text if isinstance(text, str) else text.decode())

    def flush(self) -> None:
        """Flush the original stdout and the file."""
        self._tees[0].flush()

    def close(self) -> None:
        """Restore the streams and close the file. Calling it twice is allowed."""
        # If other code has replaced a stream since then, its stream stays.
        if sys.stdout is self._tees[0]:
            sys.stdout = self._streams[0]
        if sys.stderr is self._tees[1]:
            sys.stderr = self._streams[1]
        for tee in self._tees:
            tee.detach_log()
        if self.file is not None:
            with contextlib.suppress(OSError):  # already reported by the failed write
                self.file.close()
            self.file = None


class _Tee(io.TextIOBase):
    """A text stream that forwards to another one and to a log file."""

    def __init__(self, stream: TextIO, log: IO[str] | None, should_flush: bool) -> None:
        self._stream = stream
        self._log = log
        self._should_flush = should_flush

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the underlying stream."""
        return self._stream.encoding

    @property
    def screen(self) -> TextIO:
        """The underlying stream without the log, for lines that are rewritten in place."""
        return getattr(self._stream, "screen", self._stream)

    def isatty(self) -> bool:
        """Whether the underlying stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The file descriptor of the underlying stream."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """Always True."""
        return True

    def write(self, text: str) -> int:
        """Write to the underlying stream and the log. Returns the number of characters."""
        if len(text) == 0:
            return 0
        self._stream.write(text)
        if self._log is not None:
            self._to_log(self._log.write, text)
        if self._should_flush:
            self.flush()
        return len(text)

    def flush(self) -> None:
        """Flush the underlying stream and the log."""
        self._stream.flush()
        if self._log is not None:
            self._to_log(self._log.flush)

    def _to_log(self, action: Callable[..., Any], *arguments: str) -> None:
        """Write to the log. If the disk is full, stop logging instead of stopping the run."""
        try:
            action(*arguments)
        except OSError as error:
            self._log = None
            self._stream.write(
                f"WARNING: the log cannot be written ({error.strerror or error}); logging stops\n"
            )

    def detach_log(self) -> None:
        """Stop copying to the log."""
        self._log = None


MAX_LIST = 2_000_000  # integers in a command-line list; more than any data set has images to compare with


def parse_int_list(text: str | list[int] | tuple[int, ...]) -> list[int]:
    """Parse a list of integers and ranges: '0,1,4-6' -> [0, 1, 4, 5, 6].

    Ranges include both ends. A list or tuple is returned as a list.

    Raises:
        ValueError: an item is neither a non-negative integer nor an ascending range, or there are more than
            MAX_LIST integers.
    """
    if not isinstance(text, str):
        return [int(value) for value in text]
    if not text.strip():
        raise ValueError("the list is empty; write for example 0,1,4-6")
    values: list[int] = []
    for entry in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", entry)
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        if match is None:
            raise ValueError(
                f"cannot parse {entry.strip()[:40]!r} in {shown!r} as an integer or a range; write for "
                "example 0,1,4-6"
            )
        first, last = int(match.group(1)), int(match.group(2) or match.group(1))
        if last < first:
            raise ValueError(f"range {entry.strip()!r} in {shown!r} is descending; write {last}-{first}")
        if len(values) + last - first >= MAX_LIST:
            raise ValueError(f"{shown!r} contains more than {MAX_LIST:,} integers")
        values.extend(range(first, last + 1))
    return values


def parse_vec2(text: str | tuple[float, float]) -> tuple[float, float]:
    """Parse two numbers: '1,2' -> (1.0, 2.0). A pair is returned unchanged.

    Raises:
        ValueError: not two finite numbers.
    """
    parts = text.split(",") if isinstance(text, str) else list(text)
    try:
        x, y = (float(part) for part in parts)
    except ValueError:
        raise ValueError(f"cannot parse {text!r} as two numbers; write for example 0.5,-1") from None
    if not all(abs(value) < float("inf") for value in (x, y)):
        raise ValueError(f"{text!r} must be two finite numbers")
    return x, y


def parse_grid(text: str) -> tuple[int, int]:
    """Parse the size of a grid: '8x4' or '8,4' -> (8 columns, 4 rows).

    Raises:
        ValueError: not two positive integers.
    """
    match = re.fullmatch(r"\s*(\d{1,9})\s*[x,]\s*(\d{1,9})\s*", text, re.IGNORECASE | re.ASCII)
    shape = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    if not min(shape):
        raise ValueError("write columns x rows, for example 8x4")
    return shape


def get_obj_by_name(name: str) -> Any:
    """The object with a dotted name: 'collections.OrderedDict', 'package.module.Class.method'.

    Raises:
        ImportError: no leading part of the name is a module. Import errors inside a module pass through.
        AttributeError: the module has no such member.
    """
    parts = name.split(".")
    if not all(parts):
        raise ImportError(f"{name!r} is not a dotted name of an object")
    for count in range(len(parts), 0, -1):
        module_name = ".".join(parts[:count])
        try:
            obj: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # Try one level up only if a part of the name itself is missing. A missing dependency of the
            # module is an error.
            if error.name is None or not (
                module_name == error.name or module_name.startswith(error.name + ".")
            ):
                raise
            continue
        for part in parts[count:]:
            if not hasattr(obj, part):
                raise AttributeError(f"{name!r}: {getattr(obj, '__name__', obj)} has no member {part!r}")
            obj = getattr(obj, part)
        return obj
    raise ImportError(f"{name!r}: no module named {parts[0]!r}")


def call_func_by_name(*args: Any, func_name: str, **kwargs: Any) -> Any:
    """Call the function with the dotted name `func_name` (see `get_obj_by_name`) with the other arguments.

    Raises:
        TypeError: the object is not callable.
    """
    func = get_obj_by_name(func_name)
    if not callable(func):
        raise TypeError(f"{func_name!r} is not callable")
    return func(*args, **kwargs)


def construct_class_by_name(*args: Any, class_name: str, **kwargs: Any) -> Any:
    """Create an instance of the class with the dotted name `class_name`, with the other arguments."""
    return call_func_by_name(*args, func_name=class_name, **kwargs)


def format_bytes(count: int) -> str:
    """Bytes as text, in GiB or MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 hash of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(error: BaseException) -> str:
    """The message of an exception in one line; if empty, the name of its class in words: 'EOF error'."""
    words = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
    return (
        words[:300]
        or re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", type(error).__name__).lower()
    )


def pickled_error(error: BaseException) -> bytes:
    """An exception as bytes that any process can load.

    One that pickle cannot restore becomes a ValueError or RuntimeError that describes it.
    """
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
        return data
    except Exception:
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        return pickle.dumps(kind(f"{type(error).__name__}: {error}"))


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that is renamed to `path` if the block succeeds.

    Until then, an existing file of that name is unchanged. After an error, Ctrl-C, SIGTERM or SIGHUP the
    temporary file is removed. The content is flushed to disk (fsync) before the rename.

    Args:
        path: the file.
        mode: 'wb', or 'w' for UTF-8 text.

    Raises:
        ValueError: unknown mode.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"the mode of atomic_write must be 'wb' or 'w', not {mode!r}")
    with outputs.interruptible():
        yield from _atomic_write(Path(path), mode)


def _atomic_write(target: Path, mode: str) -> Iterator[IO[Any]]:
    try:
        descriptor, temporary = tempfile.mkstemp(
            prefix=temporary_prefix(target), suffix=".tmp", dir=target.parent
        )
    except OSError as error:
        error.filename = str(target)  # what the user asked for, not the temporary name
        raise
    try:
        with os.fdopen(descriptor, mode, encoding="utf-8" if mode == "w" else None) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp creates private files; the finished file gets the permissions that open() would set.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        with names_file(target):
            raise


def _umask() -> int:
    with _UMASK_LOCK:  # two threads at once would leave the mask at 0
        mask = os.umask(0)
        os.umask(mask)
    return mask


def available_cores() -> int:
    """The number of cores that this process may use."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()) or 1


def is_url(obj: Any, allow_file_urls: bool = False) -> bool:
    """Whether `obj` is an http(s) URL with a host, or a file:// URL if `allow_file_urls`."""
    if not isinstance(obj, str) or "://" not in obj:
        return False
    try:
        parts = urllib.parse.urlsplit(obj)
    except ValueError:
        return False
    if parts.scheme == "file":
        return allow_file_urls
    return parts.scheme in downloads.SCHEMES and bool(parts.hostname)


def make_cache_dir_path(*paths: str) -> str:
    """A path in the cache folder: $DNNLIB_CACHE_DIR, else $XDG_CACHE_HOME/dnnlib, else ~/.cache/dnnlib.

    Creates nothing.
    """
    return os.path.join(os.environ.get("DNNLIB_CACHE_DIR") or _home_cache(), *paths)


def _home_cache() -> str:
    return os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "dnnlib"
    )


def temporary_cache_path(*paths: str) -> str:
    """A path in a folder of this user in the system's temporary folder, which the system may clear.

    Creates nothing.
    """
    user = os.geteuid() if hasattr(os, "geteuid") else ""
    return os.path.join(tempfile.gettempdir(), f"dnnlib-{user}", *paths)


def why_not_writable(folder: str | os.PathLike[str]) -> str | None:
    """The reason why no file can be created in a folder, or None. Creates the folder if it does not exist."""
    try:
        trust.make_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def plain_warnings() -> None:
    """Print this project's warnings as one line without the source location. Other warnings are unchanged."""
    usual, root = warnings.formatwarning, str(Path(__file__).resolve().parent.parent)

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if (
            issubclass(category, UserWarning)
            and filename.startswith(root)
            and "site-packages" not in filename
        ):
            return f"Warning: {message}\n"
        return usual(message, category, filename, lineno, line)

    if getattr(usual, "__name__", "") != plain.__name__:
        warnings.formatwarning = plain


def print_any_name() -> None:
    """Let stdout escape what its encoding lacks, as stderr does: names of files need not be text.

    A stdout that is closed, or has become a pipe, may not allow it and stays as it is.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        with contextlib.suppress(OSError, ValueError):
            reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def warn_if_unwritable(what: str) -> Iterator[None]:
    """Turn an OSError inside the block into a warning, for files that the work does not depend on.

    Args:
        what: the file that will be missing, for the start of the warning: "curves.png".
    """
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        warnings.warn(
            f"{what} cannot be written: {error.strerror or error}{place}; continuing without it", stacklevel=3
        )


def writable_cache_dir(*paths: str) -> str:
    """A writable folder in the cache folder, or, with a warning, one in the system's temporary folder.

    Raises:
        OSError: the temporary folder is not writable either, or other users can write to it.
    """
    folder = make_cache_dir_path(*paths)
    reason = why_not_writable(folder)
    if reason is None:
        return folder
    other = temporary_cache_path(*paths)
    trouble = why_not_writable(other) or trust.untrusted_reason(other)
    remedy = "set DNNLIB_CACHE_DIR to a writable folder"
    if trouble:
        raise OSError(
            f"the cache folder {folder} is not writable ({reason}), and {other} is not usable ({trouble}): "
            f"{remedy}"
        )
    warnings.warn(
        f"the cache folder {folder} is not writable ({reason}); using {other} instead; {remedy}",
        stacklevel=3,
    )
    return other


def code_cache_path(*paths: str) -> str:
    """Like `make_cache_dir_path`, for code: the first location that nobody else can change.

    The locations are the cache folder, the cache folder in the home folder, and a folder in the system's
    temporary folder. If none is trusted, the path in the cache folder is returned
    (`trust.untrusted_reason` tells why not). Creates nothing.
    """
    roots = (make_cache_dir_path(), _home_cache(), temporary_cache_path())
    usable = (root for root in roots if not trust.untrusted_reason(os.path.join(root, *paths)))
    return os.path.join(next(usable, roots[0]), *paths)


@overload
def open_url(
    url: str,
    cache_dir: str | None = ...,
    num_attempts: int = ...,
    verbose: bool = ...,
    *,
    return_filename: Literal[True],
    cache: bool = ...,
    sha256: str | None = ...,
) -> str: ...
@overload
def open_url(
    url: str,
    cache_dir: str | None = ...,
    num_attempts: int = ...,
    verbose: bool = ...,
    return_filename: Literal[False] = ...,
    cache: bool = ...,
    sha256: str | None = ...,
) -> IO[bytes]: ...
def open_url(
    url: str,
    cache_dir: str | None = None,
    num_attempts: int = 10,
    verbose: bool = True,
    return_filename: bool = False,
    cache: bool = True,
    sha256: str | None = None,
) -> Any:
    """Open a local path, a file:// URL or an http(s) URL for reading bytes.

    A download is stored in the cache folder under a temporary name, and renamed when it is complete and its
    hash matches `sha256`, if given. An interrupted download is resumed (see `dnnlib.downloads`). With
    `DNNLIB_OFFLINE=1` in the environment, only local files and cached downloads are read.

    Args:
        url: local path, file:// or http(s) URL.
        cache_dir: folder for downloads; None = `make_cache_dir_path("downloads")`.
        num_attempts: attempts per download; the wait between them doubles from 1 to 30 seconds.
        verbose: print on stderr when a download starts, and its progress.
        return_filename: return the path of the file instead of an open file.
        cache: keep the download on disk. False = hold it in memory only.
        sha256: expected hash of the bytes in hexadecimal; None = not checked.

    Raises:
        FileNotFoundError: the local file, or the file on the server, does not exist.
        ValueError: unsupported scheme or redirect, file too large, wrong hash, or `return_filename` without
            `cache`.
        OSError: offline and not in the cache, or every attempt failed.
    """
    if num_attempts < 1:
        raise ValueError(f"num_attempts must be at least 1, not {num_attempts}")
    local = _local_path(url)
    if local is not None:
        if not os.path.isfile(local):
            raise FileNotFoundError(f"no such file: {local}")
        _check_sha256(local, sha256)
        return local if return_filename else open(local, "rb")
    if return_filename and not cache:
        raise ValueError("return_filename=True needs cache=True: without the cache there is no file")
    if not cache:
        _check_online(url, download_path(url, cache_dir))
        _announce(url, verbose)
        return downloads.fetch(url, sha256, num_attempts)
    path = download_path(url, cache_dir)
    if cache_dir is None and not os.path.isfile(path) and not _is_offline():
        path = os.path.join(writable_cache_dir("downloads"), os.path.basename(path))
    path = _fetched(url, path, num_attempts, verbose, sha256)
    return path if return_filename else open(path, "rb")


def _fetched(url: str, path: str, num_attempts: int, verbose: bool, sha256: str | None = None) -> str:
    """Download `url` to `path` if it is not there. Returns `path`.

    An existing file whose hash is not `sha256` is replaced.
    """
    if os.path.isfile(path) and (sha256 is None or sha256_file(path) == sha256.lower()):
        return path
    _check_online(url, path)
    _announce(url, verbose)
    trust.make_private(os.path.dirname(path))
    downloads.download(url, path, sha256, num_attempts, Progress(unit="bytes", silent=1) if verbose else None)
    return path


def _is_offline() -> bool:
    return os.environ.get("DNNLIB_OFFLINE", "").strip().lower() not in ("", "0", "false", "no")


def _check_online(url: str, path: str) -> None:
    if _is_offline():
        raise OSError(
            f"DNNLIB_OFFLINE is set, but {url} is not in the cache, or damaged; unset the variable, or put "
            "the "
            f"file at {path}"
        )


def _announce(url: str, verbose: bool) -> None:
    if verbose:
        print(f"Downloading {url}", file=sys.stderr, flush=True)


def download_path(url: str, cache_dir: str | None = None) -> str:
    """The path at which `open_url` caches the download of an http(s) URL."""
    return os.path.join(cache_dir or make_cache_dir_path("downloads"), _cache_name(url))


def plain_path(path_or_url: str) -> str:
    """Turn a file:// URL into a path; return anything else unchanged.

    Raises:
        ValueError: the URL names another machine.
    """
    is_file = re.match(r"file:/", path_or_url, re.IGNORECASE)
    return (_local_path(path_or_url) or path_or_url) if is_file else path_or_url


def fetch(path_or_url: str, num_attempts: int = 3, beside: Sequence[str] = ()) -> str:
    """The local path of a file given as a path, a file:// URL, or an http(s) URL, which is downloaded.

    Args:
        path_or_url: the file.
        num_attempts: attempts per download.
        beside: possible names of a companion file on the server. The first one that exists is downloaded too,
            and stored under the name of the download with its own extension: NAME.safetensors and NAME.json.

    Raises:
        FileNotFoundError: the server does not have the file, or none of `beside`.
        ValueError: see `open_url`.
        OSError: see `open_url`.
    """
    if not is_url(path_or_url):
        return plain_path(path_or_url)
    path = open_url(path_or_url, return_filename=True, num_attempts=num_attempts)
    parts = urllib.parse.urlsplit(path_or_url)
    for name in beside:
        url = urllib.parse.urlunsplit(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{name}"))
        with contextlib.suppress(FileNotFoundError):
            _fetched(url, _copy_beside(path, name), num_attempts, verbose=True)
            return path
    if beside:
        raise FileNotFoundError(
            f"{path_or_url}: the server has no {' or '.join(beside)} beside it, but the two files belong "
            "together"
        )
    return path


def read_from(
    path_or_url: str, read: Callable[[str], _T], num_attempts: int = 3, beside: Sequence[str] = ()
) -> _T:
    """Apply `read` to the local path of a file, a file:// URL or an http(s) URL.

    If `read` raises `Damaged` for a cached download, the download is removed and repeated: immediately if it
    was cached before, in the next call if it is new.

    Args:
        path_or_url: the file.
        read: reads the file at a local path.
        num_attempts: attempts per download.
        beside: see `fetch`.

    Returns:
        The result of `read`.

    Raises:
        ValueError: one line that contains the URL and the path of the download.
        OSError: see `fetch`.
    """
    if not is_url(path_or_url):
        return read(plain_path(path_or_url))
    was_kept = os.path.isfile(download_path(path_or_url))
    path = fetch(path_or_url, num_attempts, beside)
    try:
        return read(path)
    except Damaged as error:
        damaged = discard_copy(path_or_url, error, path, *(_copy_beside(path, name) for name in beside))
        if not was_kept or _is_offline() or os.path.exists(path):
            raise damaged from None
    except ValueError as error:
        raise ValueError(f"{path_or_url}: {_reason(error, path)} (the copy is {path})") from None
    return read_from(path_or_url, read, num_attempts, beside)


def discard_copy(
    name: str, error: ValueError, path: str | os.PathLike[str], *beside: str | os.PathLike[str]
) -> Damaged:
    """Remove a damaged download from a cache, including the targets of links.

    Args:
        name: what was downloaded.
        error: the error of the file's reader.
        path: the download.
        beside: companion files, which are removed too.

    Returns:
        The exception to raise.
    """
    copies = [os.fspath(copy) for copy in (path, *beside)]
    for copy in [*map(os.path.realpath, copies), *copies]:
        with contextlib.suppress(OSError):  # already gone, or owned by another user
            os.unlink(copy)
    gone = f"the copy {copies[0]} is removed; the next attempt downloads it again"
    text = f"remove the copy {copies[0]}" if os.path.lexists(copies[0]) else gone
    return Damaged(f"{name}: {_reason(error, copies[0])} ({text})")


def _copy_beside(path: str, name: str) -> str:
    return os.path.splitext(path)[0] + os.path.splitext(name)[1]


def _reason(error: ValueError, path: str) -> str:
    return str(error).replace(f"{path}: ", "", 1)


def _local_path(url: str) -> str | None:
    """The local path of a path or file:// URL; None for an http(s) URL."""
    if is_url(url):
        return None
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://|file(?=:/)", url)
    if match is None:
        return os.path.expanduser(url)
    scheme = (match.group(1) or "file").lower()
    if scheme == "file":
        parts = urllib.parse.urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"{url}: a file:// URL must name a file on this machine: file:///path")
        return urllib.request.url2pathname(parts.path)
    if scheme in downloads.SCHEMES:
        raise ValueError(f"{url}: the URL has no host")
    raise ValueError(
        f"{url}: {scheme}:// URLs are not supported; give a local path, file://, http:// or https://"
    )


def _cache_name(url: str) -> str:
    """The file name of a cached download: a hash of the URL, then the readable last part of its path."""
    last = urllib.parse.unquote(urllib.parse.urlsplit(url).path).rsplit("/", 1)[-1]
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", last)[-100:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:32]}_{readable or 'download'}"


def _check_sha256(path: str, sha256: str | None) -> None:
    if sha256 is not None:
        downloads.compare_sha256(path, sha256_file(path), sha256)
