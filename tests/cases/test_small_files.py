"""A small file that cannot be read is an error that names it and says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmascope.errors import CheckpointError, GemmascopeError
from gemmascope.files.json_reader import read_bytes


def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_bytes(path, 5) == b"12345"
    with pytest.raises(CheckpointError, match="has more than 4 bytes"):
        read_bytes(path, 4)


def test_what_is_no_file_is_refused_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        read_bytes(tmp_path, 5)
    with pytest.raises(CheckpointError, match="absent cannot be read: No such file"):
        read_bytes(tmp_path / "absent", 5)
    with pytest.raises(GemmascopeError, match=r"cannot be read: .*null"):
        read_bytes(tmp_path / "a\0b", 5)


def test_a_link_to_nothing_says_where_it_leads(tmp_path: Path) -> None:
    link = tmp_path / "link"
    try:
        link.symlink_to("gone")
    except OSError:
        pytest.skip("this user may not make links")
    with pytest.raises(CheckpointError, match="it is a link to gone, which is not there"):
        read_bytes(link, 5)


def test_a_pointer_of_git_lfs_is_not_taken_for_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(CheckpointError, match=r"git.lfs"):
        read_bytes(path, 1000)
