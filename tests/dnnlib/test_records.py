# SPDX-License-Identifier: Apache-2.0
"""JSON and JSON lines: kills, damage, disks that are away."""

import errno
import json
import os
import pickle
from pathlib import Path

import pytest

from dnnlib import files, records
from tests.memory_limit import limited

DAMAGE = [
    b"garbage",
    b"null",
    b"5",
    b"[]",
    b"\xff\xfe\x00\x80",
    b"",
    b"[" * 100_000,
    b'{"kimg": 1',
    b'"text"',
    b"true",
]


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_object_is_named_and_set_aside(content, tmp_path, capsys):
    path = tmp_path / "status.json"
    path.write_bytes(content)
    with pytest.raises(records.Damaged, match=r"status.json is damaged") as caught:
        records.read_object(path)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value) and "\n" not in str(
        caught.value
    )
    assert records.read_json(path) == {}
    records.write_json(path, {"outcome": "finished"})
    assert records.read_object(path) == {"outcome": "finished"}
    assert (tmp_path / "status.json.damaged").read_bytes() == content
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("WARNING: ") and str(path) in line and "status.json.damaged" in line
    path.write_bytes(content)
    records.set_aside_if_damaged(path)  # a second time: another name
    assert {p.name for p in tmp_path.iterdir()} == {"status.json.damaged", "status.json.damaged-2"}
    records.set_aside_if_damaged(path)  # nothing there
    with pytest.raises(FileNotFoundError):
        records.read_object(path)


@pytest.mark.parametrize(
    "line",
    [
        *(d for d in DAMAGE if d),
        b'{"kimg": null}',
        b'{"kimg": "1"}',
        b'{"kimg": NaN}',
        b'{"kimg": 1e999}',
        b'{"kimg": true}',
    ],
)
def test_damaged_lines_are_set_aside_and_the_others_kept(line, tmp_path, capsys):
    path = tmp_path / "stats.jsonl"
    good = [json.dumps({"kimg": kimg, "x": "é\u2028"}, ensure_ascii=False).encode() for kimg in (1, 2.5, 4)]
    before = b"\n".join([good[0], line, *good[1:]]) + b"\n"
    path.write_bytes(before)
    assert [r["kimg"] for r in records.read_jsonl(path)] == [1, 2.5, 4]
    records.drop_lines_after(path, 2.5)
    assert path.read_bytes() == good[0] + b"\n" + good[1] + b"\n"
    assert (tmp_path / "stats.jsonl.damaged").read_bytes() == before
    assert f"WARNING: 1 of 4 lines of {path} are damaged" in capsys.readouterr().out


def test_an_unfinished_line_is_no_damage(tmp_path, capsys):
    path = tmp_path / "stats.jsonl"
    path.write_bytes(b'{"kimg": 1}\n\n{"metric": "fid"}\n{"kimg": 2}\n{"kimg": 3, "x"')
    records.drop_lines_after(path, 2, and_at=True)
    assert path.read_bytes() == b'{"kimg": 1}\n{"metric": "fid"}\n' and list(tmp_path.iterdir()) == [path]
    path.write_bytes(b'{"kimg": 1}\n{"kimg": 2}')  # an editor's work
    records.drop_lines_after(path, 2)
    assert path.read_bytes() == b'{"kimg": 1}\n{"kimg": 2}\n'
    records.drop_lines_after(tmp_path / "none.jsonl", 2)
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_read_is_not_damaged(tmp_path, monkeypatch):
    path = tmp_path / "stats.jsonl"
    path.write_text('{"kimg": 1}\n')
    left = iter(range(6))
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)

    def faulty(*args, **kwargs):
        if next(left, None) is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open(*args, **kwargs)

    monkeypatch.setattr(records, "open", faulty, raising=False)
    records.drop_lines_after(path, 5)
    left = iter(range(100))
    with pytest.raises(OSError, match=r"Input/output error.*stats.jsonl"):
        records.drop_lines_after(path, 0)
    left = iter(())
    assert path.read_bytes() == b'{"kimg": 1}\n' and list(tmp_path.iterdir()) == [path]


def test_the_last_line(tmp_path):
    path = records.metric_file(tmp_path, "fid50k_full")
    assert path.name == "metric-fid50k_full.jsonl" and records.last_line(path) is None
    for value in ({"kimg": 1}, {"value": 2}):
        records.append_jsonl(path, value)
        assert records.last_line(path) == value
    assert records.metric_files(tmp_path) == [path]
    for damage in (b"null\n", b"5\n", b"\xff\n", b"garbage"):
        path.write_bytes(b'{"kimg": 1}\n' + damage)
        with pytest.raises(
            records.Damaged, match=r"metric-fid50k_full.jsonl is damaged .*move or delete the file"
        ):
            records.last_line(path)


def test_a_full_disk_is_named_when_a_line_is_appended(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    (tmp_path / "stats.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device.*stats.jsonl"):
        records.append_jsonl(tmp_path / "stats.jsonl", {"kimg": 1})


@pytest.mark.parametrize("links", [True, False])
def test_a_copy_takes_the_place_of_what_was_there(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    for content in (b"first", b"second"):
        (tmp_path / "source").unlink(missing_ok=True)
        (tmp_path / "source").write_bytes(content)
        records.replace_with_copy(tmp_path / "source", tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == content
    records.replace_with_copy(tmp_path / "source", tmp_path / "target")  # the same file already
    assert {p.name for p in tmp_path.iterdir()} == {"source", "target"}


def sparse(path: Path, end: bytes) -> Path:
    """A file of 512 MiB that takes no disk space: zeros, then `end`."""
    with open(path, "wb") as file:
        file.truncate(2**29 - len(end))
        file.seek(0, os.SEEK_END)
        file.write(end)
    return path


def test_huge_files_are_damage_like_any_other(tmp_path, capsys):
    status, stats = (
        sparse(tmp_path / "status.json", b""),
        sparse(tmp_path / "stats.jsonl", b'\n{"kimg": 1}\n'),
    )
    with limited(150):
        assert records.read_json(status) == {}
        records.write_json(status, {"outcome": "finished"})
        assert records.read_jsonl(stats) == [{"kimg": 1}] == [records.last_line(stats)]
        records.drop_lines_after(stats, 2)
    assert records.read_object(status) == {"outcome": "finished"} and stats.read_bytes() == b'{"kimg": 1}\n'
    told = capsys.readouterr().out
    assert "status.json is damaged (larger than 16 MiB): kept as status.json.damaged" in told
    assert f"1 of 2 lines of {stats} are damaged" in told
    for name in ("status.json.damaged", "stats.jsonl.damaged"):
        assert (tmp_path / name).stat().st_size == 2**29
    with limited(150), pytest.raises(records.Damaged, match="the last line is not a JSON object"):
        records.last_line(sparse(tmp_path / "metric-fid.jsonl", b""))


def test_lines_together_are_bounded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "MAX_LINES_BYTES", 50)
    path = tmp_path / "stats.jsonl"
    path.write_bytes(b'{"kimg": 1}\n' * 1000)
    assert len(records.read_jsonl(path)) == 4
    records.drop_lines_after(path, 2)
    assert path.read_bytes().count(b"\n") == 5
    assert "995 of 1000 lines" in capsys.readouterr().out
