"""Grids of runs: what is trained, what is skipped, who does what, and what survives a kill."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignmask import recipes
from alignmask.ablation import runs
from alignmask.ablation.claims import Claims
from alignmask.ablation.grids import COMPARISON, GRIDS
from alignmask.ablation.runs import Cell, cells, state, work
from alignmask.config import Config, DataConfig, LossConfig, ShapesConfig, TrainConfig
from alignmask.config_files import changed_fields
from alignmask.data import resolve_paths
from alignmask.training.signals import Stopped
from alignmask.training.trainer import Trainer
from tests import tiny

PAIR = replace(COMPARISON, variants=COMPARISON.variants[:2])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    root = tmp_path_factory.mktemp("shapes")
    return resolve_paths(
        DataConfig(
            shapes=ShapesConfig(root=root, train_images=8, val_images=3, size=64),
            crop=64, eval_short_side=64, eval_max_side=64, workers=0,
        )
    )  # fmt: skip


def config(shapes: DataConfig, out: Path, **changes: Any) -> Config:
    t = TrainConfig(iterations=2, batch_size=2, warmup=1, clip=1.0, checkpoint_every=1, log_every=1)
    return Config(
        "grid",
        out,
        tiny.model_config(num_classes=6),
        shapes,
        LossConfig(points=32),
        replace(t, **changes),
    )


def statuses(all_cells: list[Cell], claims: Claims) -> dict[str, str]:
    return {cell.name: state(cell, claims).status for cell in all_cells}


# ---- the grids


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("recipe", ["r50_12ep", "mask2former_r50_50ep", "nuclei_small"])
def test_variants_are_named_apart_and_keep_the_rest_of_the_recipe(name: str, recipe: str) -> None:
    base = recipes.RECIPES[recipe]()
    changed = [variant.change(base) for variant in GRIDS[name].variants]
    assert len({variant.name for variant in GRIDS[name].variants}) == len(changed)
    assert len({repr(c) for c in changed}) == len(changed)  # no two variants are the same model
    assert all(len(variant.labels) == len(GRIDS[name].columns) for variant in GRIDS[name].variants)
    assert all(set(variant.paper) <= set(GRIDS[name].numbers) for variant in GRIDS[name].variants)
    for one in changed:
        assert (one.data, one.train) == (base.data, base.train)
        assert one.model.backbone == base.model.backbone


def test_full_is_the_papers_loss_and_qfl_the_small_recipes_own() -> None:
    base = recipes.nuclei_tiles()
    full, qfl = (
        next(v for v in GRIDS["components"].variants if v.name == name) for name in ("full", "qfl")
    )
    assert full.change(base) == replace(base, loss=replace(base.loss, weigh_negatives=True)) != base
    assert qfl.change(base) == base


def test_variants_of_one_name_are_the_same_everywhere() -> None:
    base = recipes.nuclei_small()
    seen: dict[str, Config] = {}
    for grid in GRIDS.values():
        for variant in grid.variants:
            assert seen.setdefault(variant.name, variant.change(base)) == variant.change(base)
    names = {name: {variant.name for variant in grid.variants} for name, grid in GRIDS.items()}
    assert (
        "full"
        in names["table3"]
        & names["components"]
        & names["comparison"]
        & names["beyond"]
        & names["choices"]
    )
    assert "no_aql" in names["table3"] & names["table4"] & names["components"] & names["comparison"]


def test_the_papers_tables() -> None:
    """Every cell differs from the paper's full method in what the table says, and in nothing
    else."""
    base = recipes.r50_12ep()
    found = {
        variant.name: [str(change) for change in changed_fields(base, variant.change(base))]
        for name in ("table3", "table4", "components")
        for variant in GRIDS[name].variants
    }
    queries = "model.aligned_queries"
    assert found["full"] == found["t5_n100"] == []
    assert len(found["no_aql"]) == 1
    assert found["no_aql"][0].startswith(queries)
    assert found["own_attention"] == [
        f"{queries}.share_self_attention: True -> False", f"{queries}.share_masked_attention: True -> False"
    ]  # fmt: skip
    assert found["own_self_attention"] == [f"{queries}.share_self_attention: True -> False"]
    assert found["own_masked_attention"] == [f"{queries}.share_masked_attention: True -> False"]
    assert found["t1_n50"] == [f"{queries}.count: 100 -> 50", f"{queries}.point_sets: 5 -> 1"]
    assert found["t1_n100"] == [f"{queries}.point_sets: 5 -> 1"]
    assert found["t5_n50"] == [f"{queries}.count: 100 -> 50"]
    assert found["softmax"] == ["model.classification: quality_focal -> softmax"]
    assert found["focal"] == ["model.classification: quality_focal -> focal"]
    assert found["qfl"] == ["loss.weigh_negatives: True -> False"]
    baseline = recipes.mask2former_r50_50ep()
    ranked_alike = replace(baseline.model, score=base.model.score)
    assert COMPARISON.variants[0].change(base).model == ranked_alike
    rows = {variant.labels: variant.paper["AP"] for variant in GRIDS["table3"].variants}
    assert rows == {
        ("no aligned query", ""): 39.7, ("", ""): 40.6, ("✓", ""): 40.8, ("", "✓"): 40.8, ("✓", "✓"): 41.4
    }  # fmt: skip


def test_cells_are_ordered_by_seed_and_may_weigh_softmax_otherwise(
    shapes: DataConfig, tmp_path: Path
) -> None:
    found = cells(PAIR, config(shapes, tmp_path), [3, 1], softmax_class_weight=9.0)
    assert [cell.name for cell in found] == [
        "softmax_no_aql-seed3", "no_aql-seed3", "softmax_no_aql-seed1", "no_aql-seed1"
    ]  # fmt: skip
    assert [cell.config.loss.class_weight for cell in found] == [9.0, 2.0, 9.0, 2.0]
    assert [cell.config.train.seed for cell in found] == [3, 3, 1, 1]
    assert found[0].run == tmp_path / "grid" / "softmax_no_aql" / "seed3"
    with pytest.raises(ValueError, match=r"seeds: expected different ones.*\[1, 1\]"):
        cells(PAIR, config(shapes, tmp_path), [1, 1])


# ---- one process


def test_a_grid_is_done_once(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(tmp_path / "grid" / "claims")
    found = cells(PAIR, config(shapes, tmp_path), [0])
    assert set(statuses(found, claims).values()) == {"missing"}
    said: list[str] = []
    work(found, claims, said.append)
    assert set(statuses(found, claims).values()) == {"done"}
    assert said == [f"{cell.name}: {event}" for cell in found for event in ("starts", "done")]
    result = state(found[0], claims).result
    assert result is not None
    assert result["iterations"] == 2
    assert result["evaluation"] == json.loads((found[0].run / "evaluation.json").read_text())

    monkeypatch.setattr(runs, "Trainer", lambda *_: pytest.fail("trained again"))
    work(found, claims, said.append)


def test_other_settings_in_the_same_folder_are_refused(shapes: DataConfig, tmp_path: Path) -> None:
    claims = Claims(tmp_path / "grid" / "claims")
    grid = replace(PAIR, variants=PAIR.variants[:1])
    work(cells(grid, config(shapes, tmp_path), [0]), claims, lambda _: None)
    (other,) = cells(grid, config(shapes, tmp_path, iterations=3), [0])
    with pytest.raises(
        ValueError, match=r"seed0 holds a run with other settings \(train.iterations: 2 -> 3\)"
    ):
        state(other, claims)
    (same,) = cells(grid, config(shapes, tmp_path, checkpoint_every=7, log_every=5), [0])
    assert state(same, claims).status == "done"

    shutil.rmtree(same.run / "checkpoints")  # for want of space
    assert state(same, claims).status == "done"
    with pytest.raises(ValueError, match=r"train.iterations: 2 -> 3"):
        state(other, claims)


def test_the_seeds_of_a_folder(shapes: DataConfig, tmp_path: Path) -> None:
    base = config(shapes, tmp_path)
    assert runs.seeds_in(PAIR, base) == []
    for folder in (
        "no_aql/seed10",
        "no_aql/seed2",
        "softmax_no_aql/seed2",
        "full/seed5",
        "no_aql/seed3.20260101-000000",
    ):
        (tmp_path / "grid" / folder).mkdir(parents=True)
    assert runs.seeds_in(PAIR, base) == [2, 10]


def test_a_broken_cell_is_loud_and_stops_no_other(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(tmp_path / "grid" / "claims")
    found = cells(PAIR, config(shapes, tmp_path), [0])
    step = Trainer.train_step

    def broken(self: Trainer, batches: Any) -> Any:
        if self.config.model.classification == "softmax":
            raise FloatingPointError("loss is not finite at iteration 0")
        return step(self, batches)

    monkeypatch.setattr(Trainer, "train_step", broken)
    said: list[str] = []
    tables: list[int] = []
    work(found, claims, said.append, lambda: tables.append(len(said)))
    assert statuses(found, claims) == {"softmax_no_aql-seed0": "failed", "no_aql-seed0": "done"}
    assert "FAILED" in said[1]
    assert "Traceback" in said[1]
    assert state(found[0], claims).detail.startswith("FloatingPointError: loss is not finite")
    assert len(tables) == 2
    work(found, claims, said.append)  # is not tried again by itself
    assert said[-1] == "no_aql-seed0: done"

    found[0].failure.write_text("")  # a full disk
    assert state(found[0], claims).detail.startswith("no reason was recorded")
    found[0].failure.unlink()
    monkeypatch.undo()
    work(found, claims, said.append)
    assert set(statuses(found, claims).values()) == {"done"}


def test_a_process_that_fails_again_and_again_leaves_the_rest_to_others(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be its machine: no memory left on its GPU, no network."""
    claims = Claims(tmp_path / "grid" / "claims")
    found = cells(PAIR, config(shapes, tmp_path), range(3))
    begun: list[str] = []

    def out_of_memory(run_config: Config) -> Trainer:
        begun.append(run_config.name)
        if len(begun) == 3:
            return Trainer(run_config)
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(runs, "Trainer", out_of_memory)
    said: list[str] = []
    work(found, claims, said.append)
    assert len(begun) == 6  # the third went well, so the next three count anew
    assert "3 runs in a row failed here" in said[-1]
    found = cells(PAIR, config(shapes, tmp_path), range(3, 5))
    work(found, claims, said.append)
    assert list(statuses(found, claims).values()) == ["failed"] * 3 + ["missing"]


def test_a_failure_after_another_process_took_over_marks_nothing(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(tmp_path / "grid" / "claims")
    cell = cells(PAIR, config(shapes, tmp_path), [0])[0]
    monkeypatch.setattr(runs, "Trainer", lambda _: 1 / 0)
    said: list[str] = []
    with claims.take(cell.name) as claim:
        claim.lost = True
        assert not runs._try(cell, claim, said.append)
    assert "not marked as failed" in said[-1]
    assert not cell.failure.exists()


def test_ctrl_c_stops_the_grid_and_the_same_call_goes_on(
    shapes: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims(tmp_path / "grid" / "claims")
    found = cells(PAIR, config(shapes, tmp_path, checkpoint_every=100), [0])
    step = Trainer.train_step

    def interrupted(self: Trainer, batches: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(Stopped, match="after iteration 1"):
            work(found, claims, lambda _: None)
    assert statuses(found, claims) == {"softmax_no_aql-seed0": "stopped", "no_aql-seed0": "missing"}
    assert state(found[0], claims).detail == "iteration 1 of 2"

    evaluate = Trainer.evaluate

    def interrupted_evaluation(self: Trainer) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", interrupted_evaluation)
        with pytest.raises(Stopped, match="between two runs"):
            work(found, claims, lambda _: None)
    assert statuses(found, claims) == {"softmax_no_aql-seed0": "done", "no_aql-seed0": "missing"}
    work(found, claims, lambda _: None)
    assert set(statuses(found, claims).values()) == {"done"}


# ---- several processes


def _worker(
    variants: slice,
    run_config: Config,
    log: Path,
    step_seconds: float,
    wait: bool,
    die_at: tuple[str, int] | None,
) -> None:
    grid = replace(COMPARISON, variants=COMPARISON.variants[variants])
    torch.set_num_threads(1)
    step = Trainer.train_step

    def slow(self: Trainer, batches: Any) -> Any:
        with log.open("a") as file:
            file.write(
                f"{os.getpid()} {self.run_dir.parent.name}-{self.run_dir.name} {self.step}\n"
            )
        if die_at == (self.run_dir.parent.name, self.step):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(step_seconds)
        return step(self, batches)

    Trainer.train_step = slow  # type: ignore[method-assign]
    claims = Claims(run_config.out / run_config.name / "claims")
    work(cells(grid, run_config, [0, 1]), claims, lambda _: None, wait=wait, poll=0.2)


def _start(*arguments: Any) -> multiprocessing.Process:
    process = multiprocessing.get_context("spawn").Process(target=_worker, args=arguments)
    process.start()
    return process


def test_two_processes_share_a_grid_and_one_takes_over_from_the_other_that_is_killed(
    shapes: DataConfig, tmp_path: Path
) -> None:
    """The one that dies has checkpoints of its run; the other goes on from there, and what comes
    out is what one process comes to: bit for bit in one process (tests/training), within rounding
    here, where processes have other numbers of threads."""
    shared, log = config(shapes, tmp_path / "shared", iterations=3), tmp_path / "log"
    victim = _start(slice(1, 2), shared, log, 0.1, False, ("no_aql", 2))
    survivor = _start(slice(1, 2), shared, log, 0.4, True, None)
    victim.join(120)
    survivor.join(120)
    assert victim.exitcode == -signal.SIGKILL
    assert survivor.exitcode == 0

    steps = [line.split() for line in log.read_text().splitlines()]
    died_in = next(cell for pid, cell, step in steps if int(pid) == victim.pid and step == "2")
    by_survivor = [(cell, int(step)) for pid, cell, step in steps if int(pid) == survivor.pid]
    assert (died_in, 2) in by_survivor
    assert (died_in, 0) not in by_survivor  # its checkpoint was used
    (other,) = {f"no_aql-seed{seed}" for seed in (0, 1)} - {died_in}
    # Nothing was done twice.
    assert [step for _, cell, step in steps if cell == other] == ["0", "1", "2"]

    alone = config(shapes, tmp_path / "alone", iterations=3)
    grid = replace(COMPARISON, variants=COMPARISON.variants[1:2])
    work(cells(grid, alone, [0, 1]), Claims(tmp_path / "alone" / "claims"), lambda _: None)
    for seed in (0, 1):
        one, two = (
            json.loads((c.out / "grid/no_aql" / f"seed{seed}" / "result.json").read_text())
            for c in (shared, alone)
        )
        assert numbers(one["evaluation"]) == pytest.approx(
            numbers(two["evaluation"]), rel=1e-3, abs=1e-3
        )


def numbers(value: object) -> list[float]:
    """All numbers in nested dictionaries and lists, in the order of the keys."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def test_processes_on_one_grid_do_every_cell_once(shapes: DataConfig, tmp_path: Path) -> None:
    shared, log = config(shapes, tmp_path), tmp_path / "log"
    processes = [_start(slice(2), shared, log, 0.2, False, None) for _ in range(2)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    steps = [line.split() for line in log.read_text().splitlines()]
    assert len(steps) == len({(cell, step) for _, cell, step in steps}) == 8
    assert len({pid for pid, *_ in steps}) == 2  # both took part
    claims = Claims(tmp_path / "grid" / "claims")
    assert set(statuses(cells(PAIR, shared, [0, 1]), claims).values()) == {"done"}
