"""Files of torch.save: both formats give the tensors back; nothing in them is run, believed or blown up."""

import io
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bev_perception.models import torch_files
from bev_perception.models.torch_files import (
    MAX_PICKLE,
    ForeignError,
    StoredTensor,
    TorchFileError,
    read_torch_file,
)

TENSORS = {
    "plain": torch.arange(12.0).reshape(3, 4),
    "turned": torch.arange(12.0).reshape(3, 4).T,
    "last": torch.arange(48.0).reshape(1, 3, 4, 4).to(memory_format=torch.channels_last),
    "part": torch.arange(20)[5:11],
    "half": torch.ones(3, dtype=torch.float16),
    "brain": torch.ones(3, dtype=torch.bfloat16),
    "mask": torch.tensor([True, False]),
    "scalar": torch.tensor(7),
    "empty": torch.zeros(0, 3),
}
LEGACY_HEAD = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {}))


def dump(content, zipped=True, protocol=2):
    file = io.BytesIO()
    torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def read(data, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(data)
    return read_torch_file(path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_tensor_comes_back(tmp_path, zipped, protocol):
    plain = {"a": [1, 2.5, None, True], "b": ("x", 1 << 70), "c": {3: ["y"]}}
    parameter = torch.nn.Parameter(torch.ones(2))
    found = read(dump({**TENSORS, **plain, "parameter": parameter}, zipped, protocol), tmp_path)
    for name, tensor in {**TENSORS, "parameter": parameter.data}.items():
        assert isinstance(found[name], StoredTensor) and found[name].shape == tensor.shape
        loaded = found[name].read()
        assert loaded.dtype == tensor.dtype and torch.equal(loaded, tensor)
    assert {name: found[name] for name in plain} == plain


def test_tensors_that_share_numbers_are_read_once(tmp_path):
    base = torch.arange(6.0)
    found = read(dump({"a": base, "b": base[2:]}), tmp_path)
    assert found["a"].read().untyped_storage().data_ptr() == found["b"].read().untyped_storage().data_ptr()


def rezip(data, change):
    """Return the archive with its entries written anew: change(name, content) -> (content, compression)."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.infolist():
            content, compression = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content, compression)
    return file.getvalue()


def test_an_archive_that_grows_is_refused_before_it_grows(tmp_path):
    bomb = rezip(
        dump({"a": torch.zeros(10_000_000)}), lambda name, content: (content, zipfile.ZIP_DEFLATED)
    )  # 40 kB for 40 MB
    assert len(bomb) < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TorchFileError, match="compressed"):
        read(bomb, tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, content: (None if name.endswith("data.pkl") else content, zipfile.ZIP_STORED), "data.pkl"),
        (lambda name, content: (b"big" if "byteorder" in name else content, zipfile.ZIP_STORED), "byte order"),
        (
            lambda name, content: (content + bytes(1 << 25) if name.endswith(".pkl") else content, zipfile.ZIP_STORED),
            "too long",
        ),
    ],
)
def test_archives_that_are_refused(tmp_path, change, message):
    with pytest.raises(TorchFileError, match=message):
        read(rezip(dump(TENSORS), change), tmp_path)


def test_a_storage_shorter_than_its_tensors_is_refused(tmp_path):
    cut = rezip(dump(TENSORS), lambda name, c: (c[:-4] if name.endswith("data/0") else c, zipfile.ZIP_STORED))
    found = read(cut, tmp_path)
    with pytest.raises(TorchFileError, match="storage 0 has"):
        found["plain"].read()


def legacy(body, keys=b"]."):
    return LEGACY_HEAD + body + keys


def legacy_tensor(count, shape, stride):
    """A legacy file of one float tensor whose storage claims `count` numbers, with 4 numbers behind it."""
    pid = ("storage", torch.FloatStorage, "0", "cpu", count, None)

    class Claim:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Persistent(), 0, shape, stride, False, OrderedDict())

    class Persistent:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return pid if isinstance(obj, Persistent) else None

    file = io.BytesIO()
    Pickler(file, 2).dump({"a": Claim()})
    return legacy(file.getvalue(), pickle.dumps(["0"], 2)) + struct.pack("<q", count) + bytes(16)


def test_a_legacy_file_is_not_believed(tmp_path):
    assert read(legacy_tensor(4, (4,), (1,)), tmp_path)["a"].read().tolist() == [0.0] * 4
    for count, shape, stride, message in (
        (1 << 40, (1 << 40,), (1,), "cut off"),
        (4, (1 << 31, 4), (0, 1), "claims more numbers"),
        (4, (4,), (2,), "claims more numbers"),
        (4, (-4,), (1,), "unknown way"),
        (4, (1,) * 9, (1,) * 9, "9 dimensions"),
        (-4, (4,), (1,), "claims -4"),
    ):
        with pytest.raises(TorchFileError, match=message):
            read(legacy_tensor(count, shape, stride), tmp_path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"cposix\nsystem\n(S'true'\ntR.", "posix.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"ctorch.hub\nload\n)R.", "torch.hub.load"),
        (b"(iposix\nsystem\n.", "operation"),
        (b"\x82\x01.", "operation"),
        (b"}" + b"(" * 100_000 + b")t" * 0 + b")" + b"\x85" * 100_000 + b"K\x01s.", "as a key|Error"),
        (b"\x80\x02r\xff\xff\xff\xff.", "Error"),  # a table of 4 billion repeated values
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "Error"),  # bytes longer than the file
        (b"N" * 60_000, "far more than tensors"),
        (b"\x95" + b"\x00\x00\x00\x01" + bytes(4) + b"N" * 60_000, "far more than tensors"),
        (b"B\xff\xff\xff\x7f" + bytes(MAX_PICKLE), "far more than tensors"),
        (b"", "Error"),
    ],
)
def test_pickles_that_are_refused(tmp_path, monkeypatch, body, message):
    monkeypatch.setattr(torch_files, "MAX_PIECES", 300_000 if b"\x85" in body else 50_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TorchFileError, match=message):
        read(legacy(body), tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_what_is_called_is_named(tmp_path):
    with pytest.raises(ForeignError) as caught:
        read(legacy(b"cposix\nsystem\n."), tmp_path)
    assert caught.value.name == "posix.system"


def test_values_that_are_passed_over_take_no_memory(tmp_path):
    """bytearray and encode repeat what the file holds once as often as it likes."""
    repeated = (
        b"U\xff" + b"x" * 255 + b"q\x00" + b"cbuiltins\nbytearray\nq\x01" + b"h\x01J\xff\xff\xff\x7f\x85R0" * 1000
    )
    assert read(legacy(b"(" + repeated + b"t0K\x07."), tmp_path) == 7


@given(st.sampled_from([True, False]), st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6))
@settings(max_examples=150, deadline=None)
def test_damaged_files_give_tensors_or_an_error(tmp_path_factory, zipped, changes):
    damaged = bytearray(dump(TENSORS, zipped))
    for at, value in changes:
        damaged[at % len(damaged)] = value
    try:
        found = read(bytes(damaged), tmp_path_factory.mktemp("damaged"))
        for value in found.values() if isinstance(found, dict) else ():
            if isinstance(value, StoredTensor):
                value.read()
    except (TorchFileError, zipfile.BadZipFile, KeyError, RuntimeError, TypeError, ValueError, NotImplementedError):
        pass  # what is wrong in the numbers is found when they are read
