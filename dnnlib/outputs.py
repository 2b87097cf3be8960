# SPDX-License-Identifier: Apache-2.0
"""Check where a command may write before it starts, and stop it without leaving temporary files.

All scripts use these checks: an output must not replace an input of the command, must not lie where the next
command would read it as input data, and must be a local path.
"""

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

_ADDRESS = re.compile(
    r"[A-Za-z][A-Za-z0-9+.-]+:/"
)  # matches https://, s3://, hf://, file:/x; not C:/x or a:b
_signals_received = 0

Inputs = Mapping[str, str | os.PathLike[str] | None]  # flag -> path; None and URLs are ignored


def check_output(
    flag: str,
    path: str | os.PathLike[str],
    *,
    inputs: Inputs | None = None,
    data: Inputs | None = None,
    folder: bool = False,
    replaces: bool = False,
) -> None:
    """Refuse an output path that is a mistake. Reads from the disk, changes nothing.

    Args:
        flag: the option of the output, such as --dest.
        path: its value.
        inputs: paths that the command reads. The output must not be one of them under any name (links, ./x).
        data: inputs that are read with everything below them. The output must not lie inside them either.
        folder: the output is a folder; an existing file of that name is refused.
        replaces: an existing folder is replaced as a whole, so no input may lie inside it.

    Raises:
        ValueError: one line with the flag, the value and the remedy.
    """
    text = os.fspath(path)
    _check_text(flag, text, folder)
    for name, given in {**(inputs or {}), **(data or {})}.items():
        if given is None or is_address(os.fspath(given)) or not os.path.exists(given):
            continue
        output, read, remedy = f"{flag}={text}", f"{name}={os.fspath(given)}", "choose another output path"
        if _same(text, given):
            raise ValueError(f"{output} is {read}, which would be replaced: {remedy}")
        if name in (data or {}) and _inside(text, given):
            raise ValueError(
                f"{output} lies inside {read}, where the next command would read it as data: {remedy}"
            )
        if replaces and os.path.isdir(text) and _inside(given, text):
            raise ValueError(f"{read} lies inside {output}, which would be replaced as a whole: {remedy}")


def expand_home(values: dict[str, Any]) -> dict[str, Any]:
    """Expand a leading ~/ in the values of a command's options.

    The shell does not expand it in --dest=~/x, so a folder named ~ would be created.
    """

    def expanded(value: Any) -> Any:
        return os.path.expanduser(value) if isinstance(value, str) and re.match(r"~\w*/", value) else value

    return {name: expanded(value) for name, value in values.items()}


def is_address(text: str) -> bool:
    """Whether `text` looks like a URL (https://, s3://, hf://) and not like a path."""
    return _ADDRESS.match(text) is not None


def _check_text(flag: str, text: str, folder: bool) -> None:
    kind = "folder" if folder else "file"
    if not text.strip() or "\0" in text:
        raise ValueError(f"{flag}={text!r} is not the name of a {kind}: give a path")
    if is_address(text):
        raise ValueError(f"{flag}={text} is a URL: give the path of a local {kind}")
    if folder and os.path.exists(text) and not os.path.isdir(text):
        raise ValueError(f"{flag}={text} is a file: give the path of a folder")
    if not folder and os.path.isdir(text):
        raise ValueError(f"{flag}={text} is a folder: give the path of a file")
    above = os.path.dirname(os.path.abspath(text))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise ValueError(f"{flag}={text}: {above} is a file, not a folder: choose another path")


def _same(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Whether two paths are the same file, considering links, hard links, relative names and letter case."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def _inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether `path`, which may not exist yet, lies below an existing folder."""
    if not os.path.isdir(folder):
        return False
    above = os.path.realpath(path)
    while above != os.path.dirname(above):
        above = os.path.dirname(above)
        if os.path.exists(above) and os.path.samefile(above, folder):
            return True
    return False


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, so that cleanup code runs.

    A signal that the process ignores from its start (nohup) stays ignored. Only the main thread is
    interrupted.
    """
    global _signals_received
    names = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _signals_received = 0
    before = {number: signal.getsignal(number) for number in names}

    def stop(number: int, frame: Any) -> None:
        global _signals_received
        _signals_received += 1
        if _signals_received != 2:  # a second signal must not interrupt the cleanup
            raise KeyboardInterrupt

    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, stop)
    try:
        yield
    finally:
        _signals_received = 0
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is stop:
                signal.signal(number, handler)


def raise_if_stopped() -> None:
    """Raise the KeyboardInterrupt again if a library's callback has swallowed it."""
    if _signals_received:
        raise KeyboardInterrupt


def checked_folder(context: Any, option: Any, value: Any) -> Any:
    """Click callback of an option for an output folder."""
    import click

    try:
        check_output(option.opts[0], value, folder=True)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    return os.path.expanduser(value)
