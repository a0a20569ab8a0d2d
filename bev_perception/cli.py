"""The command line. Each command is a thin layer over the package's functions."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bev_perception.data.rosbag import BagReader
    from bev_perception.evaluation.evaluate import Scores
    from bev_perception.synchronizer import SynchronizerSettings
    from bev_perception.visualization.show import ShowSettings, Source

from bev_perception.data.occupancy_labels import LABELS_FOLDER
from bev_perception.types import BASE_FRAME, FIXED_FRAME

_LABELS_HELP = "folder of occupancy labels, relative to ROOT or on its own (default: %(default)s)"

#: errors that are the user's to mend; shown as one sentence, without a traceback
_EXPECTED = (ValueError, OSError)


def main(argv: list[str] | None = None) -> int:
    """Run one command; return the exit status (0 done, 1 a named error, 130 interrupted)."""
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    args = _parser().parse_args(argv)
    try:
        return args.command(args)
    except BrokenPipeError:  # the reader of our output has gone: nothing to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except _EXPECTED as error:
        print(f"bev_perception: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bev_perception: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bev_perception", description="3D boxes from surround cameras.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    variants = commands.add_parser("variants", help="list the variants")
    variants.set_defaults(command=_variants)

    init = commands.add_parser("init-weights", help="write untrained initial weights of a variant, for a trial run")
    init.add_argument("--variant", required=True)
    init.add_argument("--seed", type=int, default=0)
    init.add_argument("out", type=Path, metavar="OUT.safetensors")
    init.set_defaults(command=_init_weights)

    bag = commands.add_parser("bag", help="make bags").add_subparsers(required=True, metavar="COMMAND")
    create = bag.add_parser("create", help="write a drive as a rosbag2 (mcap) bag with the node's topics")
    source = create.add_mutually_exclusive_group(required=True)
    source.add_argument("--nuscenes", type=Path, metavar="ROOT", help="a nuScenes dataroot")
    source.add_argument("--synthetic", type=float, metavar="SECONDS", help="a made-up drive of this length")
    create.add_argument("--version", default="v1.0-mini", help="of the nuScenes tables (default: %(default)s)")
    create.add_argument("--scene", help="name of the nuScenes scene, e.g. scene-0103")
    create.add_argument("--seed", type=int, default=0, help="of the made-up drive")
    create.add_argument("out", type=Path, help="directory to make")
    create.set_defaults(command=_bag_create)

    synth = commands.add_parser("synth", help="make up streets, traffic and labels as a nuScenes dataroot")
    synth.add_argument("out", type=Path, help="dataroot to make; complete scenes in it are kept")
    synth.add_argument("--scenes", type=int, default=10, help="default: %(default)s")
    synth.add_argument("--seconds", type=float, default=20.0, help="length of a scene (default: %(default)s)")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--camera-rate", type=int, default=12, help="Hz; 2 makes key frames only (default: %(default)s)")
    synth.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    synth.set_defaults(command=_synth)

    run = commands.add_parser("run", help="run a variant over a bag, without ROS, and write its results")
    run.add_argument("--bag", type=Path, required=True)
    run.add_argument("--variant", required=True, help="name or path of a YAML file")
    run.add_argument("--checkpoint", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True, metavar="RESULTS.json")
    run.add_argument("--save-occupancy", type=Path, metavar="DIR", help="for the occupancy, <stamp>.npz a frame")
    run.add_argument("--device", default="auto")
    _add_bag_options(run)
    run.add_argument("--score-threshold", type=float, help="default: the variant's own; the node's is 0.3")
    _add_precision(run)
    run.set_defaults(command=_run)

    train = commands.add_parser("train", help="train a variant on nuScenes; under torchrun on several GPUs")
    train.add_argument("--variant", required=True)
    train.add_argument("--data", type=Path, required=True, metavar="ROOT", help="a nuScenes dataroot")
    train.add_argument("--version", default="v1.0-trainval", help="of its tables (default: %(default)s)")
    train.add_argument("--split", default="train", help="default: %(default)s")
    train.add_argument("--labels", default=LABELS_FOLDER, help=_LABELS_HELP)
    train.add_argument("--out", type=Path, required=True, help="directory for weights, state and logs")
    train.add_argument("--pretrained", type=Path, help="file to fill the backbone from")
    train.add_argument("--init", type=Path, help="checkpoint of this variant to start from")
    train.add_argument("--resume", action="store_true", help="go on from the state in --out")
    train.add_argument("--epochs", type=int, help="default: the variant's")
    train.add_argument("--lr", type=float, help="default: the variant's")
    train.add_argument("--batch", type=int, help="samples a process (default: the variant's, divided among all)")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="auto")
    train.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16", help="default: %(default)s")
    train.add_argument("--recompute", action="store_true", help="less memory, more time: compute activations twice")
    train.add_argument("--workers", type=int, default=4, help="processes that read ahead (default: %(default)s)")
    train.set_defaults(command=_train)

    prepare = commands.add_parser("prepare", help="make what training needs").add_subparsers(
        required=True, metavar="COMMAND"
    )
    panoptic = prepare.add_parser("panoptic-occ", help="add objects, from nuScenes' boxes, to the labels of Occ3D")
    panoptic.add_argument("--data", type=Path, required=True, metavar="ROOT", help="a nuScenes dataroot")
    panoptic.add_argument("--version", default="v1.0-trainval", help="of its tables (default: %(default)s)")
    panoptic.add_argument("--split", default="trainval", help="default: %(default)s")
    panoptic.add_argument("--labels", default=LABELS_FOLDER, help=_LABELS_HELP)
    panoptic.add_argument("--out", type=Path, required=True, help="directory; labels that are in it already are kept")
    panoptic.add_argument("--threads", type=int, default=os.cpu_count(), help="default: one a core")
    panoptic.set_defaults(command=_prepare_panoptic)

    evaluate = commands.add_parser("eval", help="run a variant over a nuScenes split or bags and score it; or a file")
    evaluate.add_argument("--variant")
    evaluate.add_argument("--checkpoint", type=Path)
    evaluate.add_argument("--results", type=Path, metavar="results_nusc.json", help="score this file, run nothing")
    evaluate.add_argument(
        "--occupancy-results", type=Path, metavar="DIR", help="score the files <sample token>.npz in it, run nothing"
    )
    evaluate.add_argument(
        "--bag",
        type=Path,
        nargs="+",
        help="run over these instead of a split; scored if they are of scenes in ROOT, else there is a summary alone",
    )
    _add_bag_options(evaluate)
    evaluate.add_argument("--data", type=Path, metavar="ROOT", help="a nuScenes dataroot")
    evaluate.add_argument("--version", default="v1.0-trainval", help="of its tables (default: %(default)s)")
    evaluate.add_argument("--split", default="val", help="default: %(default)s")
    evaluate.add_argument("--scenes", nargs="+", default=[], metavar="NAME", help="only these of the split")
    evaluate.add_argument("--labels", default=LABELS_FOLDER, help=_LABELS_HELP)
    evaluate.add_argument("--save-occupancy", type=Path, metavar="DIR", help="write every sample's occupancy to it")
    evaluate.add_argument("--out", type=Path, default=Path("output/eval"))
    evaluate.add_argument("--device", default="auto")
    _add_precision(evaluate)
    evaluate.set_defaults(command=_eval)

    _add_show(commands)

    demo = commands.add_parser("demo", help="a short drive through the real node over DDS, with pictures at the end")
    demo.add_argument("--out", type=Path, default=Path("output/demo"))
    demo.add_argument("--nuscenes", type=Path, metavar="ROOT", help="real keyframes instead of a made-up drive")
    demo.add_argument("--version", default="v1.0-mini")
    demo.add_argument("--scene", default="scene-0103")
    demo.add_argument("--seconds", type=float, default=5.0, help="length of the made-up drive")
    demo.add_argument("--variant", default="sparsebev_tiny")
    demo.add_argument("--checkpoint", type=Path, help="default: untrained initial weights")
    demo.set_defaults(command=_demo)

    bench = commands.add_parser(
        "bench", help="time a variant as the publications do; without --variant, the node and its transport too"
    )
    bench.add_argument("--out", type=Path, default=Path("output/bench"), help="directory for the figures as JSON")
    bench.add_argument("--variant", help="time this one alone, without ROS; what follows belongs to it")
    bench.add_argument("--checkpoint", type=Path, help="default: untrained initial weights, which take as long")
    bench.add_argument("--frames", type=int, default=50, help="that count (default: %(default)s)")
    bench.add_argument("--device", default="auto")
    _add_precision(bench)
    bench.set_defaults(command=_bench)
    return parser


def _add_bag_options(parser: argparse.ArgumentParser) -> None:
    """Add what _open_bag reads."""
    parser.add_argument("--cameras", nargs="+", metavar="NAME", help="of the bag; default: the six of nuScenes")
    parser.add_argument("--prefix", help="of the cameras' topics (default: /bev_perception/input)")
    parser.add_argument(
        "--remap", nargs="+", default=[], metavar="BAG_TOPIC:=TOPIC", help="where the bag's names differ"
    )
    parser.add_argument("--anchor", default="", help="camera whose stamp a set takes (default: the first)")
    parser.add_argument("--base-frame", default=BASE_FRAME, help="default: %(default)s")
    parser.add_argument("--fixed-frame", default=FIXED_FRAME, help="default: %(default)s")


def _add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands that draw pictures."""
    show = commands.add_parser("show", help="draw pictures or a video").add_subparsers(required=True, metavar="COMMAND")
    boxes = show.add_parser("boxes", help="a variant's boxes in the images and from above, beside nuScenes' own")
    boxes.add_argument("--score-threshold", type=float, default=0.3, help="default: %(default)s")
    boxes.add_argument("--max-boxes", type=int, help="draw only the best ones (default: the variant's limit)")
    boxes.set_defaults(command=_show_boxes)

    points = show.add_parser("points", help="where the queries of SparseBEV sample the images, stage by stage")
    points.add_argument("--query", type=int, nargs="+", metavar="N", help="their numbers (default: the best --top)")
    points.add_argument("--top", type=int, default=3, help="number of queries with the best scores (default: 3)")
    points.add_argument("--frame", type=int, default=0, help="0: the current one; 1: the first of the past; ...")
    points.set_defaults(command=_show_points)

    occupancy = show.add_parser("occupancy", help="a variant's occupancy in 3D and from above; or a file of labels")
    occupancy.add_argument("--file", type=Path, metavar="labels.npz", help="draw this file to --out, run nothing")
    occupancy.add_argument(
        "--labels", type=Path, metavar="DIR", help="draw these beside it; relative to ROOT or on its own"
    )
    occupancy.add_argument("--semantic", action="store_true", help="colours of classes where objects have their own")
    occupancy.set_defaults(command=_show_occupancy)

    for parser in (boxes, points, occupancy):
        needed = parser is not occupancy  # which also draws a file of labels alone
        parser.add_argument("--variant", required=needed, help="name or path of a YAML file")
        parser.add_argument("--checkpoint", type=Path, required=needed)
        source = parser.add_mutually_exclusive_group(required=needed)
        source.add_argument("--data", type=Path, metavar="ROOT", help="a nuScenes dataroot")
        source.add_argument("--bag", type=Path)
        parser.add_argument("--version", default="v1.0-trainval", help="of nuScenes' tables (default: %(default)s)")
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--scene", help="name of a nuScenes scene, e.g. scene-0103")
        which.add_argument("--sample", metavar="TOKEN", help="the one key frame of nuScenes to show")
        _add_bag_options(parser)
        parser.add_argument("--out", type=Path, required=True, help="directory to fill; with --file the picture")
        parser.add_argument("--video", action="store_true", help="one mp4 in place of a picture a frame")
        parser.add_argument("--device", default="auto")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16", "fp16"),
        default="fp32",
        help="of backbone and neck (default: %(default)s)",
    )


def _variants(args: argparse.Namespace) -> int:
    from bev_perception.config import list_variants, load_variant
    from bev_perception.variants import published_score

    for name in list_variants():
        config = load_variant(name)
        score = published_score(config.provenance)
        published = f"published {score}" if score else (config.provenance.note or "no published score")
        print(f"{name:32} {config.family}  {config.image.width}x{config.image.height}  {published}")
    return 0


def _init_weights(args: argparse.Namespace) -> int:
    from bev_perception.pipeline import write_initial_weights

    write_initial_weights(args.variant, args.out, args.seed)
    print(f"wrote {args.out} (UNTRAINED, seed {args.seed})")
    return 0


def _bag_create(args: argparse.Namespace) -> int:
    from bev_perception.data.nuscenes import open_scene
    from bev_perception.data.rosbag import write_bag
    from bev_perception.data.synthetic import synthetic_drive

    if args.nuscenes is not None:
        if not args.scene:
            raise ValueError("--nuscenes needs --scene NAME, e.g. --scene scene-0103")
        drive = open_scene(args.nuscenes, args.version, args.scene)
    else:
        drive = synthetic_drive(args.synthetic, args.seed)
    write_bag(drive, args.out)
    print(f"wrote {args.out}")
    return 0


def _synth(args: argparse.Namespace) -> int:
    from bev_perception.synth.generate import generate
    from bev_perception.synth.settings import SPLITS, VERSION, SynthSettings

    settings = SynthSettings(seconds=args.seconds, seed=args.seed, camera_rate=args.camera_rate)
    made = generate(args.out, settings, args.scenes, args.workers)
    kept = f", {args.scenes - made} were there already" if made < args.scenes else ""
    print(f"wrote {args.out}: {made} scenes{kept}; version {VERSION}, splits {' and '.join(SPLITS)}")
    return 0


def _open_bag(args: argparse.Namespace, path: Path) -> tuple[BagReader, SynchronizerSettings]:
    """Open a bag and say how its images are grouped, by the options of _add_bag_options."""
    from bev_perception.data.drive import CAMERAS
    from bev_perception.data.rosbag import INPUT_PREFIX, BagReader
    from bev_perception.synchronizer import SynchronizerSettings

    cameras = tuple(args.cameras or CAMERAS)
    remap = dict(rule.split(":=", 1) for rule in args.remap)
    bag = BagReader(path, cameras, args.prefix or INPUT_PREFIX, remap)
    return bag, SynchronizerSettings(cameras, args.anchor, base_frame=args.base_frame, fixed_frame=args.fixed_frame)


def _run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bev_perception.config import SparseOccHeadConfig
    from bev_perception.offline import run_events, write_results
    from bev_perception.pipeline import PipelineSettings, load_pipeline

    bag, settings = _open_bag(args, args.bag)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    how = PipelineSettings(score_threshold=args.score_threshold, precision=args.precision)
    pipeline = load_pipeline(args.variant, args.checkpoint, args.device, how)
    if isinstance(pipeline.variants[0].config.head, SparseOccHeadConfig) and args.save_occupancy is None:
        raise ValueError(f"{args.variant} gives occupancy; say with --save-occupancy where it goes")

    results = tqdm(run_events(bag.events(), pipeline, settings), unit="frame", desc=args.variant)
    count = write_results(args.out, pipeline, results, args.save_occupancy)
    pipeline.close()
    snapshot = pipeline.health.snapshot()
    untrained = "" if pipeline.trained else "; the weights are UNTRAINED"
    print(f"wrote {args.out}: {count} frames{untrained}")
    if snapshot.drops:
        print("dropped: " + ", ".join(f"{cause} {n}" for cause, n in snapshot.drops.items()))
        print(f"the last: {snapshot.last_drop}")
    return 0 if count else 1


def _train(args: argparse.Namespace) -> int:
    from bev_perception.config import load_variant
    from bev_perception.data.records import open_split
    from bev_perception.training.dataset import NuScenesTraining
    from bev_perception.training.train import TrainSettings, train

    config = load_variant(args.variant)
    data = NuScenesTraining(config, open_split(args.data, args.version, args.split), args.labels)
    settings = TrainSettings(
        out=args.out,
        pretrained=args.pretrained,
        init=args.init,
        resume=args.resume,
        epochs=args.epochs,
        lr=args.lr,
        batch=args.batch,
        seed=args.seed,
        device=args.device,
        precision=args.precision,
        recompute=args.recompute,
        workers=args.workers,
    )
    result = train(config, data, settings)
    print(f"{'done' if result.finished else 'stopped; go on with --resume'}: {result.steps} steps, in {args.out}")
    return 0


def _prepare_panoptic(args: argparse.Namespace) -> int:
    from bev_perception.data.panoptic import prepare_panoptic
    from bev_perception.data.records import open_split

    written = prepare_panoptic(open_split(args.data, args.version, args.split), args.labels, args.out, args.threads)
    print(f"wrote {written} files of labels to {args.out}; name it with --labels in training")
    return 0


def _eval(args: argparse.Namespace) -> int:
    if args.bag is not None:
        return _eval_bags(args)
    if args.data is None:
        raise ValueError("name --data, the root of the data set; only --bag can do without")
    from bev_perception.config import OCC3D_CLASSES, load_variant
    from bev_perception.data.records import open_split
    from bev_perception.evaluation.detection import score_results
    from bev_perception.evaluation.evaluate import EvalSettings, evaluate
    from bev_perception.evaluation.occupancy_files import score_occupancy_files

    scores: Scores | None
    if args.results is not None:
        scores = score_results(args.results, args.data, args.version, args.split, args.out, args.scenes)
    elif args.occupancy_results is not None:
        records = open_split(args.data, args.version, args.split)
        records = records.of_scenes(args.scenes) if args.scenes else records
        classes = load_variant(args.variant).class_names if args.variant else OCC3D_CLASSES
        scores = score_occupancy_files(args.occupancy_results, records, args.out, classes, args.labels)
    elif args.variant and args.checkpoint:
        settings = EvalSettings(
            variant=args.variant,
            checkpoint=args.checkpoint,
            data=args.data,
            version=args.version,
            split=args.split,
            out=args.out,
            device=args.device,
            precision=args.precision,
            scenes=tuple(args.scenes),
            labels=args.labels,
            save_occupancy=args.save_occupancy,
        )
        scores = evaluate(settings)
    else:
        raise ValueError("name --variant and --checkpoint to run, or --results or --occupancy-results to score")
    if scores is not None:
        print(scores.table())
    return 0


def _show_boxes(args: argparse.Namespace) -> int:
    from bev_perception.visualization.show import show_boxes

    settings, source = _show_what(args)
    return _say_where(args, show_boxes(settings, source, args.score_threshold, args.max_boxes))


def _show_points(args: argparse.Namespace) -> int:
    from bev_perception.visualization.show import show_points

    settings, source = _show_what(args)
    return _say_where(args, show_points(settings, source, args.query, args.top, args.frame))


def _show_occupancy(args: argparse.Namespace) -> int:
    from bev_perception.config import OCC3D_CLASSES, load_variant
    from bev_perception.visualization.show import show_labels, show_occupancy

    objects = not args.semantic
    if args.file is not None:
        names = load_variant(args.variant).class_names if args.variant else OCC3D_CLASSES
        show_labels(args.file, args.out, names, objects)
        print(f"wrote {args.out}")
        return 0
    if not (args.variant and args.checkpoint and (args.data or args.bag)):
        raise ValueError("name --variant, --checkpoint and --data or --bag to run, or --file to draw a file alone")
    settings, source = _show_what(args)
    return _say_where(args, show_occupancy(settings, source, args.labels, objects))


def _show_what(args: argparse.Namespace) -> tuple[ShowSettings, Source]:
    from bev_perception.visualization.show import BagFrames, KeyFrames, ShowSettings

    settings = ShowSettings(args.variant, args.checkpoint, args.out, args.device, args.video)
    if args.bag is not None:
        if args.scene or args.sample:
            raise ValueError("--scene and --sample choose among the key frames of --data; a bag is shown whole")
        return settings, BagFrames(*_open_bag(args, args.bag))
    return settings, KeyFrames(args.data, args.version, args.scene, args.sample)


def _say_where(args: argparse.Namespace, count: int) -> int:
    print(f"wrote {args.out}: {count} pictures{' as a video' if args.video else ''}")
    return 0


def _eval_bags(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bev_perception.data.records import open_records
    from bev_perception.evaluation.replay import Replay
    from bev_perception.offline import run_frames
    from bev_perception.pipeline import PipelineSettings, load_pipeline

    if not (args.variant and args.checkpoint):
        raise ValueError("--bag needs --variant and --checkpoint")
    replay = Replay(open_records(args.data, args.version) if args.data else None)
    pipeline = load_pipeline(args.variant, args.checkpoint, args.device, PipelineSettings(precision=args.precision))
    for path in args.bag:
        bag, settings = _open_bag(args, path)
        frames = run_frames(replay.watch(bag.events()), pipeline, settings)
        for frame, result in tqdm(frames, unit="frame", desc=path.name):
            replay.add(frame, result)
        pipeline.reset(f"{path} has ended")
    pipeline.close()
    print(replay.summary(pipeline.health.snapshot()) + ("" if pipeline.trained else "\nthe weights are UNTRAINED"))
    if args.data and replay.frames:
        scores = replay.score(args.version, args.out)
        print(f"{replay.coverage()}\n{scores.table()}")
    return 0 if replay.frames else 1


def _demo(args: argparse.Namespace) -> int:
    from bev_perception.ros.demo import DemoSettings, run_demo

    settings = DemoSettings(
        out=args.out,
        nuscenes=args.nuscenes,
        version=args.version,
        scene=args.scene,
        seconds=args.seconds,
        variant=args.variant,
        checkpoint=args.checkpoint,
    )
    print(run_demo(settings))
    return 0


def _bench(args: argparse.Namespace) -> int:
    if args.variant is None:
        from bev_perception.ros.bench import COUNTS, run_bench

        print(run_bench(args.out, COUNTS))
        return 0
    from bev_perception.evaluation.timing import TimingSettings, time_variant

    timing = time_variant(
        TimingSettings(args.variant, args.checkpoint, args.device, precision=args.precision, frames=args.frames)
    )
    print(timing.table())
    print(f"wrote {timing.write(args.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
