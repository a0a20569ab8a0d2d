"""Run a fleet of bags on a Ray cluster: actors that hold the weights, one GPU or core each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bev_perception.models.device import choose_device
from bev_perception.pipeline.fleet import Entry, FleetRunner, FleetSettings, write_manifest
from bev_perception.strict import UserError

#: how often a bag is begun; a worker that is lost may have been killed by that very bag
TRIES = 2


def run_on_ray(settings: FleetSettings, bags: Sequence[Path], workers: int | None = None) -> Iterator[Entry]:
    """Run bags on the cluster that RAY_ADDRESS names, else on this machine; yield the entry of each as it ends.

    A bag whose worker is lost is resumed by a new one, once. The directories of bags and results must be the same on
    all machines.

    workers: number of actors; None: as many as the cluster has GPUs, or cores where variants run on the CPU

    Raises UserError if ray cannot be imported or the cluster not reached.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(f"ray cannot be imported ({error}); pip install bev_perception[ray]") from error
    own = not ray.is_initialized()
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False)
    except Exception as error:  # whatever ray meets on its way to a cluster
        raise UserError(f"no Ray cluster can be reached or started ({error}); check RAY_ADDRESS") from error
    try:
        yield from _run(ray, settings, bags, workers)
    finally:
        if own:
            ray.shutdown()
    write_manifest(settings.out)


def _run(ray: Any, settings: FleetSettings, bags: Sequence[Path], workers: int | None) -> Iterator[Entry]:
    wanted = choose_device(settings.device)
    what = {"num_gpus": 1} if wanted.type == "cuda" else {"num_cpus": 1}
    there = int(ray.cluster_resources().get("GPU" if wanted.type == "cuda" else "CPU", 1))
    actor = ray.remote(**what)(FleetRunner)
    waiting = [(path, TRIES) for path in bags]
    idle = [actor.remote(settings) for _ in range(max(1, min(workers or there, len(bags))))]
    settings.out.mkdir(parents=True, exist_ok=True)
    busy: dict[Any, tuple[Any, Path, int]] = {}
    while waiting or busy:
        while waiting and idle:
            path, tries = waiting.pop(0)
            worker = idle.pop()
            busy[worker.run.remote(path)] = worker, path, tries - 1
        (done,), _ = ray.wait(list(busy))
        worker, path, tries = busy.pop(done)
        try:
            yield ray.get(done)
            idle.append(worker)
        except ray.exceptions.RayActorError as error:
            idle.append(actor.remote(settings))
            if tries:
                waiting.append((path, tries))
            else:
                yield {"bag": str(path.resolve()), "status": "failed", "error": f"its worker was lost: {error}"}
        except ray.exceptions.RayTaskError as error:  # of the actor itself, such as weights that cannot be loaded
            raise UserError(f"a worker cannot start: {error.cause}") from error
