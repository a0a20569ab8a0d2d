"""Files that are complete when they appear."""

import pytest

from bev_perception.files import whole_file


def test_a_file_appears_with_its_end(tmp_path):
    path = tmp_path / "new" / "scores.json"
    with whole_file(path) as partial:
        partial.write_text("{}")
        assert not path.exists() and partial.suffix == ".json" and partial.parent == path.parent
        assert partial in path.parent.glob("*.part.*")
    assert path.read_text() == "{}" and list(path.parent.iterdir()) == [path]


def test_what_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("before")
    with pytest.raises(OSError, match="full"), whole_file(path) as partial:
        partial.write_text("half")
        raise OSError("the disk is full")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
