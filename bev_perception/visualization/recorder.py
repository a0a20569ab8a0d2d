"""What the live viewer shows of a frame, as entities of rerun (https://rerun.io): the names, colours and units.

The world is the global frame with its origin where the first frame was taken, since float32 holds no more than that.

    world/path                  where the vehicle has been
    world/trails                where each track has been
    world/ego                   base_link, at the frame's stamp
    world/ego/boxes             predicted boxes with class, track id and score
    world/ego/velocities        arrows as long as what a box covers in a second
    world/ego/truth             true boxes, white
    world/ego/occupancy         voxels in the colours of their classes
    world/ego/<camera>          the optical frame at the camera's own stamp, with the image
    plots/timings/<stage>       ms
    plots/boxes                 the number of predicted boxes
    log                         resets of the memory, and why cameras are missing
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from bev_perception.classes import class_colors, track_color
from bev_perception.geometry import invert_transform, transform_points
from bev_perception.sensing.images import ImageError, decode_image
from bev_perception.tracking.trails import Trails
from bev_perception.types import NO_TRACK, Boxes3D, Frame, Occupancy, Result, View
from bev_perception.visualization.canvas import (
    EGO_HEIGHT,
    EGO_LENGTH,
    EGO_REAR,
    EGO_WIDTH,
    place_image,
    rows_of_cameras,
)
from bev_perception.visualization.pictures import MIN_SPEED, TRUTH

#: the timeline: header stamps
TIMELINE = "stamp"
#: pixels of an image's longer side; larger ones are scaled down, so that a recording stays small
IMAGE_SIDE = 960
JPEG_QUALITY = 85
#: s of the vehicle's path that is shown
PATH_SECONDS = 60.0
EGO, BOXES, TRUE_BOXES, VELOCITIES = "world/ego", "world/ego/boxes", "world/ego/truth", "world/ego/velocities"
VOXELS, PATH, TRAILS, LOG = "world/ego/occupancy", "world/path", "world/trails", "log"
EGO_COLOR, PATH_COLOR = (230, 230, 230), (255, 200, 60)


class SceneRecorder:
    """Writes frames and their results to a recording of rerun; slow, a tenth of a second for six large images."""

    def __init__(self, stream: Any) -> None:
        """Write to a recording.

        stream: a rerun.RecordingStream that is connected to a viewer or a file
        """
        self._stream = stream
        self._trails = Trails()
        self._path: deque[tuple[int, np.ndarray]] = deque()  # stamp, place in the world
        self._origin: np.ndarray | None = None

    def show(self, frame: Frame, result: Result | None = None, truth: Boxes3D | None = None) -> None:
        """Write one frame.

        result: of the frame; None shows the cameras alone
        truth: true boxes in base_link; None if they are not known
        """
        if self._origin is None:
            self._begin(frame)
        self._stream.set_time(TIMELINE, timestamp=np.datetime64(frame.stamp, "ns"))
        self._log_vehicle(frame, restart=result is not None and result.reset is not None)
        for camera, view in zip(frame.cameras, frame.views, strict=True):
            self._log_camera(camera, view, frame)
        if truth is not None:
            self._log_boxes(TRUE_BOXES, truth, np.tile(TRUTH, (len(truth), 1)), scores=False)
        if result is not None:
            self._log_result(frame, result)

    def close(self) -> None:
        """Write what is still in a buffer."""
        self._stream.flush()

    def _begin(self, frame: Frame) -> None:
        self._origin = frame.ego2global[:3, 3].copy()
        self._stream.log("world", rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)
        car = rr.Boxes3D(
            centers=[[EGO_LENGTH / 2 - EGO_REAR, 0.0, EGO_HEIGHT / 2]],
            sizes=[[EGO_LENGTH, EGO_WIDTH, EGO_HEIGHT]],
            colors=[EGO_COLOR],
        )
        self._stream.log(f"{EGO}/vehicle", car, static=True)
        rr.send_blueprint(blueprint(frame.cameras), recording=self._stream)

    def _log_vehicle(self, frame: Frame, restart: bool) -> None:
        ego2world = self._ego2world(frame.ego2global)
        self._stream.log(EGO, _transform(ego2world))
        if restart:
            self._path.clear()
        self._path.append((frame.stamp, ego2world[:3, 3]))
        while self._path[0][0] < frame.stamp - round(PATH_SECONDS * 1e9):
            self._path.popleft()
        way = np.stack([place for _, place in self._path])
        self._stream.log(PATH, rr.LineStrips3D([way], colors=[PATH_COLOR], radii=[0.1]))

    def _log_camera(self, camera: str, view: View | None, frame: Frame) -> None:
        path = f"{EGO}/{camera}"
        picture = None if view is None else encode_view(view)
        if view is None or picture is None:
            self._stream.log(path, rr.Clear(recursive=True))
            self._stream.log(LOG, rr.TextLog(f"{camera}: {frame.missing.get(camera, 'no image')}", level="WARN"))
            return
        jpeg, camera2image, size = picture
        sensor2ego = invert_transform(frame.ego2global) @ view.ego2global @ view.sensor2ego
        self._stream.log(path, _transform(sensor2ego))
        self._stream.log(
            path,
            rr.Pinhole(
                image_from_camera=camera2image,
                resolution=size,
                camera_xyz=rr.ViewCoordinates.RDF,
                image_plane_distance=1.5,
            ),
        )
        self._stream.log(f"{path}/image", rr.EncodedImage(contents=jpeg, media_type="image/jpeg"))

    def _log_result(self, frame: Frame, result: Result) -> None:
        if result.reset is not None:
            self._trails.clear()
            self._stream.log(LOG, rr.TextLog(f"memory wiped: {result.reset}", level="WARN"))
        for camera in result.missing.keys() - frame.missing.keys():
            self._stream.log(LOG, rr.TextLog(f"{camera}: {result.missing[camera]}", level="WARN"))
        if result.boxes is not None:
            self._log_predicted(frame, result.boxes)
        if result.occupancy is not None:
            self._log_occupancy(result.occupancy)
        for stage, seconds in result.timings.items():
            self._stream.log(f"plots/timings/{stage}", rr.Scalars([1000 * seconds]))

    def _log_predicted(self, frame: Frame, boxes: Boxes3D) -> None:
        colors = class_colors(boxes.class_names)[boxes.labels]
        self._log_boxes(BOXES, boxes, colors, scores=True)
        moving = np.hypot(*boxes.velocities.T) >= MIN_SPEED
        if moving.any():
            vectors = np.pad(boxes.velocities[moving], ((0, 0), (0, 1)))
            arrows = rr.Arrows3D(origins=boxes.centers[moving], vectors=vectors, colors=colors[moving])
            self._stream.log(VELOCITIES, arrows)
        else:
            self._stream.log(VELOCITIES, rr.Clear(recursive=False))
        self._trails.add(frame.stamp, boxes, frame.ego2global)
        lines = self._trails.lines()
        if lines:
            strips = [transform_points(self._world_of_global(), line) for line in lines.values()]
            self._stream.log(TRAILS, rr.LineStrips3D(strips, colors=[track_color(track) for track in lines]))
        else:
            self._stream.log(TRAILS, rr.Clear(recursive=False))
        self._stream.log("plots/boxes", rr.Scalars([len(boxes)]))

    def _log_boxes(self, path: str, boxes: Boxes3D, colors: np.ndarray, scores: bool) -> None:
        if not len(boxes):
            self._stream.log(path, rr.Clear(recursive=False))
            return
        half = np.zeros(len(boxes))
        quaternions = np.stack([half, half, np.sin(boxes.yaws / 2), np.cos(boxes.yaws / 2)], axis=1)  # x, y, z, w
        shown = rr.Boxes3D(
            centers=boxes.centers,
            sizes=boxes.sizes,
            quaternions=quaternions,
            colors=colors,
            labels=labels(boxes, scores),
            fill_mode=rr.components.FillMode.MajorWireframe,
        )
        self._stream.log(path, shown)

    def _log_occupancy(self, occupancy: Occupancy) -> None:
        seen = visible_voxels(occupancy.occupied)
        if not seen.any():
            self._stream.log(VOXELS, rr.Clear(recursive=False))
            return
        grid = occupancy.grid
        centers = (np.argwhere(seen) + 0.5) * grid.resolution + np.array(grid.origin)
        colors = class_colors(occupancy.class_names)[occupancy.semantics[seen]]
        voxels = rr.Boxes3D(
            centers=centers,
            half_sizes=[[grid.resolution / 2] * 3],
            colors=colors,
            fill_mode=rr.components.FillMode.Solid,
        )
        self._stream.log(VOXELS, voxels)

    def _world_of_global(self) -> np.ndarray:
        shift = np.eye(4)
        shift[:3, 3] = -(self._origin if self._origin is not None else 0.0)
        return shift

    def _ego2world(self, ego2global: np.ndarray) -> np.ndarray:
        return self._world_of_global() @ ego2global


def blueprint(cameras: Sequence[str]) -> Any:
    """Return the layout: the world at the left, the cameras at the right, plots and log below.

    A camera's view shows the boxes and the voxels as it sees them.
    """
    rows = rows_of_cameras(tuple(cameras), 2)
    shown = ["$origin/**", f"{BOXES}/**", f"{TRUE_BOXES}/**"]
    views = [
        rrb.Spatial2DView(origin=f"{EGO}/{name}", contents=shown, name=name) for row in rows for name in row if name
    ]
    world = rrb.Spatial3DView(origin=EGO, contents=["world/**"], name="world, seen from the vehicle")
    plots = rrb.Horizontal(
        rrb.TimeSeriesView(origin="plots/timings", name="time of each stage, ms"),
        rrb.TimeSeriesView(origin="plots", contents=["plots/boxes"], name="boxes"),
        rrb.TextLogView(origin=LOG, name="resets and missing cameras"),
        column_shares=[2, 1, 2],
    )
    pictures = rrb.Grid(*views, grid_columns=len(rows[0]))
    above = rrb.Horizontal(world, pictures, column_shares=[2, 3])
    return rrb.Blueprint(rrb.Vertical(above, plots, row_shares=[4, 1]), collapse_panels=True)


def labels(boxes: Boxes3D, scores: bool) -> list[str]:
    """Return what is written beside each box: class, track id and, with `scores`, the score in percent."""
    texts = []
    for i, label in enumerate(boxes.labels.tolist()):
        words = [boxes.class_names[label]]
        if boxes.track_ids is not None and boxes.track_ids[i] != NO_TRACK:
            words.append(str(boxes.track_ids[i]))
        if scores:
            words.append(f"{boxes.scores[i]:.0%}")
        texts.append(" ".join(words))
    return texts


def encode_view(view: View) -> tuple[bytes, np.ndarray, tuple[int, int]] | None:
    """Return an image as JPEG without lens distortion, its camera matrix [3, 3], and width and height.

    Pixels of rerun begin at 0, where ours have their middles. A JPEG that is small and of an ideal lens is passed on as
    it is. None for an image that cannot be decoded, or that is not of its calibration's size.
    """
    calibration = view.calibration
    scale = min(1.0, IMAGE_SIDE / max(calibration.width, calibration.height))
    width, height = round(calibration.width * scale), round(calibration.height * scale)
    to_corner = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])
    try:
        image = decode_image(view.image, (calibration.width, calibration.height))
    except ImageError:
        return None  # the pipeline has counted it and logged the reason
    if view.image.encoding == "jpeg" and scale == 1.0 and not calibration.distortion:
        return bytes(view.image.data), to_corner @ calibration.intrinsics, (width, height)
    picture = np.zeros((height, width, 3), np.uint8)
    source2picture = place_image(picture, image, view)
    encoded = cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
    return encoded.tobytes(), to_corner @ source2picture @ calibration.intrinsics, (width, height)


def visible_voxels(occupied: np.ndarray) -> np.ndarray:
    """Return the occupied voxels [X, Y, Z] with a free neighbour, or at the grid's border; the others are hidden."""
    padded = np.pad(occupied, 1)
    inner = padded[1:-1, 1:-1, 1:-1]
    enclosed = inner.copy()
    for axis in range(3):
        for step in (-1, 1):
            enclosed &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return inner & ~enclosed


def _transform(a2b: np.ndarray) -> Any:
    return rr.Transform3D(translation=a2b[:3, 3], mat3x3=a2b[:3, :3])
