"""The command line. Each command is a thin layer over the package's functions."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bev_perception.evaluation.detection import DetectionScores

from bev_perception.types import BASE_FRAME, FIXED_FRAME

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

    run = commands.add_parser("run", help="run a variant over a bag, without ROS, and write its boxes as JSON")
    run.add_argument("--bag", type=Path, required=True)
    run.add_argument("--variant", required=True, help="name or path of a YAML file")
    run.add_argument("--checkpoint", type=Path, required=True)
    run.add_argument("--out", type=Path, required=True, metavar="RESULTS.json")
    run.add_argument("--device", default="auto")
    run.add_argument("--cameras", nargs="+", metavar="NAME", help="default: the six of nuScenes")
    run.add_argument("--prefix", help="of the cameras' topics (default: /bev_perception/input)")
    run.add_argument("--remap", nargs="+", default=[], metavar="BAG_TOPIC:=TOPIC", help="where the bag's names differ")
    run.add_argument("--anchor", default="", help="camera whose stamp a set takes (default: the first)")
    run.add_argument("--base-frame", default=BASE_FRAME, help="default: %(default)s")
    run.add_argument("--fixed-frame", default=FIXED_FRAME, help="default: %(default)s")
    run.add_argument("--score-threshold", type=float, help="default: the variant's own; the node's is 0.3")
    run.set_defaults(command=_run)

    train = commands.add_parser("train", help="train a variant on nuScenes; under torchrun on several GPUs")
    train.add_argument("--variant", required=True)
    train.add_argument("--data", type=Path, required=True, metavar="ROOT", help="a nuScenes dataroot")
    train.add_argument("--version", default="v1.0-trainval", help="of its tables (default: %(default)s)")
    train.add_argument("--split", default="train", help="default: %(default)s")
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

    evaluate = commands.add_parser("eval", help="run a variant over a nuScenes split and score it; or score a file")
    evaluate.add_argument("--variant")
    evaluate.add_argument("--checkpoint", type=Path)
    evaluate.add_argument("--results", type=Path, metavar="results_nusc.json", help="score this file, run nothing")
    evaluate.add_argument("--data", type=Path, required=True, metavar="ROOT", help="a nuScenes dataroot")
    evaluate.add_argument("--version", default="v1.0-trainval", help="of its tables (default: %(default)s)")
    evaluate.add_argument("--split", default="val", help="default: %(default)s")
    evaluate.add_argument("--scenes", nargs="+", default=[], metavar="NAME", help="only these of the split")
    evaluate.add_argument("--out", type=Path, default=Path("output/eval"))
    evaluate.add_argument("--device", default="auto")
    evaluate.set_defaults(command=_eval)

    demo = commands.add_parser("demo", help="a short drive through the real node over DDS, with pictures at the end")
    demo.add_argument("--out", type=Path, default=Path("output/demo"))
    demo.add_argument("--nuscenes", type=Path, metavar="ROOT", help="real keyframes instead of a made-up drive")
    demo.add_argument("--version", default="v1.0-mini")
    demo.add_argument("--scene", default="scene-0103")
    demo.add_argument("--seconds", type=float, default=5.0, help="length of the made-up drive")
    demo.add_argument("--variant", default="sparsebev_tiny")
    demo.add_argument("--checkpoint", type=Path, help="default: untrained initial weights")
    demo.set_defaults(command=_demo)

    bench = commands.add_parser("bench", help="time the stages, the transport and the memory on this machine")
    bench.add_argument("--out", type=Path, default=Path("output/bench"))
    bench.set_defaults(command=_bench)
    return parser


def _variants(args: argparse.Namespace) -> int:
    from bev_perception.config import list_variants, load_variant

    for name in list_variants():
        config = load_variant(name)
        score = config.provenance.published_nds_val
        published = f"published NDS {score}" if score is not None else (config.provenance.note or "no published score")
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


def _run(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from bev_perception.data.drive import CAMERAS
    from bev_perception.data.rosbag import INPUT_PREFIX, BagReader
    from bev_perception.offline import run_events, write_results
    from bev_perception.pipeline import PipelineSettings, load_pipeline
    from bev_perception.synchronizer import SynchronizerSettings

    cameras = tuple(args.cameras or CAMERAS)
    remap = dict(rule.split(":=", 1) for rule in args.remap)
    bag = BagReader(args.bag, cameras, args.prefix or INPUT_PREFIX, remap)
    settings = SynchronizerSettings(cameras, args.anchor, base_frame=args.base_frame, fixed_frame=args.fixed_frame)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(
        args.variant, args.checkpoint, args.device, PipelineSettings(score_threshold=args.score_threshold)
    )

    results = tqdm(run_events(bag.events(), pipeline, settings), unit="frame", desc=args.variant)
    count = write_results(args.out, pipeline, results)
    pipeline.close()
    snapshot = pipeline.health.snapshot()
    untrained = "" if pipeline.checkpoint.trained else "; the weights are UNTRAINED"
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
    data = NuScenesTraining(config, open_split(args.data, args.version, args.split))
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


def _eval(args: argparse.Namespace) -> int:
    from bev_perception.evaluation.detection import score_results
    from bev_perception.evaluation.evaluate import EvalSettings, evaluate

    scores: DetectionScores | None
    if args.results is not None:
        scores = score_results(args.results, args.data, args.version, args.split, args.out, args.scenes)
    elif args.variant and args.checkpoint:
        settings = EvalSettings(
            variant=args.variant,
            checkpoint=args.checkpoint,
            data=args.data,
            version=args.version,
            split=args.split,
            out=args.out,
            device=args.device,
            scenes=tuple(args.scenes),
        )
        scores = evaluate(settings)
    else:
        raise ValueError("name --variant and --checkpoint to run, or --results to score a file that exists already")
    if scores is not None:
        print(scores.table())
    return 0


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
    from bev_perception.ros.bench import COUNTS, run_bench

    print(run_bench(args.out, COUNTS))
    return 0


if __name__ == "__main__":
    sys.exit(main())
