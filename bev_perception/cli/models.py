"""Commands for models: list the variants, run, train and benchmark them, and the demo."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bev_perception.cli.options import (
    DEVICE_HELP,
    LABELS_HELP,
    Commands,
    add_checkpoint,
    add_command,
    add_engine,
    add_precision,
    add_variant,
    add_version,
    add_viewer,
    data_version,
    duration,
    whole_number,
)
from bev_perception.cli.running import add_run
from bev_perception.data.occupancy_labels import LABELS_FOLDER
from bev_perception.families.variants import TINY_DETECTOR, TINY_OCCUPANCY
from bev_perception.strict import UserError

if TYPE_CHECKING:
    from bev_perception.config import VariantConfig
    from bev_perception.training.dataset import NuScenesTraining


def add_commands(commands: Commands) -> None:
    """Add `variants`, `init-weights`, `export`, `run`, `train`, `bench`, `soak` and `demo`."""
    variants = add_command(
        commands,
        "variants",
        "list the variants",
        "One a line: name, family, what it gives, size of the images, its weights (shipped with the package, published "
        "by its authors, or none), published score.",
    )
    variants.set_defaults(command=_variants)

    init = add_command(commands, "init-weights", "write the untrained initial weights of a variant, for trial runs")
    add_variant(init)
    init.add_argument("--seed", type=whole_number(0), default=0, help="of the random weights (default: %(default)s)")
    init.add_argument("out", type=Path, metavar="FILE", help="safetensors file to write")
    init.set_defaults(command=_init_weights)

    export = add_command(
        commands,
        "export",
        "write a variant's image encoder or its step for other runtimes, with a description",
        "The file is run at once and compared with the model. The step is all that comes after the encoder; it takes "
        "the encoder's maps of past frames as inputs.",
    )
    add_variant(export)
    add_checkpoint(export)
    export.add_argument("--format", choices=("onnx", "openvino", "torch"), required=True, help="of the file")
    export.add_argument("--part", choices=("encoder", "step"), default="encoder", help="(default: %(default)s)")
    export.add_argument("out", type=Path, metavar="DIR", help="directory to write")
    export.set_defaults(command=_export)

    add_run(commands)
    _add_train(commands)
    _add_bench(commands)
    _add_soak(commands)
    _add_demo(commands)


def _variants(args: argparse.Namespace) -> int:
    from bev_perception.families.table import published_score, what_it_gives
    from bev_perception.families.variants import list_variants, load_variant, shipped_weights

    for name in list_variants():
        config = load_variant(name)
        score = published_score(config.provenance)
        published = f"published {score}" if score else (config.provenance.note or "no published score")
        source = "published" if config.provenance.weights_source else "none"
        weights = "shipped" if shipped_weights(name) else source
        size = f"{config.image.width}x{config.image.height}"
        print(f"{name:51} {config.family:9} {what_it_gives(config):20} {size:8} weights: {weights:9}  {published}")
    return 0


def _init_weights(args: argparse.Namespace) -> int:
    from bev_perception.pipeline.loading import write_initial_weights

    write_initial_weights(args.variant, args.out, args.seed)
    print(f"wrote {args.out} (UNTRAINED, seed {args.seed})")
    return 0


def _export(args: argparse.Namespace) -> int:
    from bev_perception.pipeline import export, step_export

    write, description = (
        (export.export_encoder, export.DESCRIPTION)
        if args.part == "encoder"
        else (step_export.export_step, step_export.DESCRIPTION)
    )
    print(f"wrote {write(args.variant, args.checkpoint, args.format, args.out)}, and {description} beside it")
    return 0


def _add_train(commands: Commands) -> None:
    train = add_command(
        commands,
        "train",
        "train or fine-tune a variant on data in the format of nuScenes; on several GPUs under torchrun",
        "What belongs to the variant is in its file (training). SIGTERM or Ctrl-C saves the state, which --resume "
        "continues exactly.",
    )
    add_variant(train)
    train.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        help="one or more nuScenes dataroots, all trained on",
    )
    add_version(train)
    train.add_argument("--split", help="split to train on (default: the training split of each root's version)")
    train.add_argument("--labels", default=LABELS_FOLDER, help=LABELS_HELP)
    train.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="directory for weights, training state and logs"
    )
    train.add_argument("--pretrained", type=Path, help="weights file for the backbone, loaded after --init")
    train.add_argument("--init", type=Path, help="checkpoint of this variant to start from, e.g. to fine-tune it")
    train.add_argument(
        "--init-fitting",
        type=Path,
        help="checkpoint of another variant to start from, e.g. of a detector for an occupancy net: takes the weights "
        "whose names and shapes fit, and lists the others",
    )
    train.add_argument("--resume", action="store_true", help="continue from the training state in --out")
    train.add_argument(
        "--part",
        default="all",
        help="train only this part of the model, if its family offers it: decoder (on features computed once and "
        "kept in --out until the end) or encoder (on single frames; use the result with --init) (default: %(default)s)",
    )
    train.add_argument(
        "--val-every",
        type=whole_number(0),
        default=0,
        help="score the weights every N epochs and after the last on the validation split of the first ROOT, and keep "
        "the best as best.safetensors; 0: never (default: %(default)s)",
    )
    train.add_argument("--val-split", help="split to score on (default: the validation split of the version)")
    train.add_argument("--epochs", type=int, help="number of epochs (default: the variant's)")
    train.add_argument("--lr", type=float, help="learning rate (default: the variant's)")
    train.add_argument(
        "--batch", type=int, help="samples per process (default: the variant's batch, divided among the processes)"
    )
    train.add_argument("--seed", type=whole_number(0), default=0, help="of everything random (default: %(default)s)")
    train.add_argument("--device", default="auto", help=DEVICE_HELP)
    train.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16"),
        default="bf16",
        help="of backbone and neck (default: %(default)s)",
    )
    train.add_argument(
        "--recompute",
        action="store_true",
        help="use less memory and more time: compute activations again in the backward pass",
    )
    train.add_argument(
        "--workers", type=whole_number(0), default=4, help="data loading processes (default: %(default)s)"
    )
    train.set_defaults(command=_train)


def _train(args: argparse.Namespace) -> int:
    from bev_perception.config import FramesConfig
    from bev_perception.families.variants import load_variant
    from bev_perception.training.dataset import JoinedData
    from bev_perception.training.train import TrainSettings, find_part, train

    config = load_variant(args.variant)
    newest_only = find_part(config, args.part).newest_only
    read = replace(config, frames=FramesConfig(past=0)) if newest_only else config
    data = JoinedData([_training_data(args, read, root) for root in args.data])
    settings = TrainSettings(
        out=args.out,
        pretrained=args.pretrained,
        init=args.init,
        init_fitting=args.init_fitting,
        resume=args.resume,
        part=args.part,
        epochs=args.epochs,
        lr=args.lr,
        batch=args.batch,
        seed=args.seed,
        device=args.device,
        precision=args.precision,
        recompute=args.recompute,
        workers=args.workers,
    )
    if args.val_every:
        _check_validation(args, config)
    validate = partial(_validate, args, config) if args.val_every else None
    result = train(config, data, replace(settings, val_every=args.val_every or 1), validate)
    print(f"{'done' if result.finished else 'stopped; continue with --resume'}: {result.steps} steps, in {args.out}")
    return 0


def _validate(args: argparse.Namespace, config: VariantConfig, weights: Path) -> dict[str, float]:
    """Return the scores of weights on the validation split; none in processes that do not score.

    Weights that find nothing yet are refused by nuscenes-devkit: that is said, and training goes on.
    """
    from bev_perception.evaluation.errors import RefusedResultsError
    from bev_perception.evaluation.evaluate import EvalSettings, evaluate
    from bev_perception.evaluation.regression import headline

    how = {"device": args.device, "precision": args.precision, "labels": args.labels}
    try:
        scores = evaluate(EvalSettings(config, weights, *_validation_split(args), args.out / "val", **how))
    except RefusedResultsError as error:
        print(f"bev_perception: no validation: {error}", file=sys.stderr)
        return {}
    return {} if scores is None else headline(scores)


def _validation_split(args: argparse.Namespace) -> tuple[Path, str, str]:
    """Return dataroot, version and split that weights are validated on."""
    from bev_perception.data.nuscenes import default_split

    root = args.data[0]
    version = data_version(args, root)
    return root, version, args.val_split or default_split(version, "val")


def _check_validation(args: argparse.Namespace, config: VariantConfig) -> None:
    """Raise the errors of a validation that would fail, before hours of training have passed."""
    from bev_perception.data.nuscenes import open_devkit
    from bev_perception.data.records import open_split
    from bev_perception.evaluation.running import check_images

    if args.part == "encoder":
        raise UserError("--val-every scores the decoder, too, which --part encoder leaves untrained; leave it out")
    root, version, split = _validation_split(args)
    check_images(open_split(root, version, split), config)
    open_devkit(root, version)


def _training_data(args: argparse.Namespace, config: VariantConfig, root: Path) -> NuScenesTraining:
    from bev_perception.data.nuscenes import default_split
    from bev_perception.data.records import open_split
    from bev_perception.training.dataset import NuScenesTraining, check_taught

    version = data_version(args, root)
    split = args.split or default_split(version, "train")
    records = open_split(root, version, split)
    check_taught(records, config)
    return NuScenesTraining(config, records, args.labels)


def _add_bench(commands: Commands) -> None:
    bench = add_command(
        commands,
        "bench",
        "time a variant by the protocol of the publications; without --variant, the node and its transport",
        "Prints a table and writes it as JSON to --out.",
    )
    bench.add_argument(
        "--out",
        type=Path,
        default=Path("output/bench"),
        metavar="DIR",
        help="directory for the results as JSON (default: %(default)s)",
    )
    add_variant(bench, required=False)
    bench.add_argument(
        "--checkpoint",
        type=Path,
        help="weights of --variant (default: those shipped with it, else untrained ones, which take as long)",
    )
    bench.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="VARIANT",
        help="further variants to time after it, in the same run, to compare with",
    )
    bench.add_argument("--frames", type=int, default=50, help="number of timed frames (default: %(default)s)")
    bench.add_argument("--device", default="auto", help=DEVICE_HELP)
    add_precision(bench)
    add_engine(bench)
    bench.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("A.json", "B.json"),
        help="measure nothing: show the times in two files of earlier runs side by side",
    )
    bench.add_argument(
        "--gpu-report",
        type=Path,
        metavar="FILE.json",
        help="check and time everything on --device in a few minutes; writes FILE.json and FILE.md",
    )
    bench.add_argument("--quick", action="store_true", help="with --gpu-report: small variants alone, few repeats")
    bench.set_defaults(command=_bench)


def _bench(args: argparse.Namespace) -> int:
    if args.compare is not None:
        from bev_perception.evaluation.comparison import compare_benchmarks

        print(compare_benchmarks(*args.compare))
        return 0
    if args.gpu_report is not None:
        from bev_perception.evaluation.gpu_check import gpu_report
        from bev_perception.models.device import choose_device

        print(gpu_report(args.gpu_report, choose_device(args.device), args.quick))
        return 0
    if args.variant is None:
        if args.against:
            raise UserError("--against compares with a variant; name one with --variant")
        from bev_perception.ros.tools.bench import COUNTS, run_bench

        print(run_bench(args.out, COUNTS))
        return 0
    from bev_perception.evaluation.timing import TimingSettings, time_variant
    from bev_perception.families.variants import load_variant

    variants = [load_variant(variant) for variant in (args.variant, *args.against)]  # all names, before minutes pass
    for index, variant in enumerate(variants):
        checkpoint = None if index else args.checkpoint
        timing = time_variant(
            TimingSettings(variant, checkpoint, args.device, args.precision, args.engine, args.frames)
        )
        print(timing.table())
        print(f"wrote {timing.write(args.out)}\n")
    return 0


def _add_soak(commands: Commands) -> None:
    soak = add_command(
        commands,
        "soak",
        "watch memory, threads and open files of the real node over thousands of results, in lockstep",
    )
    soak.add_argument(
        "--out", type=Path, default=Path("output/soak"), metavar="DIR", help="directory (default: %(default)s)"
    )
    soak.add_argument(
        "--results", type=whole_number(3), default=5000, help="how many results to watch (default: %(default)s)"
    )
    soak.add_argument("--warm-up", type=whole_number(0), default=500, help="results before them (default: %(default)s)")
    soak.set_defaults(command=_soak)


def _soak(args: argparse.Namespace) -> int:
    from bev_perception.ros.tools.soak import run_soak

    soak = run_soak(args.out, args.results, args.warm_up)
    print(soak.text())
    return 1 if soak.faults else 0


def _add_demo(commands: Commands) -> None:
    demo = add_command(
        commands,
        "demo",
        "play a short drive to the real node over DDS and make pictures and a video",
        "Ends with a table of latencies, and with scores where weights are shipped.",
    )
    demo.add_argument(
        "--out", type=Path, default=Path("output/demo"), metavar="DIR", help="directory (default: %(default)s)"
    )
    demo.add_argument("--nuscenes", type=Path, help="play a scene of this dataroot instead of a synthetic drive")
    demo.add_argument("--version", default="v1.0-mini", help="of ROOT's tables (default: %(default)s)")
    demo.add_argument("--scene", default="scene-0103", help="scene of ROOT (default: %(default)s)")
    demo.add_argument(
        "--seconds", type=duration, default=10.0, help="s; length of the synthetic drive (default: %(default)s)"
    )
    add_variant(demo, required=False, default=TINY_DETECTOR)
    demo.add_argument(
        "--checkpoint",
        type=Path,
        help=f"weights; the variant then runs alone (default: those shipped, with {TINY_OCCUPANCY}, or untrained ones)",
    )
    add_engine(demo)
    add_viewer(demo)
    demo.set_defaults(command=_demo)


def _demo(args: argparse.Namespace) -> int:
    from bev_perception.ros.tools.demo import DemoSettings, run_demo
    from bev_perception.visualization.viewer import WINDOW

    settings = DemoSettings(
        out=args.out,
        nuscenes=args.nuscenes,
        version=args.version,
        scene=args.scene,
        seconds=args.seconds,
        variant=args.variant,
        checkpoint=args.checkpoint,
        engine=args.engine,
        viewer=str(args.save.absolute()) if args.save else WINDOW if args.viewer else "",
    )
    print(run_demo(settings))
    return 0
