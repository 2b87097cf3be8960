# SPDX-License-Identifier: Apache-2.0
"""Outputs that would replace, join or hide their input, and signals on the way."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from dnnlib import outputs
from dnnlib.util import atomic_write
from tests import waiting


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.png").write_bytes(b"x")
    (tmp_path / "a.zip").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "is not the name of a file"),
        ("  ", "is not the name of a file"),
        ("a\0b", "is not the name of a file"),
        ("https://host/a.zip", "is a URL"),
        ("s3://bucket/a.zip", "is a URL"),
        ("file:///tmp/a.zip", "is a URL"),
        ("hf://me/x", "is a URL"),
        ("a.zip/b.zip", "a.zip is a file, not a folder"),
        ("photos", "is a folder: give the path of a file"),
    ],
)
def test_a_path_that_nothing_can_be_written_to(place: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^--dest=") as caught:
        outputs.check_output("--dest", path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_is_no_folder(place: Path) -> None:
    with pytest.raises(ValueError, match=r"--outdir=a\.zip is a file: give the path of a folder"):
        outputs.check_output("--outdir", "a.zip", folder=True)
    outputs.check_output("--outdir", "new/deep/er", folder=True)


@pytest.mark.parametrize(
    "name", ["a.zip", "./a.zip", "photos/../a.zip", "link.zip", "hard.zip", "alias/a.zip"]
)
def test_the_input_under_any_name(place: Path, name: str) -> None:
    (place / "link.zip").symlink_to("a.zip")
    os.link("a.zip", "hard.zip")
    (place / "alias").symlink_to(place)
    with pytest.raises(ValueError, match=r"is --source=a\.zip, which would be replaced"):
        outputs.check_output("--dest", name, inputs={"--source": "a.zip"})
    with pytest.raises(ValueError, match="is --source="):
        outputs.check_output("--dest", "a.zip", inputs={"--source": name})


@pytest.mark.parametrize(
    "name",
    ["photos/new.zip", "photos/cat/deep/new.zip", "link/new.zip", "../{here}/photos/x", "photos/cat/../x"],
)
def test_inside_the_data(place: Path, name: str) -> None:
    (place / "link").symlink_to("photos")
    name = name.format(here=place.name)
    with pytest.raises(ValueError, match="lies inside --source=photos"):
        outputs.check_output("--dest", name, data={"--source": "photos"})
    outputs.check_output("--dest", name, inputs={"--network": "photos"})  # a run folder may take pictures


def test_beside_the_data_is_fine(place: Path) -> None:
    for name in ("photos2", "photos.zip", "new/photos", "cat", "link/../new"):
        outputs.check_output(
            "--dest",
            name,
            data={"--source": "photos", "--data": None, "--other": "https://host/x.zip", "--gone": "gone"},
        )


def test_an_input_inside_a_folder_that_is_replaced(place: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"--source=photos/cat/1\.png lies inside --dest=photos, which would be replaced as a whole",
    ):
        outputs.check_output(
            "--dest", "photos", data={"--source": "photos/cat/1.png"}, folder=True, replaces=True
        )
    outputs.check_output("--outdir", "photos", inputs={"--network": "photos/cat/1.png"}, folder=True)


def test_windows_drives_are_no_addresses() -> None:
    assert not any(outputs.is_address(text) for text in ("C:/x", "C:\\x", "a:b", "x/y://z", "plain"))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("sent", ["SIGTERM", "SIGHUP"])
def test_signals_remove_temporary_files(tmp_path: Path, sent: str) -> None:
    code = f"""
import os, signal, sys
from dnnlib import outputs, util
signal.signal(signal.{sent}, signal.SIG_DFL)  # nohup ignores SIGHUP
try:
    with outputs.interruptible(), util.atomic_write({str(tmp_path / "x")!r}) as file:
        file.write(b"half")
        os.kill(os.getpid(), signal.{sent})
        while True: pass
except KeyboardInterrupt:
    sys.exit(7)
"""
    root = Path(outputs.__file__).parent.parent
    assert waiting.run([sys.executable, "-c", code], cwd=root).returncode == 7
    assert not list(tmp_path.iterdir())


def test_a_second_signal_does_not_stop_the_removal(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), outputs.interruptible():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            (tmp_path / "removed").touch()
    assert (tmp_path / "removed").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_swallowed_interrupt_is_raised_again() -> None:
    with pytest.raises(KeyboardInterrupt), outputs.interruptible():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        outputs.raise_if_stopped()
    with outputs.interruptible():
        outputs.raise_if_stopped()


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with outputs.interruptible(), atomic_write(tmp_path / "x") as file:
            signal.raise_signal(signal.SIGHUP)
            file.write(b"all")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (tmp_path / "x").read_bytes() == b"all"
