# SPDX-License-Identifier: Apache-2.0
"""Where a command may write, checked before any work, and how it stops without leaving temporary files.

One owner for every script: an output must not replace the command's input, must not be read as part of it by
the next command, and must be a path of this machine.
"""

import contextlib
import os
import re
import signal
import threading
from collections.abc import Iterator, Mapping
from typing import Any

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # https://, s3://, hf://, file:/x; not C:/x and not a:b
_signals_received = 0

Inputs = Mapping[str, str | os.PathLike[str] | None]  # flag -> path; None and addresses are passed over


def check_output(
    flag: str,
    path: str | os.PathLike[str],
    *,
    inputs: Inputs | None = None,
    data: Inputs | None = None,
    folder: bool = False,
    replaces: bool = False,
) -> None:
    """Refuse an output that cannot be meant. Looks at the disk, changes nothing.

    Args:
        flag: that names the output, such as --dest.
        inputs: what the command reads: the output must be none of these, under whatever name (links, ./x).
        data: inputs of which everything below a folder is read: the output must not lie inside either.
        folder: the output is a folder; a file of that name is refused.
        replaces: an existing folder is replaced as a whole, so no input may lie inside it.

    Raises:
        ValueError: one line with the flag, the value and the remedy.
    """
    text = os.fspath(path)
    _check_text(flag, text, folder)
    for name, given in {**(inputs or {}), **(data or {})}.items():
        if given is None or is_address(os.fspath(given)) or not os.path.exists(given):
            continue
        output, read, remedy = f"{flag}={text}", f"{name}={os.fspath(given)}", "write to another place"
        if _same(text, given):
            raise ValueError(f"{output} is {read}, which would be replaced: {remedy}")
        if name in (data or {}) and _inside(text, given):
            raise ValueError(f"{output} lies inside {read}, to be read as data by the next command: {remedy}")
        if replaces and os.path.isdir(text) and _inside(given, text):
            raise ValueError(f"{read} lies inside {output}, which would be replaced as a whole: {remedy}")


def expand_home(values: dict[str, Any]) -> dict[str, Any]:
    """A command's options with ~/ as the home folder: no shell expands --dest=~/x, and a folder ~ would be
    made.
    """

    def expanded(value: Any) -> Any:
        return os.path.expanduser(value) if isinstance(value, str) and re.match(r"~\w*/", value) else value

    return {name: expanded(value) for name, value in values.items()}


def is_address(text: str) -> bool:
    """Whether `text` looks like an address (https://, s3://, hf://) and not like a path."""
    return _ADDRESS.match(text) is not None


def _check_text(flag: str, text: str, folder: bool) -> None:
    kind = "folder" if folder else "file"
    if not text.strip() or "\0" in text:
        raise ValueError(f"{flag}={text!r} names no {kind}: give a path")
    if is_address(text):
        raise ValueError(f"{flag}={text} is an address: name a {kind} on this machine")
    if folder and os.path.exists(text) and not os.path.isdir(text):
        raise ValueError(f"{flag}={text} is a file: name a folder")
    if not folder and os.path.isdir(text):
        raise ValueError(f"{flag}={text} is a folder: name a file")
    above = os.path.dirname(os.path.abspath(text))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above):
        raise ValueError(f"{flag}={text}: {above} is a file, not a folder: name another place")


def _same(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Whether two paths mean one file: links, hard links, relative names, case where it does not matter."""
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def _inside(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether `path`, which may not be there yet, lies below an existing folder."""
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
    """Within, SIGTERM and SIGHUP raise KeyboardInterrupt, as Ctrl-C does, so that temporary files are
    removed.

    A signal that the process was started to ignore (nohup) stays ignored. Only the main thread is
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
        if _signals_received != 2:  # an impatient second one must not break off the removal of files
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
    """Raises again the KeyboardInterrupt that a library's callback has swallowed."""
    if _signals_received:
        raise KeyboardInterrupt


def checked_folder(context: Any, option: Any, value: Any) -> Any:
    """Callback of a click option that names a folder to write to."""
    import click

    try:
        check_output(option.opts[0], value, folder=True)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    return os.path.expanduser(value)
