"""The digest over the files of an artifact, which may be a folder."""

from __future__ import annotations

import hashlib
import shutil

import pytest

from y7edge.artifact.artifact import digest_files
from y7edge.errors import ArtifactError


@pytest.fixture
def folder(tmp_path):
    """Two files with equal content, one of them in a folder."""
    (tmp_path / "package" / "inside").mkdir(parents=True)
    (tmp_path / "package" / "a.bin").write_bytes(b"same")
    (tmp_path / "package" / "inside" / "a.bin").write_bytes(b"same")
    return tmp_path / "package"


def test_files_are_hashed_with_their_lengths(tmp_path):
    """The digest of files is that of all versions of this package."""
    (tmp_path / "a").write_bytes(b"12")
    (tmp_path / "b").write_bytes(b"3")
    content = b"".join(len(part).to_bytes(8, "little") + part for part in (b"12", b"3"))
    assert digest_files([tmp_path / "a", tmp_path / "b"]) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a.bin").rename(folder / "b.bin"),
        lambda folder: (folder / "inside").rename(folder / "outside"),
        lambda folder: (folder / "inside" / "a.bin").rename(folder / "inside" / "a.bi"),
        lambda folder: (folder / "empty").touch(),
        lambda folder: (folder / "a.bin").write_bytes(b"sane"),
        lambda folder: (folder / "a.bin").unlink(),
    ],
)
def test_names_and_contents_in_a_folder_count(folder, change, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert digest_files([tmp_path / "copy"]) == digest_files([folder])
    change(folder)
    assert digest_files([tmp_path / "copy"]) != digest_files([folder])


def test_a_broken_link_in_a_folder_is_refused(folder):
    (folder / "link").symlink_to("nowhere")
    with pytest.raises(ArtifactError, match="link"):
        digest_files([folder])
