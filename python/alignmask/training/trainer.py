"""Training on Accelerate: one process or many, with exact resume.

All randomness of an iteration is seeded from (seed, iteration, process), and the data stream from (seed, position): a run
that was stopped at any checkpoint goes on as if it had not been, without storing generator states. On a CPU in fp32 that is
so bit for bit; on a GPU, sums of atomics differ in their last bits from run to run.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
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
from alignmask.config import Config, changed_fields, without_pretrained
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
from alignmask.loss import Criterion
from alignmask.model import build_model
from alignmask.pretrained.read import Report, initialise
from alignmask.training import precision
from alignmask.training.log import Log, last_evaluation
from alignmask.training.optimizer import build_optimizer, learning_rate_factor
from alignmask.training.signals import Stopped, StopSignals


def train(config: Config, resume: bool = True) -> Path:
    """Train, evaluate, keep the best checkpoint; returns the run's folder.

    An existing run of the same name is continued from its newest checkpoint; with `resume=False` its folder is renamed.
    Raises FloatingPointError for a loss that is not finite, ValueError where config and data disagree, Stopped after Ctrl-C.
    """
    return Trainer(config, resume).run()


class Trainer:
    """One run. Read `run`, then `train_step`."""

    def __init__(self, config: Config, resume: bool = True) -> None:
        t = config.train
        self.config = config = dataclasses.replace(config, data=resolve_paths(config.data))
        self.run_dir = config.out / config.name
        AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
        # Without GPUs Accelerate ignores torchrun's other processes, unless it is told to stay on the CPU.
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
                f"train.batch_size {t.batch_size} is not a multiple of {world} processes x {t.accumulate} accumulation steps"
            )
        self.train_data, self.val_data = train_dataset(config.data), val_dataset(config.data)
        check_classes(config, self.train_data, self.val_data)

        folder = self._start_folder(resume)
        set_seed(t.seed)
        model = build_model(config.model if t.init_from is None else without_pretrained(config).model)
        self.initial_weights: Report | None = None
        if t.init_from is not None and folder is None:
            self.initial_weights = initialise(model, t.init_from)
        self.criterion = Criterion(config.model, config.loss)
        optimizer = build_optimizer(model, t)
        self.ema = ModelEmaV3(model, decay=t.ema, use_warmup=True) if t.ema else None
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # `prepare` makes half precision a part of the model, and so of its evaluation: `train_step` asks for it instead.
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self.ema is not None:
            self.ema.to(self.accelerator.device)
        self.step, self.best, self.elapsed = 0, -math.inf, 0.0
        if folder is not None:
            self._load(folder)
        self.signals = StopSignals()

    # -- the run ---------------------------------------------------------------------------------------------------------

    def run(self) -> Path:
        t, accelerator = self.config.train, self.accelerator
        with self.signals, Log(self.run_dir, self.step, t.iterations, accelerator.is_main_process) as self.log:
            self._say_hello()
            batches, window = self._batches(), _Window()
            saved, evaluated = self.step, last_evaluation(self.run_dir) if accelerator.is_main_process else None
            missed = self.step > 0 and self.step % t.evaluate_every == 0 and evaluated != self.step
            if self.step < t.iterations and self._any(accelerator.is_main_process and missed):
                self.evaluate()  # a kill came between checkpoint and evaluation
                evaluated = self.step
            before = time.monotonic()
            while self.step < t.iterations and not self._out_of_time():
                values = self.train_step(batches)
                self.step += 1
                now = time.monotonic()
                self.elapsed, before = self._common_clock(self.elapsed + now - before), now
                window.add(values)
                self.log.advance(self.step)
                if self.step % t.log_every == 0 or self.step == t.iterations:
                    self.log.metrics(self.step, window.means(lr=self.optimizer.param_groups[-1]["lr"]))
                if self._any(self.signals.requested):
                    self.save()
                    raise Stopped(f"stopped after iteration {self.step}; the same command continues the run")
                if self.step % t.checkpoint_every == 0:
                    self.save()
                    saved = self.step
                if self.step % t.evaluate_every == 0:
                    self.evaluate()
                    evaluated = self.step
                if saved == self.step or evaluated == self.step:
                    before = time.monotonic()  # training time alone counts towards max_minutes
            if saved != self.step or self.step == 0:
                self.save()
            pending = evaluated != self.step or not (self.run_dir / "evaluation.json").exists()
            if self._any(accelerator.is_main_process and pending):
                self.evaluate()
        return self.run_dir

    def train_step(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """One optimizer step: forward, matching and losses, backward, clipping, update, moving average."""
        with self.precision.applied():
            return self._train_step(batches)

    def _train_step(self, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        t, accelerator = self.config.train, self.accelerator
        self.model.train()
        set_seed(_seed(t.seed, self.step, accelerator.process_index))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(t, self.step, self._progress())
        values: dict[str, torch.Tensor] = {}
        for _ in range(t.accumulate):
            batch = next(batches).to(accelerator.device, non_blocking=True)
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    prediction = self.model(batch)
                try:
                    losses = self.criterion(prediction, batch)
                except FloatingPointError as error:  # of the matching costs
                    raise FloatingPointError(self._not_finite(str(error), batch)) from error
                loss = losses.total(self.config.loss)
                if not torch.isfinite(loss):
                    parts = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.summary().items())
                    raise FloatingPointError(self._not_finite(f"loss is not finite ({parts})", batch))
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), t.clip or math.inf)
                    # Such a step would make the weights NaN. (With fp16's loss scaling it is left out, and the scale halved.)
                    if accelerator.scaler is None and not torch.isfinite(norm):
                        raise FloatingPointError(self._not_finite(f"gradient is not finite (norm {norm:g})", batch))
                    values["grad_norm"] = norm
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": loss.detach(), **losses.summary()}.items():
                values[name] = values.get(name, 0) + value / t.accumulate
        if self.ema is not None:
            self.ema.update(accelerator.unwrap_model(self.model), step=self.step)
        return values

    def evaluate(self) -> Evaluation:
        """Evaluate (the moving average, if there is one), write results, keep the checkpoint if it is the best so far."""
        weights = self.ema.module if self.ema is not None else self.accelerator.unwrap_model(self.model)
        self.log.say(f"evaluating on {len(self.val_data)} images ...")
        weights.eval()
        if self.accelerator.num_processes > 1:  # processes agree on parameters, but BatchNorm saw each one's own images
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
            self.best = ap
            checkpoints.save(
                self.run_dir / "best", self.config, weights.state_dict(), {**self._meta(), "metrics": metrics}
            )
        self.best = max(self.best, ap)
        # Last: what stands in the log is not evaluated again by a run that is resumed.
        self.log.evaluation(self.step, result.as_dict(), {f"AP_{mode}": m["AP"] for mode, m in metrics.items()})
        return result

    # -- checkpoints -----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a full checkpoint of this iteration. The main process writes; the others wait."""
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            checkpoints.save(
                self.run_dir / "checkpoints" / f"step_{self.step:07d}",
                self.config,
                self.accelerator.unwrap_model(self.model).state_dict(),
                self._meta(),
                ema=self.ema.module.state_dict() if self.ema is not None else None,
                state={
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": scaler.state_dict() if scaler is not None else None,
                },
            )
            checkpoints.prune(self.run_dir, self.config.train.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _load(self, folder: Path) -> None:
        meta, state = checkpoints.load_meta(folder), checkpoints.load_state(folder)
        self.accelerator.unwrap_model(self.model).load_state_dict(checkpoints.load_weights(folder, ema=False))
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoints.load_weights(folder, ema=True))
        self._load_optimizer(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.elapsed = meta["step"], meta["train_seconds"]
        best = self.run_dir / "best"
        if best.exists():
            found = checkpoints.load_meta(best)["metrics"]
            # By the score of now. A run of a version that did not measure it yet begins anew.
            self.best = found.get(self.config.model.score, {"AP": -math.inf})["AP"]

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Moments and counters are the checkpoint's; learning rates and weight decays are what the config says now."""
        configured = [(group["initial_lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, (rate, decay) in zip(self.optimizer.param_groups, configured, strict=True):
            group["initial_lr"], group["weight_decay"] = rate, decay

    def _meta(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "train_seconds": self.elapsed,
            "class_names": self.train_data.class_names,
            "category_ids": self.train_data.category_ids,
        }

    def _start_folder(self, resume: bool) -> Path | None:
        """The checkpoint to continue from. Nothing of an older run is ever deleted: it is renamed."""
        folder = checkpoints.latest(self.run_dir)
        if folder is not None and resume:
            old = checkpoints.load_config(folder)
            changed = [
                line
                for part in ("model", "loss", "data")
                for line in changed_fields(getattr(old, part), getattr(self.config, part), part)
                if not line.startswith(("data.workers", "model.score:"))  # neither changes what is learned
            ]
            changed += [
                line
                for line in changed_fields(old.train, self.config.train, "train")
                if line.startswith(("train.seed:", "train.init_from:"))
            ]
            if changed:
                raise ValueError(
                    f"run {self.run_dir} exists with another configuration ({'; '.join(changed)}); "
                    "give this run another --name, or --no-resume to start it anew (the old folder is renamed)"
                )
        elif self.run_dir.exists() and self.accelerator.is_main_process:
            self.run_dir.rename(self.run_dir.with_name(f"{self.run_dir.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            checkpoints.write_config(self.run_dir, self.config)
        return folder if resume else None

    # -- small things ----------------------------------------------------------------------------------------------------

    def _batches(self) -> Iterator[Batch]:
        """This process's micro-batches from the current iteration on."""
        t, a = self.config.train, self.accelerator
        stream = TrainingStream(self.train_data, t.iterations * t.batch_size, t.seed)
        micro_batches = [
            range(first := (m * a.num_processes + a.process_index) * self.micro_batch, first + self.micro_batch)
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

    def _progress(self) -> float:
        """Share of the run that is done: by iterations or, if that is further, by the time allowed."""
        t = self.config.train
        share = self.step / t.iterations
        return max(share, self.elapsed / (60 * t.max_minutes)) if t.max_minutes else share

    def _out_of_time(self) -> bool:
        limit = self.config.train.max_minutes
        return limit is not None and self.elapsed >= 60 * limit

    def _common_clock(self, elapsed: float) -> float:
        """The main process's time for all: where time drives the learning rate, all must have the same."""
        if self.config.train.max_minutes is None or self.accelerator.num_processes == 1:
            return elapsed
        clock = torch.tensor([elapsed], dtype=torch.float32, device=self.accelerator.device)
        torch.distributed.broadcast(clock, 0)
        return float(clock)

    def _any(self, flag: bool) -> bool:
        """True on all processes if it is on one."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device)) > 0)

    def _not_finite(self, what: str, batch: Batch) -> str:
        kept = checkpoints.latest(self.run_dir) or "none yet"
        return f"iteration {self.step}: {what}; images {batch.image_ids}; last good checkpoint: {kept}"

    def _say_hello(self) -> None:
        parameters = sum(p.numel() for p in self.model.parameters())
        start = f"continues at iteration {self.step}" if self.step else "starts"
        self.log.say(
            f"run {self.run_dir} {start}; {parameters / 1e6:.1f} M parameters on {self.accelerator.device}, "
            f"{self.precision}"
        )
        self.log.say(f"training data: {self.train_data.describe()}")
        if self.initial_weights is not None:
            self.log.say(f"weights of {self.config.train.init_from}: {self.initial_weights}")


class _Window:
    """Sums of the values since the last line of the log; on the device, so that no step waits for the host."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps, self.since = 0, time.monotonic()

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += 1

    def means(self, **more: float) -> dict[str, float]:
        now = time.monotonic()
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        speed = self.steps / (now - self.since)
        self.sums, self.steps, self.since = {}, 0, now
        return {**means, **more, "it_per_s": speed}


def _seed(*numbers: int) -> int:
    """One seed from several numbers, such that neighbours have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def check_classes(config: Config, data: CocoDataset, val_data: CocoDataset) -> None:
    """Raises ValueError unless training and validation data have the same categories, as many as the model has classes."""
    if data.class_names != val_data.class_names:
        raise ValueError(
            f"{config.data.val_annotations} must have the categories of {config.data.train_annotations}, in the same order "
            f"of their ids: {val_data.class_names} are not {data.class_names}"
        )
    found, expected = len(data.class_names), config.model.num_classes
    if found != expected:
        raise ValueError(
            f"{config.data.train_annotations} has {found} categories, but model.num_classes is {expected}: "
            f"pass --model.num-classes {found}"
        )
