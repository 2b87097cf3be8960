# SPDX-License-Identifier: Apache-2.0
"""Fetching for machines without a network: the list at the end, failures that keep nothing back."""

import hashlib

from torch_utils import prefetch


def test_all_are_tried_and_listed_once(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"abc")

    def broken():
        raise FileNotFoundError("weights of b: cannot fetch them")

    items = [
        prefetch.Item("one (backbone)", lambda: tmp_path / "a.bin"),
        prefetch.Item("two", broken),
        prefetch.Item("three (random)", lambda: None),
        prefetch.Item("one (class embedding)", lambda: str(tmp_path / "a.bin")),
    ]
    lines: list[str] = []
    assert prefetch.fetch_all(items, lines.append) == ["two: weights of b: cannot fetch them"]
    text = "\n".join(lines)
    assert text.count(str(tmp_path / "a.bin")) == 1 and "one (backbone), one (class embedding)" in text
    assert f"3 bytes, sha256 {hashlib.sha256(b'abc').hexdigest()}" in text
    assert lines[-1] == "\n1 file, 3 bytes; 1 missing"
