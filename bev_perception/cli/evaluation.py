"""Commands that evaluate: run a variant on a split or on bags and score it, or score files of results."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bev_perception.cli.options import (
    DEVICE_HELP,
    LABELS_HELP,
    Commands,
    add_bag_options,
    add_checkpoint,
    add_command,
    add_engine,
    add_image_fit,
    add_nms,
    add_precision,
    add_variant,
    add_version,
    data_version,
    open_bag,
    print_notices,
    with_notices,
)
from bev_perception.data.occupancy_labels import LABELS_FOLDER
from bev_perception.families.variants import TINY_DETECTOR, TINY_OCCUPANCY
from bev_perception.strict import UserError

if TYPE_CHECKING:
    from bev_perception.evaluation.evaluate import EvalSettings, Scores


def add_commands(commands: Commands) -> None:
    """Add `eval` and `eval-demo`."""
    _add_eval(commands)
    demo = add_command(
        commands,
        "eval-demo",
        "score the shipped weights on synthetic drives outside of their training data; compare with the record",
        "Fails if a score is lower than in config/weights/scores.yaml by more than its tolerance.",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("output/eval-demo"),
        metavar="DIR",
        help="directory for results (default: %(default)s)",
    )
    demo.add_argument(
        "--record", action="store_true", help="record the scores next to the weights instead of comparing them"
    )
    demo.set_defaults(command=_eval_demo)


def _add_eval(commands: Commands) -> None:
    evaluate = add_command(
        commands,
        "eval",
        "run a variant on a nuScenes split or on bags and score it; or score files of results",
        "Frames run one after the other with the memory, as in live use. Prints the scores, and writes them, with the "
        "results, to --out.",
    )
    add_variant(evaluate, required=False)
    add_checkpoint(evaluate)
    evaluate.add_argument(
        "--tracking",
        action="store_true",
        help="score the tracks, too (AMOTA, AMOTP, IDS); needs motmetrics and pandas",
    )
    evaluate.add_argument(
        "--results",
        type=Path,
        help="score this file results_nusc.json of detection or tracking results instead of running a variant",
    )
    evaluate.add_argument(
        "--occupancy-results",
        type=Path,
        help="score the files DIR/<sample token>.npz instead of running a variant",
    )
    evaluate.add_argument(
        "--bag",
        type=Path,
        nargs="+",
        help="run on these bags instead of a split; scored if they are scenes of ROOT, otherwise only summarized. A "
        "bag without /tf_static is the next part of the one before, as of a recording that was split",
    )
    evaluate.add_argument(
        "--manifest",
        type=Path,
        help="sum up the results of `run --bags`, OUT/manifest.json, instead of running a variant; scored as bags are",
    )
    add_bag_options(evaluate)
    evaluate.add_argument("--data", type=Path, help="a nuScenes dataroot")
    add_version(evaluate)
    evaluate.add_argument("--split", help="split to run on (default: the validation split of the version)")
    evaluate.add_argument("--scenes", nargs="+", default=[], metavar="NAME", help="only these scenes of the split")
    evaluate.add_argument(
        "--max-range", type=float, help="m; boxes farther away are ignored (default: by class, 30 to 50)"
    )
    evaluate.add_argument(
        "--no-memory",
        action="store_true",
        help="wipe the memory before each frame, to measure what past frames contribute",
    )
    evaluate.add_argument(
        "--without",
        type=lambda text: tuple(name for name in text.split(",") if name),
        default=(),
        metavar="CAMERA,...",
        help="leave the images of these cameras out, such as cam_back,cam_front_left",
    )
    evaluate.add_argument(
        "--lost-camera-study",
        action="store_true",
        help="evaluate with each camera lost and with 2 to 5 lost at random (fixed seeds); writes lost_cameras.json, "
        "a table and a picture; resumed where it was interrupted",
    )
    evaluate.add_argument(
        "--alignment",
        choices=("in_view", "after_view"),
        help="compute all frames of each sample anew, as published for variants with a map, and bring past frames into "
        "the current one while their features are lifted, or their maps after it (head.alignment); without it, maps "
        "are remembered as in live use",
    )
    evaluate.add_argument("--labels", default=LABELS_FOLDER, help=LABELS_HELP)
    evaluate.add_argument("--save-occupancy", type=Path, help="write the occupancy of each sample to DIR")
    evaluate.add_argument(
        "--out",
        type=Path,
        default=Path("output/eval"),
        metavar="DIR",
        help="directory for results (default: %(default)s)",
    )
    evaluate.add_argument("--device", default="auto", help=DEVICE_HELP)
    add_nms(evaluate)
    add_image_fit(evaluate)
    add_precision(evaluate)
    add_engine(evaluate)
    evaluate.set_defaults(command=_eval)


def _eval(args: argparse.Namespace) -> int:
    if args.no_memory and (args.bag or args.results or args.occupancy_results):
        raise UserError("--no-memory is for a variant that runs over a split; leave it out")
    if args.alignment and (args.bag or args.results or args.occupancy_results or args.no_memory):
        raise UserError("--alignment is for a variant that runs over a split with its past frames; leave it out")
    if args.alignment and args.engine != "eager":
        raise UserError("--alignment computes all frames as published, eagerly; leave --engine out")
    if (args.without or args.lost_camera_study) and (args.bag or args.results or args.occupancy_results):
        raise UserError("--without and --lost-camera-study are for a variant that runs over a split; leave them out")
    if args.manifest is not None:
        return _eval_manifest(args)
    if args.bag is not None:
        return _eval_bags(args)
    if args.data is None:
        raise UserError("name --data, the nuScenes dataroot; only --bag works without it")
    if args.tracking and (args.results or args.occupancy_results):
        raise UserError("--tracking is for a variant that runs; a file of results says itself what it holds")
    if args.lost_camera_study:
        return _study_lost_cameras(args)
    scores = _score_files(args) if args.results or args.occupancy_results else _score_variant(args)
    if scores is not None:
        print(f"{scores.table()}\nwrote {args.out}")
    return 0


def _score_files(args: argparse.Namespace) -> Scores:
    from bev_perception.classes import OCC3D_CLASSES
    from bev_perception.data.records import open_split
    from bev_perception.evaluation.detection import score_results
    from bev_perception.evaluation.occupancy_files import score_occupancy_files
    from bev_perception.evaluation.submissions import task_of
    from bev_perception.evaluation.tracking import score_tracks
    from bev_perception.families.catalog import family_of
    from bev_perception.families.variants import load_variant

    version, split = _data_split(args)
    if args.results is not None:
        where = (args.results, args.data, version, split, args.out, args.scenes)
        if task_of(args.results) == "tracking":
            return score_tracks(*where, max_range=args.max_range)
        return score_results(*where, max_range=args.max_range)
    if args.max_range is not None:
        raise UserError("--max-range is about boxes; leave it out for occupancy")
    records = open_split(args.data, version, split)
    records = records.of_scenes(args.scenes) if args.scenes else records
    if not args.variant:
        return score_occupancy_files(args.occupancy_results, records, args.out, OCC3D_CLASSES, args.labels)
    config = load_variant(args.variant)
    rule = family_of(config).only_predicted
    return score_occupancy_files(args.occupancy_results, records, args.out, config.class_names, args.labels, rule)


def _score_variant(args: argparse.Namespace) -> Scores | None:
    from bev_perception.evaluation.evaluate import evaluate

    return evaluate(_eval_settings(args))


def _study_lost_cameras(args: argparse.Namespace) -> int:
    from bev_perception.evaluation.lost_cameras import study_lost_cameras, study_table
    from bev_perception.families.variants import load_variant
    from bev_perception.visualization.lost_cameras import draw_lost_cameras

    if args.without or args.tracking:
        raise UserError("--lost-camera-study chooses the cameras and scores no tracks; leave --without and --tracking")
    settings = _eval_settings(args)
    studied = study_lost_cameras(settings)
    table = study_table(studied)
    (args.out / "lost_cameras.md").write_text(table + "\n")
    draw_lost_cameras(studied, args.out / "lost_cameras.png", load_variant(args.variant).name)
    print(f"{table}\nwrote {args.out}/lost_cameras.json, .md and .png")
    return 0


def _eval_settings(args: argparse.Namespace) -> EvalSettings:
    from bev_perception.evaluation.evaluate import EvalSettings

    if not args.variant:
        raise UserError("name --variant to run, or --results or --occupancy-results to score")
    version, split = _data_split(args)
    return EvalSettings(
        variant=args.variant,
        checkpoint=args.checkpoint,
        data=args.data,
        version=version,
        split=split,
        out=args.out,
        device=args.device,
        precision=args.precision,
        nms=args.nms,
        engine=args.engine,
        image_fit=args.image_fit,
        scenes=tuple(args.scenes),
        max_range=args.max_range,
        memory=not args.no_memory,
        recompute=args.alignment is not None,
        tracking=args.tracking,
        labels=args.labels,
        save_occupancy=args.save_occupancy,
        without=args.without,
    )


def _data_split(args: argparse.Namespace) -> tuple[str, str]:
    """Return the version and split given as options; defaults come from the dataroot."""
    from bev_perception.data.nuscenes import default_split

    version = data_version(args, args.data)
    return version, args.split or default_split(version, "val")


def _eval_bags(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bev_perception.data.bag_topics import recordings
    from bev_perception.data.records import open_records
    from bev_perception.evaluation.replay import Replay
    from bev_perception.evaluation.tracking import BoxScores, check_tracking_devkit
    from bev_perception.families.catalog import family_of
    from bev_perception.families.family import OCCUPANCY
    from bev_perception.families.variants import load_variant
    from bev_perception.pipeline.loading import load_pipeline
    from bev_perception.pipeline.offline import run_frames
    from bev_perception.pipeline.pipeline import PipelineSettings

    if not args.variant:
        raise UserError("--bag needs --variant")
    version = data_version(args, args.data) if args.data else ""
    if args.tracking:
        if not args.data:
            raise UserError("--tracking scores tracks; name --data, the nuScenes dataroot that the bags are scenes of")
        check_tracking_devkit()
    replay = Replay(open_records(args.data, version) if args.data else None, args.labels, args.tracking)
    how = PipelineSettings(nms=args.nms, precision=args.precision, engine=args.engine, image_fit=args.image_fit)
    pipeline = load_pipeline(args.variant, args.checkpoint, args.device, how)
    occupancy = OCCUPANCY in pipeline.gives
    for option, given in (("--max-range", args.max_range is not None), ("--tracking", args.tracking)):
        if occupancy and given:
            raise UserError(f"{option} is about boxes; leave it out for occupancy")
    for parts in recordings(args.bag):
        bag, settings = open_bag(args, *parts)
        name = " + ".join(path.name for path in parts)
        events = with_notices(bag.events(), pipeline.health)
        frames = run_frames(replay.watch(events), pipeline, settings)
        for frame, result in tqdm(frames, unit="frame", desc=name):
            replay.add(frame, result)
        pipeline.reset(f"{name} has ended")
    pipeline.close()
    snapshot = pipeline.health.snapshot()
    print_notices(pipeline.health)
    print(replay.summary(snapshot) + ("" if pipeline.trained else "\nthe weights are UNTRAINED"))
    if args.data and replay.frames:
        scores: Scores
        if occupancy:
            rule = family_of(load_variant(args.variant)).only_predicted
            scores = replay.score_occupancy(version, args.out, rule)
        else:
            scores = detection = replay.score(version, args.out, args.max_range)
            if args.tracking:
                scores = BoxScores(detection, replay.score_tracking(version, args.out, args.max_range))
        print(f"{replay.coverage()}\n{scores.table()}\nwrote {args.out}")
    return 0 if replay.frames else 1


def _eval_manifest(args: argparse.Namespace) -> int:
    from bev_perception.data.records import open_records
    from bev_perception.evaluation.fleet import replay_fleet
    from bev_perception.evaluation.replay import Replay

    others = (args.variant, args.bag, args.results, args.occupancy_results, args.tracking, args.lost_camera_study)
    if any(others) or args.no_memory or args.alignment or args.without:
        raise UserError("--manifest is of results that are there; give no more than --data, --max-range and --out")
    version = data_version(args, args.data) if args.data else ""
    replay = Replay(open_records(args.data, version) if args.data else None, args.labels)
    fleet = replay_fleet(args.manifest, replay)
    print(fleet.table())
    print(replay.summary(fleet.health))
    if args.data and replay.frames:
        scores: Scores
        scores = (
            replay.score_occupancy(version, args.out)
            if fleet.occupancy
            else replay.score(version, args.out, args.max_range)
        )
        print(f"{replay.coverage()}\n{scores.table()}\nwrote {args.out}")
    return 0 if replay.frames and not fleet.failed else 1


def _eval_demo(args: argparse.Namespace) -> int:
    from bev_perception.evaluation.regression import TOLERANCE, compare, measure, read_scores, scores_file, write_scores

    recorded = {} if args.record else read_scores(scores_file())
    args.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="drives_", dir=args.out) as folder:
        measured = measure((TINY_DETECTOR, TINY_OCCUPANCY), *_held_out(Path(folder)), args.out)
    if args.record:
        write_scores(measured, scores_file())
        print(f"wrote {scores_file()}: {measured}")
        return 0
    table, worse = compare(recorded, measured)
    print(table)
    if worse:
        print(
            f"{'; '.join(worse)}: lower by more than {TOLERANCE} points. Mend what has changed, or train anew; record "
            "(--record) only what is meant to be so"
        )
        return 1
    print(f"no score is lower than recorded by more than {TOLERANCE} points")
    return 0


def _held_out(root: Path) -> tuple[Path, str, str]:
    """Generate the synthetic validation drives afresh with the current code; return dataroot, version and split."""
    from bev_perception.synth.generate import generate
    from bev_perception.synth.settings import EVERY_SCENE, VERSION, SynthSettings

    settings = SynthSettings(seconds=6.0, seed=7700, camera_rate=2, image_size=(800, 450))
    generate(root, settings, scenes=2, workers=2)
    return root, VERSION, EVERY_SCENE
