"""The command `show`: a variant's predictions and sampling points on recorded frames, as pictures or a video."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bev_perception.classes import NUSCENES_CLASSES
from bev_perception.config import VariantConfig
from bev_perception.data.nuscenes import NuScenesError
from bev_perception.data.occupancy_labels import check_classes, labels_path, read_labels, unknown_as_free
from bev_perception.data.queues import read_frame, training_boxes
from bev_perception.data.records import open_records
from bev_perception.data.rosbag import BagReader
from bev_perception.evaluation.running import run_in_queues
from bev_perception.families.catalog import family_of
from bev_perception.families.family import BOXES, INSTANCES, OCCUPANCY, Family
from bev_perception.families.variants import Variant, load_variant
from bev_perception.health import Health
from bev_perception.models.device import choose_device
from bev_perception.models.sampling_trace import SamplingTrace
from bev_perception.pipeline.encoders import LoadedVariant
from bev_perception.pipeline.loading import load_weights
from bev_perception.pipeline.offline import collect_frames
from bev_perception.pipeline.pipeline import Pipeline, PipelineSettings
from bev_perception.results.boxes import to_ego
from bev_perception.sensing.preprocess import reference2base
from bev_perception.sensing.synchronizer_settings import SynchronizerSettings
from bev_perception.strict import ConfigError, UserError
from bev_perception.tracking.trails import Trails
from bev_perception.types import Boxes3D, Frame, FrameError, Occupancy, Result
from bev_perception.visualization.canvas import REACH, decode_views
from bev_perception.visualization.occupancy import draw_occupancy
from bev_perception.visualization.pictures import draw_frame, write_png
from bev_perception.visualization.points import draw_points
from bev_perception.visualization.video import write_video
from bev_perception.visualization.viewer import Viewer

LOG = logging.getLogger(__name__)

Stamped = tuple[int, np.ndarray]  # a picture and its stamp, ns
#: lowest and highest x, y, z in the lidar's frame of true boxes that are drawn alone, m: what is seen from above
TRUTH_AREA = (-REACH, -REACH, -10.0, REACH, REACH, 10.0)


@dataclass(frozen=True)
class ShowSettings:
    """What to run, and where to write the pictures.

    variant: name, or path of a YAML file
    checkpoint: its weights; None takes those that are shipped
    out: directory, which is created
    device: "auto", "cpu", "cuda" or "cuda:N"
    video: whether to write one video instead of one picture per frame
    image_fit: how pictures unlike those of the training become inputs, as in PipelineSettings
    viewer: shows what is drawn, too, except sampling points; None: no live viewer
    """

    variant: Variant
    checkpoint: Path | None
    out: Path
    device: str = "auto"
    video: bool = False
    image_fit: str = PipelineSettings.image_fit
    viewer: Viewer | None = None


@dataclass(frozen=True)
class Shot:
    """One frame to run the variant on.

    name: for people to read
    row: its number in the records; None for a frame that is no nuScenes key frame
    shown: False for a frame that is only run to fill the memory
    """

    frame: Frame
    name: str
    row: int | None = None
    shown: bool = True


class KeyFrames:
    """Key frames of nuScenes to be shown: those of a scene, or a single one.

    records: of the data set
    rows: numbers of the key frames in the records
    """

    def __init__(self, root: Path, version: str, scene: str | None = None, sample: str | None = None) -> None:
        """Open the tables; name either a scene or a sample.

        root: the dataroot
        version: of the data set
        scene: name of a scene
        sample: token of a single key frame

        Raises NuScenesError for an unknown scene or token, and if none of their images is under root; UserError unless
        exactly one of scene and sample is given.
        """
        if (scene is None) == (sample is None):
            raise UserError("name either a scene or a sample of the data, e.g. --scene scene-0103")
        self.records = records = open_records(root, version)
        if scene is not None:
            records.of_scenes([scene])  # raises for an unknown one
        elif sample not in records.tokens:
            raise NuScenesError(f"{version} holds no sample {sample!r}; take a token of its table sample.json")
        wanted = [i for i in range(len(records)) if records.scenes[i] == scene or records.tokens[i] == sample]
        self.rows = [i for i in wanted if self._has_images(i)]
        if not self.rows:
            raise NuScenesError(
                f"the images of {scene or sample} are not under {root}; unpack the blobs that hold them"
            )
        if len(self.rows) < len(wanted):
            LOG.warning("%d of %d key frames lack images and are left out", len(wanted) - len(self.rows), len(wanted))

    def shots(self, past: int) -> Iterator[Shot]:
        """Yield up to `past` earlier key frames of the scene to fill the memory, then the key frames to be shown."""
        records, first = self.records, self.rows[0]
        before = [i for i in range(max(0, first - past), first) if records.scenes[i] == records.scenes[first]]
        for i in [*filter(self._has_images, before), *self.rows]:
            yield Shot(read_frame(records, i), self.name(i), i, shown=i >= first)

    def name(self, i: int) -> str:
        """Return the name of key frame i: its scene and its token."""
        return f"{self.records.scenes[i]} {self.records.tokens[i]}"

    def _has_images(self, i: int) -> bool:
        return not self.records.missing_files([self.records.cameras(i)])


class BagFrames:
    """The frames of a bag, as the node would assemble them."""

    def __init__(self, bag: BagReader, settings: SynchronizerSettings) -> None:
        """Show the whole bag.

        bag: the recording
        settings: of the synchronizer that assembles the frames
        """
        self._bag, self._settings = bag, settings

    def shots(self, past: int) -> Iterator[Shot]:
        """Yield all frames; `past` has no effect, because the frames start with the recording."""
        health = Health()
        for frame in collect_frames(self._bag.events(), self._settings, health):
            yield Shot(frame, self._bag.path.name)
        for news in health.drain_news():
            LOG.warning("%s: %s", self._bag.path, news)


Source = KeyFrames | BagFrames


def show_boxes(settings: ShowSettings, source: Source, score_threshold: float, max_boxes: int | None = None) -> int:
    """Draw the boxes and tracks of a detector, and the boxes of nuScenes beside them; return the number of pictures.

    settings: what to run, and where to write the pictures
    source: the frames
    score_threshold: boxes with lower scores are not drawn
    max_boxes: how many boxes are drawn at most, the best ones; None takes the variant's own limit

    Raises the errors of load_variant and load_checkpoint, and ConfigError for a variant that predicts no boxes.
    """
    area = _required(load_variant(settings.variant), BOXES).area
    loaded = _load(settings)
    how = PipelineSettings(score_threshold, max_boxes, image_fit=settings.image_fit)

    def pictures() -> Iterator[Stamped]:
        trails = Trails()
        for shot, result in _results(loaded, settings, source, how):
            assert result.boxes is not None, "a detector always says which boxes there are"
            if result.reset is not None:
                trails.clear()
            trails.add(result.stamp, result.boxes, shot.frame.ego2global)
            if not shot.shown:
                continue
            truth = true_boxes(source, shot, loaded.config.class_names, area(loaded.config))
            if settings.viewer is not None:
                settings.viewer.show(shot.frame, result, truth)
            note = _note(loaded, shot)
            images, lines = decode_views(shot.frame), trails.lines()
            yield shot.frame.stamp, draw_frame(shot.frame, images, result.boxes, note, truth, trails=lines, scores=True)

    return _write(settings.out, settings.video, "boxes", pictures())


def show_truth(out: Path, source: KeyFrames, video: bool = False, viewer: Viewer | None = None) -> int:
    """Draw the boxes of nuScenes, of objects that lidar or radar has seen; return the number of pictures.

    out: directory, which is created
    source: the key frames
    video: whether to write one video instead of one picture per frame
    image_fit: how pictures unlike those of the training become inputs, as in PipelineSettings
    viewer: shows the same, too; None: no live viewer
    """

    def pictures() -> Iterator[Stamped]:
        for shot in source.shots(past=0):
            truth = true_boxes(source, shot)
            assert truth is not None, "key frames have rows"
            if viewer is not None:
                viewer.show(shot.frame, truth=truth)
            images = decode_views(shot.frame)
            yield shot.frame.stamp, draw_frame(shot.frame, images, truth, f"truth  {shot.name}")

    return _write(out, video, "truth", pictures())


def show_points(
    settings: ShowSettings, source: Source, queries: Sequence[int] | None = None, top: int = 3, frame: int = 0
) -> int:
    """Draw where the queries of a detector sample the images, stage by stage; return the number of pictures.

    settings: what to run, and where to write the pictures
    source: the frames
    queries: numbers of the queries; None takes the `top` ones with the best scores in each frame
    top: number of queries to draw if `queries` is None
    frame: which of the model's frames to draw, 0 the current one, 1 the first past one, ...

    Raises ConfigError for a variant of another family or with future frames and for query numbers that do not exist,
    UserError for `top` or `frame` out of range.
    """
    config = load_variant(settings.variant)
    record = family_of(config).record
    if record is None:
        raise ConfigError(f"the variants of {config.family} have no queries that can be shown; choose another")
    if top < 1:
        raise UserError(f"at least one query must be drawn; asked for the {top} best")
    if not 0 <= frame <= config.frames.past:
        raise UserError(f"{config.name} looks at the frames 0 to {config.frames.past}; asked for {frame}")
    loaded = _load(settings)
    kept = _reach(config) if frame else 0

    def pictures() -> Iterator[Stamped]:
        recent: deque[Frame] = deque()
        with record(loaded.model) as traces:
            for shot, _ in _run(loaded, settings, source, PipelineSettings(image_fit=settings.image_fit)):
                trace = traces.pop()
                recent.append(shot.frame)
                while recent[0].stamp < shot.frame.stamp - kept:
                    recent.popleft()
                if shot.shown:
                    age = float(trace.time_differences[frame])
                    seen = _nearest(recent, shot.frame.stamp - round(age * 1e9))
                    chosen = trace.best(top) if queries is None else _known(trace, queries)
                    boxes = to_ego(trace.boxes.select(np.array(chosen, int)), reference2base(config, shot.frame))
                    note = f"{_note(loaded, shot)}  points in frame {frame}, {age:.2f} s ago"
                    samples = trace.samples(chosen, frame)
                    yield (
                        shot.frame.stamp,
                        draw_points(
                            *(seen, decode_views(seen), samples, chosen, boxes, shot.frame, config, note),
                            image_fit=settings.image_fit,
                        ),
                    )

    return _write(settings.out, settings.video, "points", pictures())


def show_occupancy(settings: ShowSettings, source: Source, labels: Path | None = None, objects: bool = True) -> int:
    """Draw the occupancy that a variant predicts, with the labels beside it; return the number of pictures.

    settings: what to run, and where to write the pictures
    source: the frames
    labels: folder of Occ3D's labels, relative to the dataroot or a path of its own; None draws no labels
    objects: whether each object has a colour of its own, if the variant predicts instances

    Raises the errors of load_variant and load_checkpoint, ConfigError for a variant that predicts no occupancy, and
    NuScenesError for a label that is missing.
    """
    config = load_variant(settings.variant)
    if labels is not None and not isinstance(source, KeyFrames):
        raise UserError("labels belong to key frames of nuScenes; show them with --data, or leave them out")
    # without predicted instances, prediction and labels would be drawn in different colours
    objects = INSTANCES in _required(config, OCCUPANCY).gives(config) and objects
    loaded = _load(settings)

    def pictures() -> Iterator[Stamped]:
        for shot, result in _run(loaded, settings, source, PipelineSettings(image_fit=settings.image_fit)):
            if not shot.shown:
                continue
            assert result.occupancy is not None, "a variant of occupancy always says what is occupied"
            if settings.viewer is not None:
                settings.viewer.show(shot.frame, result)
            truth = None
            if labels is not None and isinstance(source, KeyFrames) and shot.row is not None:
                records = source.records
                path = labels_path(records.root, records.scenes[shot.row], records.tokens[shot.row], labels)
                truth = _coloured(load_labels(path, config.class_names), objects)
            picture = draw_occupancy(
                _coloured(result.occupancy, objects), truth, shot.frame, decode_views(shot.frame), _note(loaded, shot)
            )
            yield shot.frame.stamp, picture

    return _write(settings.out, settings.video, "occupancy", pictures())


def show_labels(path: Path, out: Path, class_names: tuple[str, ...], objects: bool = True) -> None:
    """Draw a single file of occupancy labels.

    path: of the labels
    out: PNG file to write
    class_names: of the labels
    objects: whether each object has a colour of its own, if the labels have instances

    Raises NuScenesError and ConfigError as load_labels does.
    """
    picture = draw_occupancy(None, _coloured(load_labels(path, class_names), objects), note=str(path))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_png(out, picture)


def load_labels(path: Path, class_names: tuple[str, ...]) -> Occupancy:
    """Return a file of labels as an Occupancy, free where the label is unknown.

    Raises NuScenesError for a file that is missing or damaged, ConfigError for labels of other classes.
    """
    labels = read_labels(path)
    check_classes(labels.semantics, class_names, str(path))
    instances = None if labels.instances is None else labels.instances.astype(np.int16)
    return Occupancy(unknown_as_free(labels.semantics, class_names), class_names, instances=instances)


def show_live(source: Source, viewer: Viewer, settings: ShowSettings | None, score_threshold: float) -> int:
    """Show frames in the live viewer alone, one after another; return their number.

    source: the frames; of key frames, the true boxes are shown, too
    settings: which variant to run; None shows the cameras alone
    score_threshold: boxes with lower scores are not shown
    """
    shown: Iterable[tuple[Shot, Result | None]] = ((shot, None) for shot in source.shots(past=0))
    if settings is not None:
        shown = _results(_load(settings), settings, source, PipelineSettings(score_threshold))
    count = 0
    for shot, result in shown:
        if shot.shown:
            viewer.show(shot.frame, result, true_boxes(source, shot))
            count += 1
    if not count:
        raise UserError("there is no frame to show; the log says what was wrong with those that there were")
    return count


def _load(settings: ShowSettings) -> LoadedVariant:
    return load_weights(load_variant(settings.variant), settings.checkpoint, choose_device(settings.device))


def _results(
    loaded: LoadedVariant, settings: ShowSettings, source: Source, how: PipelineSettings
) -> Iterator[tuple[Shot, Result]]:
    """Yield every frame with its result; a variant with future frames gets whole queues of key frames."""
    if not (loaded.config.frames.future and isinstance(source, KeyFrames)):
        yield from _run(loaded, settings, source, how)
        return
    device = choose_device(settings.device)
    queues = run_in_queues(
        loaded.config, loaded.model, device, source.records, source.rows, limits=how.limits, image_fit=how.image_fit
    )
    for i, result in queues:
        yield Shot(read_frame(source.records, i), source.name(i), i), result


def _run(
    loaded: LoadedVariant, settings: ShowSettings, source: Source, how: PipelineSettings
) -> Iterator[tuple[Shot, Result]]:
    """Yield every frame that has a usable view, with the pipeline's result."""
    pipeline = Pipeline([loaded], choose_device(settings.device), how)
    try:
        for shot in source.shots(loaded.config.frames.past):
            try:
                result = pipeline.step(shot.frame)
            except FrameError as error:
                LOG.warning("%s at %d ns: %s", shot.name, shot.frame.stamp, error)
                continue
            yield replace(shot, frame=replace(shot.frame, missing=result.missing)), result
    finally:
        pipeline.close()


def true_boxes(
    source: Source,
    shot: Shot,
    class_names: tuple[str, ...] = NUSCENES_CLASSES,
    pc_range: Sequence[float] = TRUTH_AREA,
) -> Boxes3D | None:
    """Return the ground-truth boxes that count in training, in base_link at the lidar's stamp; None of a bag."""
    if not isinstance(source, KeyFrames) or shot.row is None:
        return None
    records, i = source.records, shot.row
    boxes, labels = training_boxes(records, i, class_names, pc_range)
    ones = np.ones(len(boxes))
    truth = Boxes3D(boxes[:, :3], boxes[:, 3:6], boxes[:, 6], boxes[:, 7:9], ones, labels, class_names)
    return to_ego(truth, records.lidar2ego(i))


def _known(trace: SamplingTrace, queries: Sequence[int]) -> Sequence[int]:
    """Return the queries.

    Raises ConfigError for numbers that do not exist.
    """
    count = len(trace.boxes)
    if not all(0 <= query < count for query in queries):
        raise ConfigError(f"the variant has the queries 0 to {count - 1}; asked for {list(queries)}")
    return queries


def _required(config: VariantConfig, what: str) -> Family:
    """Return a variant's family.

    Raises ConfigError for a variant that does not predict what is to be drawn.
    """
    family = family_of(config)
    if what not in family.gives(config):
        raise ConfigError(f"{config.name} gives {', '.join(sorted(family.gives(config)))}, no {what}; choose another")
    return family


def _reach(config: VariantConfig) -> int:
    """Return the largest possible age of the oldest frame that the model uses, ns."""
    return round((config.frames.past + 1) * config.frames.interval * 1e9)


def _nearest(frames: Iterable[Frame], stamp: int) -> Frame:
    return min(frames, key=lambda frame: abs(frame.stamp - stamp))


def _coloured(occupancy: Occupancy, objects: bool) -> Occupancy:
    return occupancy if objects else replace(occupancy, instances=None)


def _note(loaded: LoadedVariant, shot: Shot) -> str:
    untrained = "" if loaded.checkpoint.trained else ", UNTRAINED weights"
    return f"{loaded.config.name}{untrained}  {shot.name}"


def _write(out: Path, video: bool, kind: str, pictures: Iterator[Stamped]) -> int:
    """Write pictures as PNG files to the directory `out`, or as a video at their own rate; return their number.

    Raises UserError if there are none.
    """
    out.mkdir(parents=True, exist_ok=True)
    first = list(islice(pictures, 2))
    if not first:
        raise UserError("there is no frame to show; the log says what was wrong with those that there were")
    stamped = tqdm(chain(first, pictures), desc=kind, unit="picture")
    if video:
        seconds = (first[1][0] - first[0][0]) / 1e9 if len(first) > 1 else 1.0
        return write_video(out / f"{kind}.mp4", (picture for _, picture in stamped), 1 / seconds)
    count = 0
    for stamp, picture in stamped:
        write_png(out / f"{kind}_{stamp}.png", picture)
        count += 1
    return count
