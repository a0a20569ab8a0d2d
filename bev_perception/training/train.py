"""Train a variant on one device or, under torchrun, on several; `train` reads from top to bottom."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from bev_perception.config import TrainingConfig, VariantConfig, digest
from bev_perception.data.folders import one_writer
from bev_perception.families.catalog import build_model, family_of
from bev_perception.models.checkpoints import load_checkpoint, load_fitting, load_pretrained
from bev_perception.models.encoder import ENCODER_PARTS
from bev_perception.models.precision import PRECISIONS, check_precision, strict_float32, tiny_is_zero
from bev_perception.supervision.order import Order, Shuffled
from bev_perception.supervision.parts import TrainedPart
from bev_perception.supervision.samples import Batch, EncodableData, TrainingData
from bev_perception.supervision.step import TrainingStep, freeze
from bev_perception.training.averaging import WeightAverage
from bev_perception.training.loading import LoadedBatches, explained_losses
from bev_perception.training.optimizing import parameter_groups, schedule
from bev_perception.training.processes import Processes, join_processes
from bev_perception.training.progress import Progress
from bev_perception.training.scaling import SkippedSteps
from bev_perception.training.state import STATE, Identity, TrainingError, load_state, save_state
from bev_perception.training.validation import Validate, Validation

#: subdirectory of the output that holds the features of a frozen encoder while training runs
FEATURES = "features"
#: initial loss scale of fp16; GradScaler adapts it
FP16_SCALE = 512.0


@dataclass(frozen=True)
class TrainSettings:
    """Where and how to train; what belongs to the variant is in its TrainingConfig.

    out: directory for the weights, the state and the logs.
    pretrained: file to load the backbone from, and the neck if both are frozen; loaded after init.
    init: checkpoint of the same variant to start from.
    init_fitting: checkpoint of another variant, of which the weights that fit are taken; see load_fitting.
    resume: whether to continue from the state in out.
    part: what of the model is trained: "all", or a part that the family names; see supervision.parts.TrainedPart.
    epochs: number of epochs; None: the variant's.
    lr: peak learning rate; None: the variant's.
    batch: samples per step and process; None: the variant's batch, divided among the processes.
    seed: of everything random.
    device: "auto", "cpu", "cuda" or "cuda:N".
    precision: "fp32", "bf16" or "fp16" for backbone, neck and the perspective head's wide layers; the rest is float32.
    recompute: whether to save memory by computing activations twice.
    workers: data loading processes per training process; 0: the training process loads the data itself.
    log_every: steps between two reports.
    save_every: steps between two saved states; the state is also saved at the end of every epoch.
    val_every: epochs between two validations.
    """

    out: Path
    pretrained: Path | None = None
    init: Path | None = None
    init_fitting: Path | None = None
    resume: bool = False
    part: str = "all"
    epochs: int | None = None
    lr: float | None = None
    batch: int | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "bf16"
    recompute: bool = False
    workers: int = 4
    log_every: int = 50
    save_every: int = 1000
    val_every: int = 1


@dataclass(frozen=True)
class TrainResult:
    """How a training ended.

    steps: number of steps done, including those before it was resumed.
    finished: False if a signal stopped training, which can then be resumed.
    """

    steps: int
    finished: bool


def train(
    config: VariantConfig, data: TrainingData, settings: TrainSettings, validate: Validate | None = None
) -> TrainResult:
    """Train a variant on `data`; every `val_every` epochs, `validate` scores the weights, see Validation.

    SIGTERM or SIGINT ends training after the current step and saves the state. A resumed training gives the same result
    as an uninterrupted one (bit for bit on the CPU), as all randomness follows from seed, step and rank.
    A single process that is waiting for a batch from its workers stops at once, and so does a validation, which a
    resumed training begins anew.
    While images are being encoded, for a part whose encoder stays, a signal raises TrainingError: there is nothing to
    save yet.

    Raises TrainingError, ConfigError or CheckpointError for settings and files that do not fit.
    """
    part = find_part(config, settings.part)
    recipe = _check(config, part, settings)
    epochs = recipe.epochs if settings.epochs is None else settings.epochs
    lr = recipe.lr if settings.lr is None else settings.lr
    with join_processes(settings.device) as processes, _StopOnSignal() as stop, contextlib.ExitStack() as stack:
        if processes.rank == 0:
            stack.enter_context(one_writer(settings.out, "*.part.*"))
        stack.enter_context(tiny_is_zero())
        stack.enter_context(explained_losses())
        device = processes.device
        check_precision(settings.precision, device)
        stack.enter_context(strict_float32(device))
        batch = _share(recipe.batch, processes.count) if settings.batch is None else settings.batch
        order = _order(config, data, batch * processes.count, settings.seed)
        steps_per_epoch = len(order)
        total_steps = epochs * steps_per_epoch
        identity = Identity(
            part=config.name if settings.part == "all" else f"{config.name}, its {settings.part}",
            config=digest(config),
            seed=settings.seed,
            samples=len(data),
            batch=batch * processes.count,
            epochs=epochs,
            lr=lr,
            precision=settings.precision,
        )

        torch.manual_seed(settings.seed)
        model = build_model(config)
        if settings.init is not None:
            load_checkpoint(model, settings.init)
        if settings.init_fitting is not None:
            load_fitting(model, settings.init_fitting)
        if settings.pretrained is not None:
            for name in ENCODER_PARTS if recipe.encoder == "frozen" else ENCODER_PARTS[:1]:
                load_pretrained(model, settings.pretrained, name)
        freeze(model, recipe.encoder)
        for name in part.kept:
            model.get_submodule(name).requires_grad_(False)
        training_step = part.step(model, recipe, settings.precision).to(device).train()
        if not settings.resume:
            training_step.begin()
        if settings.recompute:
            training_step.compute_twice()
        optimizer = torch.optim.AdamW(parameter_groups(model, recipe, lr))
        average = None if recipe.averaging is None else WeightAverage(model, recipe.averaging)
        scaler = torch.amp.GradScaler(device.type, init_scale=FP16_SCALE, enabled=settings.precision == "fp16")
        validation = None
        if validate is not None:
            validation = Validation(validate, settings.out, settings.val_every, settings.resume)
        done, memory = 0, None
        if settings.resume:
            done, memories = load_state(settings.out, identity, model, optimizer, scaler, average)
            memory = processes.own(memories)
        if part.encoded_once:
            data = stack.enter_context(_encoded_once(data, training_step, settings.out / FEATURES, processes, stop))

        skips = SkippedSteps(scaler)
        # batch norms that learn statistics keep those of the first process, which are saved
        wrap = partial(processes.wrap, broadcast=recipe.encoder == "scratch", leaves_out=part.leaves_out)
        losses_of = wrap(training_step)

        def save() -> None:
            memories = processes.gather(memory)
            if processes.rank == 0:
                save_state(settings.out, identity, done, model, optimizer, scaler, average, memories)

        with Progress(settings.out, done, total_steps, settings.log_every, silent=processes.rank > 0) as progress:
            first = done // steps_per_epoch
            ended = done and done % steps_per_epoch == 0  # after an epoch, perhaps in its validation
            if validation is not None and ended and not stop.done(partial(validation.after, first, epochs, done)):
                return TrainResult(done, finished=False)
            for epoch in range(first, epochs):
                training_step.epoch = epoch
                if recipe.sync_norms_from is not None and epoch == max(first, recipe.sync_norms_from):
                    losses_of = wrap(processes.synchronize_norms(training_step))
                rows = order.epoch(epoch)[done % steps_per_epoch :]
                mine = [row[processes.rank * batch : (processes.rank + 1) * batch] for row in rows]
                # readers start here, where a signal interrupts nothing: PyTorch waits long for those half started
                loading = LoadedBatches(data, mine, settings.workers, pin_memory=device.type == "cuda")
                batches: Iterator[Batch] = stack.enter_context(contextlib.closing(loading))
                if settings.workers and processes.count == 1:  # several processes must agree to stop, after a step
                    batches = stop.interrupting(batches)
                for loaded in batches:
                    lr_factor = schedule(recipe, done, steps_per_epoch, epochs)
                    for group in optimizer.param_groups:
                        group["lr"] = lr * group["lr_factor"] * lr_factor
                    torch.manual_seed(_step_seed(settings.seed, done, processes.rank))

                    losses, remembered = losses_of(loaded.to(device), memory)
                    loss = torch.stack(list(losses.values())).sum()
                    optimizer.zero_grad()
                    scaler.scale(loss).backward()
                    scaler.unscale_(optimizer)
                    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                    if not scaler.is_enabled() and not norm.isfinite():
                        raise TrainingError(
                            f"the gradients of step {done} are not finite (loss {loss.item()}); resume from the state "
                            "saved last with a lower lr, or train with precision fp32"
                        )
                    scaler.step(optimizer)
                    skips.update()
                    # what a step has remembered that overflowed is as bad as its gradients, in every process
                    memory = remembered if norm.isfinite() else None
                    done += 1
                    if average is not None:
                        average.update(done)

                    values, stopping = processes.average(losses, training_step.loss_names, stop.requested)
                    values |= {"loss": sum(values.values()), "grad_norm": norm.item()}
                    progress.step(epoch, lr * lr_factor, values, skips.count)
                    if stopping:
                        save()
                        return TrainResult(done, finished=done == total_steps)
                    if done % settings.save_every == 0 or done % steps_per_epoch == 0:
                        save()
                if done < (epoch + 1) * steps_per_epoch:  # stopped while the next batch was awaited
                    save()
                    return TrainResult(done, finished=False)
                if validation is not None and not stop.done(partial(validation.after, epoch + 1, epochs, done)):
                    return TrainResult(done, finished=False)
        return TrainResult(done, finished=True)


def _check(config: VariantConfig, part: TrainedPart, settings: TrainSettings) -> TrainingConfig:
    """Return the variant's recipe; raise TrainingError for settings that contradict each other."""
    if config.training is None:
        raise TrainingError(f"{config.name} says nothing of its training; add the entry 'training' to its file")
    if settings.precision not in PRECISIONS:
        raise TrainingError(f"precision is {settings.precision!r}; it must be one of {', '.join(PRECISIONS)}")
    if not all(x is None or 0 < x < math.inf for x in (settings.epochs, settings.lr, settings.batch)):
        raise TrainingError("epochs, lr and batch must be positive; leave out those that the variant is to say")
    if settings.resume and (settings.init or settings.init_fitting or settings.pretrained):
        raise TrainingError("resume goes on with the weights that are there; leave out init and pretrained")
    if settings.init and settings.init_fitting:
        raise TrainingError("init sets all weights; leave out init or init_fitting")
    if not settings.resume and (settings.out / STATE).exists():
        raise TrainingError(f"{settings.out} holds a training already; resume it, or choose another directory")
    if part.encoded_once and part.kept and settings.pretrained:
        raise TrainingError(f"{', '.join(part.kept)} of {config.name} stays, too; give whole weights with init")
    recipe = replace(config.training, encoder="frozen") if part.encoded_once else config.training
    if recipe.encoder == "frozen" and not (settings.resume or settings.init or settings.pretrained):
        raise TrainingError("backbone and neck stay as they are; give weights that hold them with init or pretrained")
    return recipe


def find_part(config: VariantConfig, name: str) -> TrainedPart:
    """Return the part of a variant called `name`; raise TrainingError, which lists all, for one that it has not."""
    parts = family_of(config).steps(config)
    if name not in parts:
        raise TrainingError(f"{config.name} has no part {name!r} that can be trained; it has {', '.join(parts)}")
    return parts[name]


def _order(config: VariantConfig, data: TrainingData, slots: int, seed: int) -> Order:
    order = family_of(config).order
    return Shuffled(len(data), slots, seed) if order is None else order(config, data, slots, seed)


def _share(batch: int, processes: int) -> int:
    if batch % processes:
        raise TrainingError(
            f"the variant's batch of {batch} cannot be divided among {processes} processes; "
            "use a number of processes that divides it, or set batch"
        )
    return batch // processes


@contextlib.contextmanager
def _encoded_once(
    data: TrainingData, step: TrainingStep, folder: Path, processes: Processes, stop: _StopOnSignal
) -> Iterator[TrainingData]:
    """Yield the data with features instead of images; the folder that holds them is deleted at the end."""

    def encode(pixels: np.ndarray) -> tuple[Tensor, ...]:
        if stop.requested:
            raise TrainingError("a signal stopped training while images were encoded; start it again in the same way")
        return step.encode_pixels(pixels)

    if not isinstance(data, EncodableData):
        raise TrainingError("the images of this data set cannot be encoded beforehand; train another part")
    try:
        step.eval()  # as in inference
        encoded = data.encoded(encode, folder, processes.rank, processes.count)
        step.train()
        if processes.count > 1:
            dist.barrier()
        yield encoded
        if processes.count > 1:
            dist.barrier()
    finally:  # also after an error: features take gigabytes, and the next start encodes them again
        if processes.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


class _AwaitedNoLonger(BaseException):
    """A signal arrived while waiting for a batch; a BaseException, which no `except Exception` catches."""


class _StopOnSignal:
    """Records the first SIGTERM or SIGINT instead of ending the process; a second one ends it as usual."""

    def __init__(self) -> None:
        self.requested = False
        self._awaiting = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> _StopOnSignal:
        if threading.current_thread() is threading.main_thread():  # others cannot receive signals
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def interrupting(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches until they end or a signal arrives, also while waiting for the next batch."""
        try:
            while True:
                self._awaiting = True
                if self.requested or (batch := next(batches, None)) is None:
                    return
                self._awaiting = False
                yield batch
        except _AwaitedNoLonger:
            return
        finally:
            self._awaiting = False

    def done(self, work: Callable[[], None]) -> bool:
        """Do something that may be left unfinished, and return whether it was finished before a signal arrived.

        In several processes, the one that a signal ends first breaks the connections of the others.
        """
        try:
            self._awaiting = True
            if not self.requested:
                work()
            self._awaiting = False
        except _AwaitedNoLonger:
            return False
        except Exception:
            if not self.requested:
                raise
        finally:
            self._awaiting = False
        return not self.requested

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        if self._awaiting:
            raise _AwaitedNoLonger

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
