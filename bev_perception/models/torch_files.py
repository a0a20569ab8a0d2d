"""Read what torch.save has written, in both of its formats, without running or believing anything in it.

torch.load, even with weights_only, lets a file of 6 MB take gigabytes, and returns tensors (sparse, repeated by stride)
that fail half way through load_state_dict. Here the pickle is read by Python's own interpreter of pickles with a few
operations and a handful of names; tensors stay descriptions until they are asked for, and are read only where the file
holds as many bytes as they claim.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

from bev_perception.strict import UserError

#: largest pickle, bytes, and the most pieces that it is read in; that of 10,000 tensors has 2 MB and 600,000
MAX_PICKLE, MAX_PIECES = 1 << 24, 2_000_000
#: most dimensions of a tensor
MAX_DIMENSIONS = 8
#: longest name in a message
MAX_NAME = 80
#: the number that the format before PyTorch 1.6 starts with
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DTYPE_NAMES = {f"{dtype}".removeprefix("torch."): dtype for dtype in _DTYPES.values()}
#: values of these packages, and of these builtin types, are passed over: no weight is made of them
_IGNORED_PACKAGES = ("numpy", "_codecs")
_IGNORED_BUILTINS = ("set", "frozenset", "slice", "complex", "bytearray", "range")


class TorchFileError(UserError):
    """A file that torch.save has not written, or that is damaged or claims more than it holds."""


class ForeignError(TorchFileError):
    """A file with something else than tensors and plain values; `name` is what it would call."""

    def __init__(self, name: str) -> None:
        """Keep the name."""
        super().__init__(f"it holds {name}")
        self.name = name


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet.

    storage: where its numbers are
    offset: of its first number in the storage
    shape: as of a tensor
    stride: as of a tensor
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """Return the tensor; raise TorchFileError if the file does not hold it."""
        return torch.as_strided(self.storage.read(), self.shape, self.stride, self.offset)


@dataclass(frozen=True)
class _Storage:
    """Numbers in a file, not read yet."""

    source: _Zip | _Legacy
    key: str
    dtype: torch.dtype
    count: int

    def read(self) -> Tensor:
        if self.key not in self.source.read_already:
            data = self.source.data(self.key, self.count * self.dtype.itemsize)
            # an empty buffer is none that frombuffer takes
            numbers = torch.frombuffer(data, dtype=self.dtype) if data else torch.empty(0, dtype=self.dtype)
            self.source.read_already[self.key] = numbers
        return self.source.read_already[self.key]


def read_torch_file(path: Path) -> Any:
    """Return the content of a file that torch.save has written, with StoredTensor in the place of tensors.

    Values of numpy and sets are passed over: opaque objects are in their place.

    Raises ForeignError for a file with other objects than tensors and plain values, TorchFileError for one that is
    damaged, and OSError.
    """
    try:
        return (_Zip(path) if zipfile.is_zipfile(path) else _Legacy(path)).content()
    except (TorchFileError, OSError):
        raise
    except Exception as error:  # damaged bytes can make the reader fail anywhere
        raise TorchFileError(f"{type(error).__name__}: {error}"[:200]) from error


@dataclass(eq=False)
class _Zip:
    """The format since PyTorch 1.6: a zip archive of a pickle and one uncompressed file for each storage."""

    path: Path
    read_already: dict[str, Tensor] = field(default_factory=dict)
    folder: str = ""

    def content(self) -> Any:
        with zipfile.ZipFile(self.path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or (
                sum(entry.file_size for entry in entries) > self.path.stat().st_size
            ):
                raise TorchFileError("it is compressed, or claims more bytes than it has")
            pickles = [entry for entry in entries if entry.filename.endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE:
                raise TorchFileError("it has no data.pkl, several, or one that is too long")
            self.folder = pickles[0].filename.removesuffix("data.pkl")
            order = f"{self.folder}byteorder"
            if order in archive.namelist() and archive.read(order) != b"little":
                raise TorchFileError("it comes from a machine with another byte order")
            return _Unpickler(_Bounded(io.BytesIO(archive.read(pickles[0]))), self._storage).load()

    def data(self, key: str, size: int) -> bytearray:
        with zipfile.ZipFile(self.path) as archive:
            entry = archive.getinfo(f"{self.folder}data/{key}")
            if entry.file_size != size:
                raise TorchFileError(f"the storage {key} has {entry.file_size} bytes, its tensors need {size}")
            return bytearray(archive.read(entry))

    def _storage(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        return _checked_storage(self, kind, dtype, key, count)


@dataclass(eq=False)
class _Legacy:
    """The format before PyTorch 1.6: five pickles, then every storage behind its number of elements."""

    path: Path
    read_already: dict[str, Tensor] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    storages: dict[str, _Storage] = field(default_factory=dict)

    def content(self) -> Any:
        with self.path.open("rb") as file:
            bounded = _Bounded(file)
            magic, _, _ = (_Unpickler(bounded, _no_storage).load() for _ in range(3))
            if magic != _LEGACY_MAGIC:
                raise TorchFileError("it does not begin as PyTorch's files do")
            content = _Unpickler(bounded, self._storage).load()
            keys = _Unpickler(bounded, _no_storage).load()
            at, end = file.tell(), self.path.stat().st_size
            for key in keys:
                storage = self.storages[key]
                file.seek(at)
                size = storage.count * storage.dtype.itemsize
                if struct.unpack("<q", file.read(8))[0] != storage.count or at + 8 + size > end:
                    raise TorchFileError(f"the storage {key} is cut off")
                self.places[key] = at + 8
                at += 8 + size
            return content

    def data(self, key: str, size: int) -> bytearray:
        data = bytearray(size)
        with self.path.open("rb") as file:
            file.seek(self.places[key])
            if file.readinto(data) != size:
                raise TorchFileError(f"the storage {key} is cut off")
        return data

    def _storage(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, view = pid
        if view is not None:
            raise TorchFileError("it holds views of storages, as no PyTorch since 0.4 writes them")
        storage = _checked_storage(self, kind, dtype, key, count)
        if self.storages.setdefault(key, storage) != storage:
            raise TorchFileError(f"the storage {key[:MAX_NAME]} is described twice")
        return storage


def _no_storage(pid: Any) -> _Storage:
    raise TorchFileError("it has a tensor where none can be")


def _checked_storage(source: _Zip | _Legacy, kind: Any, dtype: Any, key: Any, count: Any) -> _Storage:
    if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
        raise TorchFileError("it holds a tensor that is described in an unknown way")
    if not isinstance(count, int) or count < 0:
        raise TorchFileError(f"the storage {key[:MAX_NAME]} claims {count} numbers")
    return _Storage(source, key, dtype, count)


class _Bounded:
    """The file-like object that a pickle is read from, up to a number of bytes and of pieces."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left, self._pieces = file, MAX_PICKLE, MAX_PIECES

    def read(self, size: int) -> bytes:
        return self._count(self._file.read(min(size, self._left + 1)))

    def readline(self) -> bytes:
        return self._count(self._file.readline(self._left + 1))

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        self._pieces -= 1
        if self._left < 0 or self._pieces < 0:
            raise TorchFileError("it holds far more than tensors beside its numbers")
        return data


class _Ignored:
    """Stands where a value was that is passed over."""

    def __init__(self, *_: Any) -> None:
        """Take any arguments."""


def _key(key: Any) -> Any:
    """Return a key of a mapping; nested tuples could overflow the stack when they are hashed."""
    if not isinstance(key, (str, int, float, bytes, type(None))):
        raise TorchFileError(f"it has a {type(key).__name__} as a key")
    return key


def _mapping(items: Iterable[tuple[Any, Any]] = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in items}


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    """Describe a tensor whose numbers all lie in the storage, each for itself."""
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, _Storage) or not all(isinstance(n, int) and 0 <= n < 1 << 62 for n in numbers):
        raise TorchFileError("it holds a tensor that is described in an unknown way")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise TorchFileError(f"it holds a tensor of {len(shape)} dimensions")
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if count and (count > storage.count or last >= storage.count):
        raise TorchFileError(f"a tensor of {list(shape)} claims more numbers than the {storage.count} of its storage")
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(rebuild: Any, _: Any, arguments: Any, *__: Any) -> Any:
    if rebuild not in (_tensor, _parameter):
        raise TorchFileError("it holds a tensor that is described in an unknown way")
    return rebuild(*arguments)


_NAMES: dict[str, Any] = {
    "collections.OrderedDict": _mapping,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Tensor": _Ignored,
    "torch.nn.parameter.Parameter": _Ignored,
    "torch.Size": tuple,
    "torch.device": _Ignored,
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
    **{f"torch.storage.{name}": dtype for name, dtype in _DTYPES.items()},
    **{f"torch.{name}": dtype for name, dtype in _DTYPE_NAMES.items()},
}


_REFUSED = tuple(
    operation[0]
    for operation in (
        *(pickle.INST, pickle.OBJ, pickle.DICT, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.ADDITEMS, pickle.FROZENSET, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.PERSID),
    )
)


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler without the operations that torch.save needs not and with no names but _NAMES.

    The one in C believes the size of its table of repeated values, and takes memory for it.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: _Bounded, storage: Callable[[Any], _Storage]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def persistent_load(self, pid: Any) -> _Storage:
        return self._storage(pid)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _NAMES:
            return _NAMES[full]
        if module.split(".")[0] in _IGNORED_PACKAGES:
            return _Ignored
        if module in ("builtins", "__builtin__") and name in _IGNORED_BUILTINS:
            return _Ignored
        raise ForeignError(full[:MAX_NAME])

    def load_build(self) -> None:
        """Leave out what an object would set in itself, such as the versions in a state_dict."""
        self.stack.pop()

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._insert([key, value])

    def load_setitems(self) -> None:
        self._insert(self.pop_mark())

    def _insert(self, items: list[Any]) -> None:
        mapping = self.stack[-1]
        if isinstance(mapping, dict):
            mapping.update(_mapping(zip(items[::2], items[1::2], strict=True)))
        elif not isinstance(mapping, _Ignored):
            raise TorchFileError("it sets items of something that has none")

    def load_frame(self) -> None:
        """Pass over the length of a frame, so that everything is read, and counted, by _Bounded."""
        self.read(8)

    def load_refused(self) -> None:
        raise TorchFileError("it holds an operation that torch.save does not write")

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
        pickle.FRAME[0]: load_frame,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
        **dict.fromkeys(_REFUSED, load_refused),
    }
