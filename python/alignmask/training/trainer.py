"""Training on Accelerate: one process or many, with exact resume.

All randomness of an iteration is seeded from (seed, iteration, process), and the data stream from
(seed, position). A run that is continued from any checkpoint therefore has the results of one that
was never stopped, without stored generator states. On a CPU in fp32 they agree bit for bit; on a
GPU, atomic additions differ in the last bits from run to run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3

from alignmask import checkpoint as checkpoints
from alignmask._printing import counted
from alignmask.config import Config
from alignmask.config_files import without_pretrained
from alignmask.data import Batch, resolve_paths, train_dataset, val_dataset
from alignmask.evaluation.evaluate import Evaluation, evaluate_model
from alignmask.loss import Criterion
from alignmask.model import AlignMask, build_model
from alignmask.model.tiles import tiles_for
from alignmask.pretrained.read import LoadReport, initialise
from alignmask.training import graphs, non_finite, precision, processes, sharding
from alignmask.training.accumulation import Part, parts_of_step
from alignmask.training.batches import MicroBatches, seed_of, training_batches
from alignmask.training.best import Judge
from alignmask.training.callbacks import Callback
from alignmask.training.checks import check_data, check_settings, describe_data
from alignmask.training.clock import Clock
from alignmask.training.log import METRICS, Log, last_evaluation
from alignmask.training.optimizer import build_optimizer, describe_rates, learning_rate_factor
from alignmask.training.run_folder import RunFolder
from alignmask.training.signals import Stopped, StopSignals
from alignmask.training.trackers import Trackers


def train(config: Config, resume: bool = True, callbacks: Sequence[Callback] = ()) -> Path:
    """Train, evaluate, keep the best checkpoint; returns the run's folder.

    An existing run of the same name is continued from its newest checkpoint; with `resume=False`
    its folder is renamed instead. Raises FloatingPointError if a loss is not finite, ValueError if
    config and data disagree, Stopped after Ctrl-C.
    """
    return Trainer(config, resume, callbacks).run()


class Trainer:
    """One run. Read `run`, then `iterations` and `train_step`."""

    def __init__(
        self, config: Config, resume: bool = True, callbacks: Sequence[Callback] = ()
    ) -> None:
        t = config.train
        check_settings(t)
        self.callbacks = callbacks
        self.listeners: list[Callback] = []
        """The log and the callbacks, while the run goes on."""
        self.config = config = dataclasses.replace(config, data=resolve_paths(config.data))
        self.folder = RunFolder(config)
        self.precision = precision.resolve(t.precision, precision.capability_at_hand())
        self.accelerator = processes.join(t, self.precision)
        graphs.check(t, self.accelerator.device, self.accelerator.num_processes)
        self.micro_batch = processes.images_together(t, self.accelerator.num_processes)
        self.train_data, self.val_data = (
            train_dataset(config.data),
            val_dataset(config.data, masks=False),
        )
        check_data(config, self.train_data, self.val_data)

        checkpoint = self.folder.begin(resume, self.accelerator, self._classes())
        set_seed(t.seed)
        model = build_model(
            config.model if t.init_from is None else without_pretrained(config).model
        )
        self.initial_weights: LoadReport | None = None
        if t.init_from is not None and checkpoint is None:
            self.initial_weights = initialise(model, t.init_from, self.train_data.class_names)
        model.backbone.freeze(t.freeze_backbone)
        self.criterion = Criterion(config.model, config.loss)
        self.ema = None
        if t.ema:
            self.ema = ModelEmaV3(model, decay=t.ema, use_warmup=True, foreach=not t.shard)
            self.ema.to(self.accelerator.device)
        self._prepare(model)
        self.forward = graphs.GraphedForward(self.plain_model) if t.cuda_graphs else self.model

        self.step = 0
        """Number of finished iterations."""
        self.judge = Judge(config)
        self.exhausted = False
        """Whether `train.patience` is at an end."""
        self.last_saved: int | None = None
        self.last_evaluated: int | None = None
        self.clock = Clock(t.max_minutes, self.accelerator)
        self.signals = StopSignals()
        if checkpoint is not None:
            self.load(checkpoint)

    def _prepare(self, model: AlignMask) -> None:
        """The model and its optimizer on this process's device, as one of several."""
        t, accelerator = self.config.train, self.accelerator
        self.model: torch.nn.Module
        if t.shard:
            self.model = model.to(accelerator.device)
            sharding.share_out(model, accelerator.device)
            if self.ema is not None:
                sharding.share_out(self.ema.module, accelerator.device)
            self.optimizer = accelerator.prepare(build_optimizer(model, t))
            return
        self.model, self.optimizer = accelerator.prepare(model, build_optimizer(model, t))
        # `prepare` would make half precision a part of the model, and so of its evaluation.
        # `train_step` uses autocast instead.
        accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    @property
    def plain_model(self) -> AlignMask:
        """The model that DDP wraps."""
        model: AlignMask = self.accelerator.unwrap_model(self.model)
        return model

    @property
    def run_dir(self) -> Path:
        return self.folder.path

    @property
    def elapsed(self) -> float:
        """Seconds of training, of all processes that have worked on this run one after another."""
        return self.clock.elapsed

    @property
    def remaining(self) -> float:
        """Seconds of training that `train.max_minutes` leaves."""
        return math.inf if self.clock.limit is None else self.clock.limit - self.elapsed

    # -- the run
    # ----------------------------------------------------------------------------------------------

    def run(self) -> Path:
        main = self.accelerator.is_main_process
        trackers = (
            Trackers(self.accelerator, self.config, self.run_dir, self.step) if main else None
        )
        self.log = Log(self.run_dir, self.step, self.config.train.iterations, main, trackers)
        with self.signals, self.log, self._listening():
            self._recall_evaluations()
            for text in self.introduction():
                self.say(text)
            if not (self.step and self.is_finished):
                self.folder.note_start(self.step, self.accelerator)
            self._make_up_for_a_missed_evaluation()
            self._train()
            if self.exhausted:
                self.say(f"iteration {self.step} is the last: {self.judge}")
            if self.last_saved != self.step:
                self.save()
            pending = self.last_evaluated != self.step or not self.folder.is_evaluated()
            if self._any(main and pending):
                self.evaluate()
        return self.run_dir

    def _train(self) -> None:
        """All iterations, with the checkpoints and evaluations between them."""
        t = self.config.train
        for values in self.iterations():
            self._tell("on_step", self.step, values)
            if self._any(self.signals.requested):
                self.save()
                raise Stopped(
                    f"stopped after iteration {self.step}; the same command continues the run"
                )
            if self.step % t.checkpoint_every == 0:
                self.save()
            if self.step % t.evaluate_every == 0:
                self.evaluate()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """The log and the callbacks hear of what happens in this context, of its end in any
        case."""
        self.listeners = [self.log, *self.callbacks]
        try:
            self._tell("on_start")
            yield
        finally:
            listeners, self.listeners = self.listeners, []
            for listener in reversed(listeners):
                listener.on_end(self)

    def say(self, text: Any) -> None:
        """Print a line above the progress bar, on the main process."""
        self.log.say(text)

    def picture(self, tag: str, file: Path) -> None:
        """Hand a PNG to the trackers, on the main process."""
        self.log.picture(tag, file, self.step)

    def _tell(self, event: str, *what: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event)(self, *what)

    def iterations(self) -> Iterator[dict[str, torch.Tensor]]:
        """Train to the last iteration or to the time limit. After each iteration, yields its values
        for the log."""
        batches = self.batches()
        while not self.is_finished:
            with self.clock.counting():
                values = self.train_step(batches)
                self.step += 1
            yield values

    @property
    def is_finished(self) -> bool:
        over = self.step >= self.config.train.iterations or self.clock.share >= 1
        return over or self.exhausted

    def train_step(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """One optimizer step: forward, matching and losses, backward, clipping, update, moving
        average."""
        t, accelerator = self.config.train, self.accelerator
        self.model.train()
        set_seed(seed_of(t.seed, self.step, accelerator.process_index))
        progress = max(self.step / t.iterations, self.clock.share)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(t, self.step, progress)
        losses: list[dict[str, torch.Tensor]] = []
        taken = list(islice(batches, t.accumulate))
        on_device = [batch.to(accelerator.device, non_blocking=True) for batch in taken]
        number = 0
        try:
            with self.precision.applied():
                parts = parts_of_step(on_device, self.plain_model, self.criterion)
                for number, part in enumerate(parts):  # noqa: B007
                    with accelerator.accumulate(self.model):
                        found = self._losses(part)
                        accelerator.backward(found["loss"])
                        losses.append({name: value.detach() for name, value in found.items()})
                        if accelerator.sync_gradients:
                            norm = self._clip(losses)
                        self.optimizer.step()
                        self.optimizer.zero_grad()
        except FloatingPointError as error:
            if isinstance(error, non_finite.NotFinite):
                number = error.number
            raise FloatingPointError(self._not_finite(str(error), taken, number)) from error
        if self.ema is not None:
            self.ema.update(self.plain_model, step=self.step)
        values = {"grad_norm": norm}
        for part_losses in losses:
            for name, value in part_losses.items():
                values[name] = values.get(name, 0) + value / t.accumulate
        return values

    def _losses(self, part: Part) -> dict[str, torch.Tensor]:
        """The loss to minimise and, for the log, its parts."""
        with self.accelerator.autocast():
            prediction = self.forward(part.batch, part.points_BTK2)
        losses = self.criterion(prediction, part.batch, part.normalisers)
        return {"loss": losses.total(self.config.loss), **losses.summary()}

    def _clip(self, losses: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """Limits the gradient's norm, which is returned as it was. Raises NotFinite if it or a loss
        is not finite."""
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.config.train.clip or math.inf
        )
        norm = sharding.whole(norm)
        # Such a step would make the weights NaN. (fp16's loss scaling skips the step instead, and
        # halves the scale.) Here the host waits for the device; the other time is in the matching.
        non_finite.check(losses, norm if self.accelerator.scaler is None else None)
        return norm

    # -- evaluation
    # ----------------------------------------------------------------------------------------------

    def evaluate(self) -> Evaluation:
        """Evaluate (the moving average, if there is one), write results, keep the checkpoint if it
        is the best so far."""
        weights = self.ema.module if self.ema is not None else self.plain_model
        self.say(f"evaluating on {counted(len(self.val_data), 'image')} ...")
        processes.share_buffers(self.accelerator, weights)
        if self.config.train.shard:
            weights = sharding.whole_model(weights, self.config).to(self.accelerator.device)
        weights.eval()
        result = evaluate_model(
            weights, self.val_data, device=self.accelerator.device, batch_size=self.micro_batch,
            workers=self.config.data.workers, out=self.run_dir, tiles=tiles_for(self.config.data),
        )  # fmt: skip
        modes = result.as_dict()["modes"]
        self.say(result.table())
        better = self.judge.is_better(modes) or not self.folder.best.exists()
        if better and self.accelerator.is_main_process:
            self.folder.save_best(self._meta(), weights.state_dict(), modes)
        self._lose_patience()
        # This comes last: a resumed run does not repeat an evaluation that is in the log.
        self._tell("on_evaluation", self.step, result)
        self.last_evaluated = self.step
        return result

    def _recall_evaluations(self) -> None:
        """What the log of a continued run says of its evaluations. Only the main process has to
        have the folder."""
        if self.accelerator.is_main_process:
            self.last_evaluated = last_evaluation(self.run_dir)
            self.judge.recall(self.run_dir / METRICS)
        self._lose_patience()

    def _lose_patience(self) -> None:
        main = self.accelerator.is_main_process
        self.exhausted = self._any(main and self.judge.has_seen_enough)

    def _make_up_for_a_missed_evaluation(self) -> None:
        """A run may have been killed between a checkpoint and the evaluation of the same
        iteration."""
        t, main = self.config.train, self.accelerator.is_main_process
        missed = (
            self.step > 0 and self.step % t.evaluate_every == 0 and self.last_evaluated != self.step
        )
        if self.step < t.iterations and self._any(main and missed):
            self.evaluate()

    # -- checkpoints
    # ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a full checkpoint of this iteration. The main process writes; the others wait."""
        weights = sharding.whole_weights(self.plain_model)
        ema = sharding.whole_weights(self.ema.module) if self.ema is not None else None
        state = self._state()
        if self.accelerator.is_main_process:
            self.folder.save(self._meta(), weights, ema=ema, state=state)
        self.last_saved = self.step
        self.accelerator.wait_for_everyone()
        self._tell("on_checkpoint", self.step, self.folder.checkpoint(self.step))

    def load(self, checkpoint: Path) -> None:
        """Continue from a full checkpoint."""
        meta, state = checkpoints.load_meta(checkpoint), checkpoints.load_state(checkpoint)
        sharding.load_weights(self.plain_model, checkpoints.load_weights(checkpoint, ema=False))
        if self.ema is not None:
            sharding.load_weights(self.ema.module, checkpoints.load_weights(checkpoint, ema=True))
        self._load_optimizer(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = self.last_saved = meta["step"]
        self.clock.elapsed = meta["train_seconds"]
        self.judge.best = self.folder.best_value()

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Moments and counters come from the checkpoint; learning rates and weight decays are those
        of the configuration."""
        configured = [
            (group["initial_lr"], group["weight_decay"]) for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(sharding.state_parts(self.optimizer, state))
        for group, (rate, decay) in zip(self.optimizer.param_groups, configured, strict=True):
            group["initial_lr"], group["weight_decay"] = rate, decay

    def _state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "optimizer": sharding.whole_state(self.optimizer),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def _meta(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "train_seconds": self.elapsed,
            **self._classes(),
        }

    def _classes(self) -> dict[str, list[Any]]:
        data = self.train_data
        return {"class_names": data.class_names, "category_ids": data.category_ids}

    # -- small things
    # ----------------------------------------------------------------------------------------------

    def batches(self) -> Iterator[Batch]:
        """This process's micro-batches from the current iteration on."""
        t, a = self.config.train, self.accelerator
        positions = MicroBatches(
            self.step * t.accumulate, t.iterations * t.accumulate, self.micro_batch,
            a.process_index, a.num_processes,
        )  # fmt: skip
        return training_batches(
            self.train_data, t, positions, self.config.data.workers, a.device.type == "cuda"
        )

    def _any(self, flag: bool) -> bool:
        return processes.on_any(self.accelerator, flag)

    def _not_finite(self, what: str, batches: list[Batch], number: int) -> str:
        """What ends the run in micro-batch `number`, in words. The step is kept, to be repeated."""
        good = self.folder.latest() or "none yet"
        process, several = self.accelerator.process_index, self.accelerator.num_processes
        folder = non_finite.free_folder(self.run_dir, self.step, process, several)
        meta = {
            **self._meta(),
            "error": what,
            "seed": seed_of(self.config.train.seed, self.step, process),
        }
        # Of a sharded model, this process has a part, and others may not come to give theirs.
        kept = "the step is not kept: no process has the whole weights (train.shard)"
        if not self.config.train.shard:
            try:
                weights = self.plain_model.state_dict()
                non_finite.write(folder, self.config, weights, self._state(), meta, batches)
                kept = f"the step is kept: `alignmask replay {folder}` repeats it"
            except OSError as error:
                kept = f"the step could not be kept: {error}"
        return (
            f"iteration {self.step}: {what}; images {batches[number].image_ids}; last good checkpoint: "
            f"{good}; {kept}"
        )

    def introduction(self) -> Iterator[str]:
        """What the log says at the start of a run."""
        config = self.config
        parameters = sum(p.numel() for p in self.model.parameters())
        start = f"continues at iteration {self.step}" if self.step else "starts"
        if self.step and self.is_finished:
            limit = "iterations" if self.step >= config.train.iterations else "max-minutes"
            limit = "patience" if self.exhausted else limit
            start = (
                f"is finished: {counted(self.step, 'iteration')}; raise --train.{limit} to go on"
            )
        elif self.step and (changed := self.folder.changed_settings()):
            start += f", with other settings: {'; '.join(changed)}"
        yield (
            f"run {self.run_dir} {start}; {parameters / 1e6:.1f} M parameters on "
            f"{self.accelerator.device}, {self.precision}"
        )
        yield from describe_data(config, self.train_data, self.val_data)
        yield from describe_rates(config.train)
        if self.initial_weights is not None:
            yield f"weights of {config.train.init_from}: {self.initial_weights}"
