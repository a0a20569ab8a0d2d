"""A cache is the user's own, or it is not used."""

import os

import pytest

from bev_perception.data.caches import CacheError, is_own_file, private_directory


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750])
def test_a_directory_of_ones_own_is_closed_to_others(tmp_path, mode):
    path = tmp_path / "a" / "cache"
    assert private_directory(path).stat().st_mode & 0o777 == 0o700
    path.chmod(mode)
    assert private_directory(path).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_what_others_could_write_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(CacheError, match=f"mode {mode:o}.*BEV_PERCEPTION_CACHE"):
        private_directory(tmp_path)


def test_other_owners_links_and_files_are_refused(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir(0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").write_text("")
    for name in ("link", "file", "file/below"):
        with pytest.raises(CacheError):
            private_directory(tmp_path / name)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with pytest.raises(CacheError, match=f"owner {user}"):
        private_directory(tmp_path / "real")
    assert not is_own_file(tmp_path / "file")


def test_own_files(tmp_path):
    file = tmp_path / "file"
    assert not is_own_file(file)
    file.write_text("")
    file.chmod(0o644)
    assert is_own_file(file)
    file.chmod(0o664)
    assert not is_own_file(file)
    (tmp_path / "link").symlink_to(file)
    assert not is_own_file(tmp_path / "link")
