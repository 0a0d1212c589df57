"""Training on Accelerate: one process or many, with exact resume.

All randomness of an iteration is seeded from (seed, iteration, process), and the data stream from
(seed, position). A run that is continued from any checkpoint therefore has the results of one that
was never stopped, without stored generator states. On a CPU in fp32 they agree bit for bit; on a
GPU, atomic additions differ in the last bits from run to run.
"""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from alignmask import checkpoint as checkpoints
from alignmask._printing import counted
from alignmask.config import Config
from alignmask.config_files import without_pretrained
from alignmask.data import (
    Batch,
    CocoDataset,
    TrainingStream,
    collate,
    leave_signals_to_the_main_process,
    resolve_paths,
    train_dataset,
    val_dataset,
)
from alignmask.evaluation.evaluate import Evaluation, evaluate_model
from alignmask.evaluation.results_file import load_ground_truth
from alignmask.loss import Criterion
from alignmask.model import build_model
from alignmask.pretrained.read import LoadReport, initialise
from alignmask.training import precision
from alignmask.training.clock import Clock
from alignmask.training.log import Log, Window, last_evaluation
from alignmask.training.optimizer import build_optimizer, learning_rate_factor
from alignmask.training.run_folder import RunFolder
from alignmask.training.signals import Stopped, StopSignals


def train(config: Config, resume: bool = True) -> Path:
    """Train, evaluate, keep the best checkpoint; returns the run's folder.

    An existing run of the same name is continued from its newest checkpoint; with `resume=False`
    its folder is renamed instead. Raises FloatingPointError if a loss is not finite, ValueError if
    config and data disagree, Stopped after Ctrl-C.
    """
    return Trainer(config, resume).run()


class Trainer:
    """One run. Read `run`, then `iterations` and `train_step`."""

    def __init__(self, config: Config, resume: bool = True) -> None:
        t = config.train
        self.config = config = dataclasses.replace(config, data=resolve_paths(config.data))
        self.folder = RunFolder(config)
        # An earlier run of this process may have had another precision.
        AcceleratorState._reset_state()
        # Without GPUs, Accelerate ignores torchrun's other processes unless it is asked for the CPU
        # explicitly.
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self.precision = precision.resolve(t.precision, precision.capability_at_hand())
        self.accelerator = Accelerator(
            cpu=several and not torch.cuda.is_available(),
            mixed_precision=self.precision.autocast,
            gradient_accumulation_steps=t.accumulate,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        world = self.accelerator.num_processes
        self.micro_batch, rest = divmod(t.batch_size, world * t.accumulate)
        if rest or not self.micro_batch:
            raise ValueError(
                f"train.batch_size {t.batch_size} is not a multiple of {world} processes x "
                f"{t.accumulate} accumulation steps"
            )
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
        self.criterion = Criterion(config.model, config.loss)
        optimizer = build_optimizer(model, t)
        self.ema = ModelEmaV3(model, decay=t.ema, use_warmup=True) if t.ema else None
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # `prepare` would make half precision a part of the model, and so of its evaluation.
        # `train_step` uses autocast instead.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self.ema is not None:
            self.ema.to(self.accelerator.device)

        self.step = 0
        """Number of finished iterations."""
        self.best = -math.inf
        """Highest AP so far."""
        self.last_saved: int | None = None
        self.last_evaluated: int | None = None
        self.clock = Clock(t.max_minutes, self.accelerator)
        self.signals = StopSignals()
        if checkpoint is not None:
            self.load(checkpoint)

    @property
    def run_dir(self) -> Path:
        return self.folder.path

    @property
    def elapsed(self) -> float:
        """Seconds of training, of all processes that have worked on this run one after another."""
        return self.clock.elapsed

    # -- the run
    # ----------------------------------------------------------------------------------------------

    def run(self) -> Path:
        t, main = self.config.train, self.accelerator.is_main_process
        with self.signals, Log(self.run_dir, self.step, t.iterations, main) as self.log:
            self._say_hello()
            self._make_up_for_a_missed_evaluation()
            window = Window()
            for values in self.iterations():
                window.add(values)
                self.log.advance(self.step)
                if self.step % t.log_every == 0 or self.step == t.iterations:
                    self.log.metrics(
                        self.step, window.means(lr=self.optimizer.param_groups[-1]["lr"])
                    )
                if self._any(self.signals.requested):
                    self.save()
                    raise Stopped(
                        f"stopped after iteration {self.step}; the same command continues the run"
                    )
                if self.step % t.checkpoint_every == 0:
                    self.save()
                if self.step % t.evaluate_every == 0:
                    self.evaluate()
            if self.last_saved != self.step:
                self.save()
            pending = self.last_evaluated != self.step or not self.folder.is_evaluated()
            if self._any(main and pending):
                self.evaluate()
        return self.run_dir

    def iterations(self) -> Iterator[dict[str, torch.Tensor]]:
        """Train to the last iteration or to the time limit. After each iteration, yields its values
        for the log."""
        batches = self.batches()
        while not self._is_finished():
            with self.clock.counting():
                values = self.train_step(batches)
                self.step += 1
            yield values

    def _is_finished(self) -> bool:
        return self.step >= self.config.train.iterations or self.clock.share >= 1

    def train_step(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """One optimizer step: forward, matching and losses, backward, clipping, update, moving
        average."""
        t, accelerator = self.config.train, self.accelerator
        self.model.train()
        set_seed(seed_of(t.seed, self.step, accelerator.process_index))
        progress = max(self.step / t.iterations, self.clock.share)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(t, self.step, progress)
        values: dict[str, torch.Tensor] = {}
        with self.precision.applied():
            for _ in range(t.accumulate):
                batch = next(batches).to(accelerator.device, non_blocking=True)
                with accelerator.accumulate(self.model):
                    losses = self._losses(batch)
                    accelerator.backward(losses["loss"])
                    if accelerator.sync_gradients:
                        values["grad_norm"] = self._clip(batch)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                for name, value in losses.items():
                    values[name] = values.get(name, 0) + value.detach() / t.accumulate
        if self.ema is not None:
            self.ema.update(accelerator.unwrap_model(self.model), step=self.step)
        return values

    def _losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The loss to minimise and, for the log, its parts. Raises FloatingPointError if it is not
        finite."""
        with self.accelerator.autocast():
            prediction = self.model(batch)
        try:
            losses = self.criterion(prediction, batch)
        except FloatingPointError as error:  # of the matching costs
            raise FloatingPointError(self._not_finite(str(error), batch)) from error
        loss, parts = losses.total(self.config.loss), losses.summary()
        if not torch.isfinite(loss):
            listed = ", ".join(f"{name} {value.item():.4g}" for name, value in parts.items())
            raise FloatingPointError(self._not_finite(f"loss is not finite ({listed})", batch))
        return {"loss": loss, **parts}

    def _clip(self, batch: Batch) -> torch.Tensor:
        """Limits the gradient's norm, which is returned as it was. Raises FloatingPointError if it
        is not finite."""
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.config.train.clip or math.inf
        )
        # Such a step would make the weights NaN. (fp16's loss scaling skips the step instead, and
        # halves the scale.)
        if self.accelerator.scaler is None and not torch.isfinite(norm):
            raise FloatingPointError(
                self._not_finite(f"gradient is not finite (norm {norm:g})", batch)
            )
        return norm

    # -- evaluation
    # ----------------------------------------------------------------------------------------------

    def evaluate(self) -> Evaluation:
        """Evaluate (the moving average, if there is one), write results, keep the checkpoint if it
        is the best so far."""
        weights = (
            self.ema.module if self.ema is not None else self.accelerator.unwrap_model(self.model)
        )
        self.log.say(f"evaluating on {counted(len(self.val_data), 'image')} ...")
        weights.eval()
        if (
            self.accelerator.num_processes > 1
        ):  # parameters are equal, but BatchNorm's statistics are of each process's own images
            for buffer in weights.buffers():
                torch.distributed.broadcast(buffer, 0)
        result = evaluate_model(
            weights, self.val_data, device=self.accelerator.device, batch_size=self.micro_batch,
            workers=self.config.data.workers, out=self.run_dir,
        )  # fmt: skip
        metrics = {mode: m.as_dict() for mode, m in result.metrics.items()}
        ap = metrics[self.config.model.score]["AP"]
        self.log.say(result.table())
        if ap > self.best and self.accelerator.is_main_process:
            self.folder.save_best(self._meta(), weights.state_dict(), metrics)
        self.best = max(self.best, ap)
        # This comes last: a resumed run does not repeat an evaluation that is in the log.
        self.log.evaluation(
            self.step, result.as_dict(), {f"AP_{mode}": m["AP"] for mode, m in metrics.items()}
        )
        self.last_evaluated = self.step
        return result

    def _make_up_for_a_missed_evaluation(self) -> None:
        """A run may have been killed between a checkpoint and the evaluation of the same
        iteration."""
        t, main = self.config.train, self.accelerator.is_main_process
        self.last_evaluated = last_evaluation(self.run_dir) if main else None
        missed = (
            self.step > 0 and self.step % t.evaluate_every == 0 and self.last_evaluated != self.step
        )
        if self.step < t.iterations and self._any(main and missed):
            self.evaluate()

    # -- checkpoints
    # ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a full checkpoint of this iteration. The main process writes; the others wait."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            self.folder.save(
                self._meta(),
                self.accelerator.unwrap_model(self.model).state_dict(),
                ema=self.ema.module.state_dict() if self.ema is not None else None,
                state={
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler is not None else None,
                },
            )
        self.last_saved = self.step
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path) -> None:
        """Continue from a full checkpoint."""
        meta, state = checkpoints.load_meta(checkpoint), checkpoints.load_state(checkpoint)
        self.accelerator.unwrap_model(self.model).load_state_dict(
            checkpoints.load_weights(checkpoint, ema=False)
        )
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoints.load_weights(checkpoint, ema=True))
        self._load_optimizer(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = self.last_saved = meta["step"]
        self.clock.elapsed = meta["train_seconds"]
        self.best = self.folder.best_ap(self.config.model.score)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Moments and counters come from the checkpoint; learning rates and weight decays are those
        of the configuration."""
        configured = [
            (group["initial_lr"], group["weight_decay"]) for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state)
        for group, (rate, decay) in zip(self.optimizer.param_groups, configured, strict=True):
            group["initial_lr"], group["weight_decay"] = rate, decay

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
        stream = TrainingStream(self.train_data, t.iterations * t.batch_size, t.seed)
        micro_batches = [
            range(
                first := (m * a.num_processes + a.process_index) * self.micro_batch,
                first + self.micro_batch,
            )
            for m in range(self.step * t.accumulate, t.iterations * t.accumulate)
        ]
        workers = self.config.data.workers
        return iter(
            DataLoader(
                stream,
                batch_sampler=micro_batches,  # type: ignore[arg-type]
                collate_fn=collate,
                num_workers=workers,
                worker_init_fn=leave_signals_to_the_main_process,
                pin_memory=a.device.type == "cuda",
                persistent_workers=workers > 0,
            )
        )

    def _any(self, flag: bool) -> bool:
        """True on all processes if it is on one."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(
            self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)) > 0
        )

    def _not_finite(self, what: str, batch: Batch) -> str:
        kept = self.folder.latest() or "none yet"
        return (
            f"iteration {self.step}: {what}; images {batch.image_ids}; last good checkpoint: {kept}"
        )

    def _say_hello(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        start = f"continues at iteration {self.step}" if self.step else "starts"
        if self.step and self._is_finished():
            limit = "iterations" if self.step >= self.config.train.iterations else "max-minutes"
            start = (
                f"is finished: {counted(self.step, 'iteration')}; raise --train.{limit} to go on"
            )
        self.log.say(
            f"run {self.run_dir} {start}; {parameters / 1e6:.1f} M parameters on "
            f"{self.accelerator.device}, "
            f"{self.precision}"
        )
        self.log.say(f"training data: {self.train_data.describe()}")
        self.log.say(f"validation data: {self.val_data.describe()}")
        queries = self.config.model.query_decoder.queries
        instances = self.train_data.instances_per_image
        if crowded := int((instances > queries).sum()):
            self.log.say(
                f"{crowded} of {len(instances)} training images have more instances (up to "
                f"{int(instances.max())}) than the model has queries ({queries}): it cannot find "
                "all of them. Raise --model.query-decoder.queries, or cut the images into tiles"
            )
        if self.initial_weights is not None:
            self.log.say(f"weights of {self.config.train.init_from}: {self.initial_weights}")


def seed_of(*numbers: int) -> int:
    """One seed from several numbers. Seeds of neighbouring numbers are unrelated."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def check_data(config: Config, data: CocoDataset, val_data: CocoDataset) -> None:
    """Raises ValueError for everything that training or its evaluation would stumble over later:
    nothing to train on, categories that differ, as many of them as the model has no classes for,
    faults of the validation annotations beyond `val_limit`."""
    data.require_instances()
    if not val_data.instances_per_image.any():
        warnings.warn(
            f"{val_data.annotations}: none of the {len(val_data)} validation images has an "
            "instance: there will be no AP, and no best checkpoint",
            stacklevel=2,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the data set has said the same
        load_ground_truth(val_data.annotations)
    if data.class_names != val_data.class_names:
        raise ValueError(
            f"{config.data.val_annotations} must have the categories of "
            f"{config.data.train_annotations}, in the same order "
            f"of their ids: {val_data.class_names} are not {data.class_names}"
        )
    found, expected = len(data.class_names), config.model.num_classes
    if found != expected:
        raise ValueError(
            f"{config.data.train_annotations} has {counted(found, 'category', 'categories')}, but model.num_classes is "
            f"{expected}: "
            f"pass --model.num-classes {found}"
        )
