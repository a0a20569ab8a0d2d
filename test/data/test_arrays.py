"""npz files: whole arrays of the size that they claim, or an error before memory is taken."""

import contextlib
import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.data.arrays import ArraysError, names_of, read_arrays

ARRAYS = {"a": np.arange(12).reshape(3, 4), "b": np.asfortranarray(np.ones((2, 3), np.float32)), "c": np.array("word")}


def npz(**arrays):
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def header(shape, dtype="<f8"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archive(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)
    return file.getvalue()


def test_arrays_come_back(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz(**ARRAYS))
    found = read_arrays(tmp_path / "a.npz")
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        assert found[name].flags.writeable
    assert list(read_arrays(tmp_path / "a.npz", ("b", "z"))) == ["b"]
    assert names_of(tmp_path / "a.npz") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(header((1 << 40,))), "does not fit"),
        (archive(header((1 << 40, 0)) + b"x"), "does not fit"),
        (archive(header((-1,)) + bytes(8)), "does not fit"),
        (archive(header((1,), "|O") + bytes(8)), "Python objects"),
        (archive(bytes(1 << 27)), "more than 67108864 bytes"),
        (archive(b"\x93NUMPY\x09\x00"), "."),
        (archive(b""), "."),
        (b"PK", "."),
    ],
)
def test_what_is_refused(tmp_path, content, message):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ArraysError, match=message):
        read_arrays(tmp_path / "a.npz")


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_damaged_files_give_arrays_or_an_error(tmp_path_factory, changes):
    damaged = bytearray(npz(**ARRAYS))
    for at, value in changes:
        damaged[at % len(damaged)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(ArraysError):
        assert all(isinstance(array, np.ndarray) for array in read_arrays(path).values())
