# SPDX-License-Identifier: Apache-2.0
"""From where code is loaded: owners and rights of files, folders and links, from the root down."""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnnlib import trust, util
from tests import waiting

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such rights here")

ROOT = Path(__file__).resolve().parents[2]
STRANGER = 54321


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A private folder with a private library in it: folder/inner/library.so."""
    (tmp_path / "inner").mkdir(mode=0o700)
    library = tmp_path / "inner" / "library.so"
    library.write_bytes(b"code")
    library.chmod(0o755)
    assert trust.untrusted_reason(library) == "" and trust.trusted_path(library) == library
    yield tmp_path
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("what", ["inner/library.so", "inner", "."])
@pytest.mark.parametrize("mode", [0o777, 0o757, 0o722])
def test_what_others_can_write_to_is_refused(place: Path, what: str, mode: int) -> None:
    (place / what).chmod(mode)
    assert (
        trust.untrusted_reason(place / "inner" / "library.so")
        == f"others can write to {(place / what).resolve()} (mode {mode:04o})"
    )
    with pytest.raises(trust.Distrusted):
        trust.trusted_path(place / "inner" / "library.so")


def test_the_sticky_bit_protects_what_lies_below_alone(place: Path) -> None:
    place.chmod(0o1777)
    assert trust.untrusted_reason(place / "inner" / "library.so") == ""
    (place / "library.so").write_bytes(b"code")
    assert "others can write to" in trust.untrusted_reason(place / "library.so"), (
        "others could have put it there"
    )
    assert "others can write to" in trust.untrusted_reason(place)


def as_owned(monkeypatch: pytest.MonkeyPatch, path: Path, uid: int) -> None:
    """Let a path belong to somebody else, without the rights that it takes to give it away."""
    real = os.lstat

    def lstat(name: str) -> os.stat_result:
        status = real(name)
        return os.stat_result((*status[:4], uid, *status[5:])) if Path(name) == path else status

    monkeypatch.setattr(trust.os, "lstat", lstat)


@pytest.mark.parametrize("what", ["inner/library.so", "inner", "."])
@pytest.mark.parametrize("sticky", [0, 0o1000])
def test_what_belongs_to_others_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, what: str, sticky: int
) -> None:
    place.chmod(0o700 | sticky)
    as_owned(monkeypatch, place / what, STRANGER)
    assert (
        trust.untrusted_reason(place / "inner" / "library.so") == f"{place / what} belongs to user {STRANGER}"
    )


def test_roots_files_are_trusted(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    monkeypatch.setattr(trust.os, "geteuid", lambda: STRANGER)
    assert (trust.untrusted_reason(place / "inner" / "library.so") == "") == (
        user == 0
    ) and trust.untrusted_reason("/") == ""


def test_links_are_followed_and_every_folder_on_the_way_counts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "open").mkdir()
    (place / "link").symlink_to("open/there")
    (place / "open" / "there").symlink_to(place / "inner")
    assert trust.trusted_path(place / "link" / "library.so") == place / "inner" / "library.so"
    assert (
        trust.trusted_path(place / "link" / ".." / "inner" / "." / "library.so")
        == place / "inner" / "library.so"
    )
    (place / "open").chmod(0o777)
    assert f"{place / 'open'} " in trust.untrusted_reason(place / "link" / "library.so"), (
        "whoever can change the link chooses the file"
    )
    (place / "open").chmod(0o1777)
    assert trust.untrusted_reason(place / "link" / "library.so") == ""
    as_owned(monkeypatch, place / "open" / "there", STRANGER)
    assert f"belongs to user {STRANGER}" in trust.untrusted_reason(place / "link" / "library.so")


def test_links_in_a_circle(place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    assert trust.untrusted_reason(place / "a") == f"{place / 'a'}: Too many levels of symbolic links"


def test_what_is_not_there_could_be_made_in_a_good_place(place: Path) -> None:
    assert trust.untrusted_reason(place / "inner" / "new" / "newer") == ""
    with pytest.raises(FileNotFoundError):
        trust.trusted_path(place / "inner" / "new")
    place.chmod(0o777)
    assert "others can write to" in trust.untrusted_reason(place / "new" / "newer")


def test_relative_paths_begin_where_we_are(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "inner")
    assert trust.trusted_path("library.so") == place / "inner" / "library.so"
    place.chmod(0o777)
    assert f"{place} " in trust.untrusted_reason("library.so")


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_new_folders_are_private_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    code = (
        "import os, sys; os.umask(int(sys.argv[1])); from dnnlib import trust; "
        "trust.make_private(sys.argv[2])"
    )
    waiting.run([sys.executable, "-c", code, str(mask), str(tmp_path / "a" / "b")], cwd=ROOT, check=True)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")] == [0o700, 0o700]
    (tmp_path / "a" / "b").chmod(0o755)
    trust.make_private(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o755
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        trust.make_private(tmp_path / "file")


def test_code_has_another_place_where_the_cache_folder_is_open_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, home, temporary = (tmp_path / name for name in ("cache", "home", "tmp"))
    for folder in (cache, home, temporary):
        folder.mkdir(mode=0o700)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(cache))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    assert util.code_cache_path("ops") == str(cache / "ops")
    cache.chmod(0o777)
    assert util.code_cache_path("ops") == str(home / "dnnlib" / "ops")
    home.chmod(0o777)
    temporary.chmod(0o1777)
    assert util.code_cache_path("ops") == str(temporary / f"dnnlib-{os.geteuid()}" / "ops")
    temporary.chmod(0o777)
    assert util.code_cache_path("ops") == str(cache / "ops") and trust.untrusted_reason(
        util.code_cache_path("ops")
    )


def test_a_users_own_group_is_nobody_else(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many systems make it: umask 002, and a group for every user."""
    (place / "inner").chmod(0o775)
    assert "others can write to" in trust.untrusted_reason(place / "inner")
    monkeypatch.setattr(trust, "_is_private_group", lambda gid: gid == (place / "inner").stat().st_gid)
    assert trust.untrusted_reason(place / "inner") == ""
    (place / "inner").chmod(0o777)
    assert "others can write to" in trust.untrusted_reason(place / "inner")


def test_systems_without_such_rights_load_as_before(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.chmod(0o777)
    monkeypatch.delattr(trust.os, "geteuid")
    assert trust.trusted_path(place / "inner" / "library.so") == place / "inner" / "library.so"
