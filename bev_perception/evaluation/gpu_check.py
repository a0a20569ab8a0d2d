"""Check and time everything on a GPU in one run of a few minutes: `bev_perception bench --gpu-report FILE`.

Needs neither ROS nor a network nor weights. Each item runs by itself: one that fails is reported, and the others go on.
Sections run in processes of their own, so that an error that spoils CUDA, or a crash, ends one section alone.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bev_perception.evaluation.limits import measure_limits
from bev_perception.evaluation.timing import count_operations, machine
from bev_perception.families.catalog import build_model
from bev_perception.families.variants import TINY_DETECTOR, list_variants, load_variant
from bev_perception.models.folding import fold_batch_norms
from bev_perception.models.precision import check_precision, encoder_precision, strict_float32
from bev_perception.models.protocol import Model
from bev_perception.ops.deformable_aggregation import aggregate_features, aggregate_features_reference
from bev_perception.ops.sampling import sample_features, sample_features_reference
from bev_perception.pipeline.encoders import noise_input
from bev_perception.pipeline.engines import EAGER, ENGINES, use_engine
from bev_perception.pipeline.engines.part import input_size

#: s; no section begins after this, so that the whole stays below nine minutes
BUDGET = 480.0
#: largest root mean square of a difference to the CPU, as a share of that of the CPU's output
TOLERANCE = 1e-2
PRECISIONS = ("fp32", "tf32", "bf16")

#: yields (name, what measures it); a measurement is a dictionary of plain values
Items = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def gpu_report(path: Path, device: torch.device, quick: bool) -> str:
    """Run all sections, write their results as JSON to `path` and as Markdown beside it; return the Markdown.

    quick: small variants alone, and few repeats, to try the script itself
    """
    started = time.perf_counter()
    report: dict[str, Any] = {"machine": machine(), "device": str(device), "quick": quick, "sections": {}}
    for name in _SECTIONS:
        left = BUDGET - (time.perf_counter() - started)
        report["sections"][name] = (
            _in_a_process(name, device, quick, left) if left > 0 else {"": _error("no time left")}
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1))  # after each section, so that a kill loses one at most
    text = _markdown(report)
    path.with_suffix(".md").write_text(text)
    return text


def _in_a_process(name: str, device: torch.device, quick: bool, seconds: float) -> dict[str, Any]:
    """Return the results of a section by item, up to where its process has come."""
    context = multiprocessing.get_context("spawn")
    told: Any = context.Queue()
    process = context.Process(target=_run_section, args=(name, str(device), quick, told))
    process.start()
    found: dict[str, Any] = {}
    deadline = time.perf_counter() + seconds
    try:
        while (item := _next(told, process, deadline)) is not None:
            found[item[0]] = item[1]
    except TimeoutError:
        found["(rest)"] = _error("not done within the time")
    except ChildProcessError:
        found["(rest)"] = _error(f"the process died with code {process.exitcode}")
    process.kill()
    process.join()
    return found


def _next(told: Any, process: Any, deadline: float) -> tuple[str, dict[str, Any]] | None:
    while True:
        try:
            item: tuple[str, dict[str, Any]] | None = told.get(timeout=0.5)
            return item
        except queue.Empty:
            if time.perf_counter() > deadline:
                raise TimeoutError from None
            if not process.is_alive() and told.empty():
                raise ChildProcessError from None


def _run_section(name: str, device: str, quick: bool, told: Any) -> None:
    where = torch.device(device)
    with torch.inference_mode(False), strict_float32(where):
        for item, measure in _SECTIONS[name](where, quick):
            started = time.perf_counter()
            try:
                result = measure()
            except Exception as error:  # any failure is a finding
                result = {**_error(repr(error)), "trace": traceback.format_exc()[-2000:]}
            told.put((item, {**result, "seconds": round(time.perf_counter() - started, 2)}))
    told.put(None)


def _error(text: str) -> dict[str, Any]:
    return {"ok": False, "error": text}


def _limits(device: torch.device, quick: bool) -> Items:
    def measure(precision: str) -> dict[str, Any]:
        check_precision(precision, device)
        limits = measure_limits(device, precision)
        return {"ok": True, "gflops": round(limits.gflops), "gb_per_s": round(limits.gb_per_s, 1)}

    for precision in PRECISIONS[:1] if quick else PRECISIONS:
        yield precision, lambda p=precision: measure(p)  # type: ignore[misc]


def _ops(device: torch.device, quick: bool) -> Items:
    def compare(fast: Callable[..., Tensor], slow: Callable[..., Tensor], values: list[Tensor]) -> dict[str, Any]:
        outs, grads = [], []
        for run in (fast, slow):
            leaves = [v.detach().requires_grad_() for v in values]
            out = run(*leaves)
            outs.append(out.detach())
            grads.append(torch.autograd.grad(out.square().sum(), leaves, allow_unused=True))
        pairs = [(outs[0], outs[1]), *((a, b) for a, b in zip(*grads, strict=True) if a is not None and b is not None)]
        off = max(_off(a, b) for a, b in pairs)
        return {"ok": off <= TOLERANCE, "off": off}

    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    inputs = noise_input(3, 32, 64, device)
    matrices = torch.from_numpy(inputs.global2image).float().to(device).expand(1, 2, -1, -1, -1)
    maps = [noise(1, 3, 8, 16, 8), noise(1, 3, 4, 8, 8)]
    points = 20 * noise(1, 2, 30, 2, 4, 3) - 10
    weights = noise(1, 2, 30, 2, 4, 2)

    def sampled(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda a, b, points, weights: run([[a, b]] * 2, points, matrices, weights, (32, 64))

    yield (
        "sampling",
        lambda: compare(sampled(sample_features), sampled(sample_features_reference), [*maps, points, weights]),
    )
    uv, by_group = 1.4 * noise(1, 30, 5, 3, 2) - 0.2, noise(1, 30, 5, 3, 2, 2)

    def aggregated(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda a, b, uv, weights: run([a, b], uv, weights, True)

    yield (
        "deformable aggregation",
        lambda: compare(
            aggregated(aggregate_features), aggregated(aggregate_features_reference), [*maps, uv, by_group]
        ),
    )


def _families(device: torch.device, quick: bool) -> Items:
    def compare(name: str) -> dict[str, Any]:
        found = []
        for where in (torch.device("cpu"), device):
            model = _model(name, where)
            found.append([t.cpu() for t in _tensors(_step(model, where)) if t.is_floating_point()])
        shapes = [[t.shape for t in tensors] for tensors in found]
        off = statistics.median(_off(a, b) for a, b in zip(*found, strict=True)) if shapes[0] == shapes[1] else None
        return {"ok": off is not None and off <= TOLERANCE, "off": off}

    for name in _tiny():
        yield name, lambda n=name: compare(n)  # type: ignore[misc]


def _times(device: torch.device, quick: bool) -> Items:
    def measure(name: str, precision: str) -> dict[str, Any]:
        check_precision(precision, device)
        model, repeats = _model(name, device), 2 if quick else 10
        flops = sum(count_operations(model, lambda: _step(model, device)).values())
        inputs = noise_input(6, *input_size(model.config.image), device)
        with torch.inference_mode(), encoder_precision(precision, device):
            entry = model.predict(model.encode(inputs), _nothing(model), inputs, None).entry
        history, seconds = [entry] * len(_nothing(model)), []
        later = noise_input(6, *input_size(model.config.image), device, model.config.frames.interval)
        for _ in range(1 + repeats):
            start = time.perf_counter()
            with torch.inference_mode():
                with encoder_precision(precision, device):
                    encoded = model.encode(later)
                model.predict(encoded, history, later, None)
            _wait(device)
            seconds.append(time.perf_counter() - start)
        limits = measure_limits(device, precision)
        step = min(seconds[1:])
        return {
            "ok": True,
            "ms": round(1e3 * statistics.median(seconds[1:]), 2),
            "gmac": round(flops / 2e9, 1),
            "floor_ms": round(flops / limits.gflops / 1e6, 2),
            "of_limit": round(flops / limits.gflops / 1e9 / step, 3),
        }

    names = _tiny() if quick else [name for name in list_variants() if "r50" in name and "512" not in name]
    for name in names:
        for precision in PRECISIONS[:1] if quick else PRECISIONS:
            yield f"{name} {precision}", lambda n=name, p=precision: measure(n, p)  # type: ignore[misc]


def _engines(device: torch.device, quick: bool) -> Items:
    def compare(name: str, engine: str) -> dict[str, Any]:
        model = _model(name, device)
        started = time.perf_counter()
        use_engine(model, model.config, engine, "fp32", device)  # compares with eager mode itself
        return {"ok": True, "ready_s": round(time.perf_counter() - started, 1)}

    for engine in ENGINES:
        if engine != EAGER and not (quick and engine == "compile"):
            yield engine, lambda e=engine: compare(TINY_DETECTOR, e)  # type: ignore[misc]


_SECTIONS: dict[str, Callable[[torch.device, bool], Items]] = {
    "limits": _limits,
    "ops": _ops,
    "families": _families,
    "times": _times,
    "engines": _engines,
}


def _tiny() -> list[str]:
    return [name for name in list_variants() if name.endswith("_tiny")]


def _model(name: str, device: torch.device) -> Model:
    torch.manual_seed(0)
    model = build_model(load_variant(name)).eval()
    fold_batch_norms(model)
    return model.to(device)


def _nothing(model: Model) -> list[None]:
    return [None] * model.new_memory(model.config.frames.interval).count


def _step(model: Model, device: torch.device) -> object:
    """Return the outputs of a first frame."""
    inputs = noise_input(6, *input_size(model.config.image), device)
    with torch.inference_mode():
        return model.predict(model.encode(inputs), _nothing(model), inputs, None).outputs


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield all tensors in nested dataclasses and sequences, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
    elif hasattr(value, "__dataclass_fields__"):
        for part in vars(value).values():
            yield from _tensors(part)


def _off(value: Tensor, expected: Tensor) -> float:
    """Return the root mean square of a difference as a share of that of the expected values."""
    off, scale = ((x.double().square().mean().sqrt()).item() for x in (value - expected, expected))
    return off / max(scale, 1e-12)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _markdown(report: dict[str, Any]) -> str:
    lines = [f"# GPU report: {report['machine']['gpu']}, device {report['device']}", ""]
    lines += [f"- {name}: {value}" for name, value in report["machine"].items()]
    for section, items in report["sections"].items():
        lines += ["", f"## {section}", "", "| item | ok | result |", "|---|---|---|"]
        for item, result in items.items():
            shown = ", ".join(f"{k} {v}" for k, v in result.items() if k not in ("ok", "trace"))
            lines.append(
                f"| {item} | {'yes' if result['ok'] else 'NO'} | {' '.join(shown.split()).replace('|', '/')} |"
            )
    return "\n".join(lines) + "\n"
