"""SemanticOccupancy's layout: the decoder of the .msg file's comments, round trips of anything, and what is refused."""

import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bev_perception.classes import OCC3D_CLASSES
from bev_perception.results.occupancy_codec import decode, encode
from bev_perception.types import OCC3D_GRID, Occupancy, VoxelGrid

#: whatever else the machine is doing
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)


def message_of(occupancy: Occupancy) -> SimpleNamespace:
    runs, grid = encode(occupancy), occupancy.grid
    return SimpleNamespace(
        origin=SimpleNamespace(x=grid.origin[0], y=grid.origin[1], z=grid.origin[2]),
        resolution=grid.resolution,
        shape=np.array(grid.shape, np.uint32),
        class_names=list(occupancy.class_names),
        run_labels=runs.labels,
        run_lengths=runs.lengths,
        run_instances=runs.instances,
    )


def decode_by_the_letter(message: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """The loop in the comments of SemanticOccupancy.msg; voxel (i, j, k) has the number i + X (j + Y k)."""
    labels, instances = [], []
    for r in range(len(message.run_labels)):
        for _ in range(message.run_lengths[r]):
            labels.append(message.run_labels[r])
            instances.append(message.run_instances[r] if len(message.run_instances) else 0)
    x, y, z = message.shape
    index = np.arange(x)[:, None, None] + x * (np.arange(y)[:, None] + y * np.arange(z))
    return np.array(labels)[index], np.array(instances)[index]


@st.composite
def occupancies(draw) -> Occupancy:
    """Grids of any shape: noisy, or with runs beyond 255 voxels."""
    shape = draw(st.tuples(st.integers(1, 300), st.integers(1, 6), st.integers(1, 4)))
    classes = draw(st.integers(1, 256))
    fill = draw(st.sampled_from([None, st.just(0)]))
    semantics = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, classes - 1), fill=fill))
    ids = hnp.arrays(np.int16, shape, elements=st.integers(0, 2**15 - 1), fill=st.just(0))
    origin = draw(st.tuples(*[st.floats(-1e6, 1e6)] * 3))
    grid = VoxelGrid(origin, draw(st.floats(1e-3, 1e3)), shape)
    names = tuple(f"class {k}" for k in range(classes))
    return Occupancy(semantics, names, grid, draw(st.none() | ids))


def assert_equal(a: Occupancy, b: Occupancy) -> None:
    assert (a.class_names, a.grid) == (b.class_names, b.grid)
    assert a.semantics.dtype == np.uint8 and np.array_equal(a.semantics, b.semantics)
    assert (a.instances is None) == (b.instances is None)
    if a.instances is not None:
        assert a.instances.dtype == np.int16 and np.array_equal(a.instances, b.instances)


@PATIENT
@given(occupancies())
def test_round_trip(occupancy):
    message = message_of(occupancy)
    assert_equal(decode(message), occupancy)
    assert message.run_labels.dtype == message.run_lengths.dtype == np.uint8 and message.run_instances.dtype == np.int16
    labels, instances = decode_by_the_letter(message)
    assert np.array_equal(labels, occupancy.semantics)
    if occupancy.instances is not None:
        assert np.array_equal(instances, occupancy.instances)


@PATIENT
@given(occupancies())
def test_lists_decode_as_arrays_do(occupancy):
    message = message_of(occupancy)
    for name in ("run_labels", "run_lengths", "run_instances", "shape"):
        setattr(message, name, getattr(message, name).tolist())
    assert_equal(decode(message), occupancy)


def test_runs_go_along_x_first():
    semantics = np.full((300, 2, 2), 1, np.uint8)
    semantics[10:20, 1, 0] = 0
    runs = encode(Occupancy(semantics, ("wall", "free"), VoxelGrid((0.0, 0.0, 0.0), 0.5, (300, 2, 2))))
    assert runs.labels.tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert runs.lengths.tolist() == [255, 55, 10, 255, 255, 255, 115]
    assert runs.instances.tolist() == []


def test_two_objects_side_by_side_are_two_runs():
    semantics = np.zeros((6, 1, 1), np.uint8)
    instances = np.array([1, 1, 1, 2, 2, 0], np.int16).reshape(6, 1, 1)
    runs = encode(Occupancy(semantics, ("car", "free"), VoxelGrid((0.0, 0.0, 0.0), 0.5, (6, 1, 1)), instances))
    assert runs.lengths.tolist() == [3, 2, 1] and runs.instances.tolist() == [1, 2, 0]


def test_an_empty_world_costs_five_kilobytes():
    empty = np.full(OCC3D_GRID.shape, OCC3D_CLASSES.index("free"), np.uint8)
    runs = encode(Occupancy(empty, OCC3D_CLASSES))
    assert runs.labels.nbytes + runs.lengths.nbytes == 2 * -(-640_000 // 255)


def test_the_real_label_costs_less_than_a_datagram(nuscenes_root):
    with np.load(next(nuscenes_root.glob("gts/*/*/labels.npz"))) as label:
        occupancy = Occupancy(label["semantics"], OCC3D_CLASSES)
    message = message_of(occupancy)
    assert message.run_labels.nbytes + message.run_lengths.nbytes < 64_000
    assert_equal(decode(message), occupancy)


# ------------------------------------------------------------------ what is refused


@pytest.fixture
def message() -> SimpleNamespace:
    semantics = np.array([0, 0, 1, 1, 2, 2, 2, 2], np.uint8).reshape(2, 2, 2, order="F")
    grid = VoxelGrid((-1.0, -2.0, -3.0), 0.4, (2, 2, 2))
    return message_of(Occupancy(semantics, ("car", "road", "free"), grid, semantics.astype(np.int16)))


MALFORMED = {
    "no classes": ({"class_names": []}, "class_names"),
    "too many classes": ({"class_names": ["x"] * 257}, "class_names"),
    "a label without a name": ({"class_names": ["car", "free"]}, "run_labels"),
    "labels missing": ({"run_labels": [0, 1]}, "run_labels"),
    "no runs": ({"run_labels": [], "run_lengths": [], "run_instances": []}, "run_lengths add up to 0"),
    "instances missing": ({"run_instances": [1]}, "run_instances"),
    "an instance below zero": ({"run_instances": [0, -1, 2]}, "run_instances"),
    "too few voxels": ({"run_lengths": [2, 2, 3]}, "add up to 7"),
    "too many voxels": ({"run_lengths": [2, 2, 5]}, "add up to 9"),
    "a run of nothing": ({"run_lengths": [4, 0, 4]}, "no voxels"),
    "a run beyond a byte": ({"run_lengths": [2, 2, 260]}, "run_lengths"),
    "a run backwards": ({"run_lengths": [2, 7, -1]}, "run_lengths"),
    "fractions": ({"run_lengths": [2.0, 2.0, 4.0]}, "run_lengths"),
    "a table": ({"run_labels": [[0], [1], [2]]}, "run_labels"),
    "two axes": ({"shape": [4, 2]}, "shape"),
    "an axis without voxels": ({"shape": [4, 2, 0]}, "shape"),
    "another shape": ({"shape": [2, 2, 3]}, r"\(2, 2, 3\) has 12"),
    "voxels of no size": ({"resolution": 0.0}, "resolution"),
    "voxels of any size": ({"resolution": float("nan")}, "resolution"),
    "an origin nowhere": ({"origin": SimpleNamespace(x=0.0, y=float("inf"), z=0.0)}, "origin"),
}


@pytest.mark.parametrize(("changes", "text"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_message_is_named(message, changes, text):
    decode(message)
    vars(message).update(changes)
    with pytest.raises(ValueError, match=text):
        decode(message)


@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (2**22, 2**21, 2**21), (2**31, 2**31, 4), (2**32 - 1, 1, 1)])
def test_a_shape_that_overflows_takes_no_memory(message, shape):
    """2**22 * 2**21 * 2**21 and 2**31 * 2**31 * 4 are 0 in 64 bits; 8 voxels are there."""
    message.shape = np.array(shape, np.uint32)
    tracemalloc.start()
    with pytest.raises(ValueError, match="add up to 8 voxels"):
        decode(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@PATIENT
@given(
    shape=st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3) | st.just([3, 3, 3]),
    classes=st.integers(0, 300),
    labels=hnp.arrays(np.uint8, st.integers(0, 9)),
    lengths=hnp.arrays(np.uint8, st.integers(0, 9)),
    instances=hnp.arrays(np.int16, st.integers(0, 9)),
    numbers=st.lists(st.floats(), min_size=4, max_size=4),
)
def test_whatever_comes_is_an_occupancy_or_a_value_error(shape, classes, labels, lengths, instances, numbers):
    message = SimpleNamespace(
        origin=SimpleNamespace(x=numbers[0], y=numbers[1], z=numbers[2]),
        resolution=numbers[3],
        shape=shape,
        class_names=["x"] * classes,
        run_labels=labels,
        run_lengths=lengths,
        run_instances=instances,
    )
    try:
        occupancy = decode(message)
    except ValueError:
        return
    assert occupancy.semantics.shape == tuple(shape) and occupancy.semantics.max() < classes


def test_an_occupancy_that_cannot_be_encoded_is_named():
    grid = VoxelGrid((0.0, 0.0, 0.0), 1.0, (2, 3, 4))
    good = np.zeros(grid.shape, np.uint8)
    for semantics, names, own, instances, text in (
        (good.transpose(2, 1, 0), ("free",), grid, None, "semantics"),
        (good + 1, ("free",), grid, None, "semantics"),
        (good, (), grid, None, "classes"),
        (good, ("x",) * 257, grid, None, "classes"),
        (good[:0], ("free",), VoxelGrid(grid.origin, 1.0, (0, 3, 4)), None, "grid"),
        (good, ("free",), grid, good[1:].astype(np.int16), "instances"),
        (good, ("free",), grid, good.astype(np.int16) - 1, "instances"),
        (good, ("free",), grid, good.astype(np.int64) + 2**15, "instances"),
    ):
        with pytest.raises(ValueError, match=text):
            encode(Occupancy(semantics, names, own, instances))


def test_subscribers_need_neither_ros_nor_torch():
    script = (
        "import sys, bev_perception.results.occupancy_codec as c; print('torch' in sys.modules, 'rclpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
