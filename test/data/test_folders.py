"""One writer a folder, whoever ends and however; whole folders or none."""

import multiprocessing
import os
import signal

import pytest

from bev_perception.data.folders import FolderError, locked, one_writer, whole_folder


def hold(folder, ready):
    with one_writer(folder):
        (folder / "half.partial").write_text("")
        ready.set()
        signal.pause()


def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "out", ready))
    process.start()
    assert ready.wait(30)
    with pytest.raises(FolderError, match="another process is writing .*out"), one_writer(tmp_path / "out"):
        pass
    os.kill(process.pid, signal.SIGKILL)  # nothing in it runs any more
    process.join(30)
    with one_writer(tmp_path / "out", "*.partial"):
        assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="cannot be written"), one_writer(tmp_path / "file" / "out"):
        pass


def test_a_file_is_locked_alone(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).touch()
    with locked(tmp_path / "a"):
        with locked(tmp_path / "b"):
            pass
        with pytest.raises(FolderError), locked(tmp_path / "a"):
            pass
    with locked(tmp_path / "a"):
        pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_appears_when_it_is_whole(tmp_path, error):
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "left").write_text("")
    with (
        pytest.raises((FolderError, KeyboardInterrupt), match=r"No space.*make room|"),
        whole_folder(tmp_path / "new") as path,
    ):
        path.mkdir()
        raise error
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "new") as path:
        assert not (tmp_path / "new").exists()
        path.mkdir()
        (path / "file").write_text("x")
    assert [p.name for p in tmp_path.iterdir()] == ["new"] and (tmp_path / "new" / "file").read_text() == "x"
