"""Class heads between data sets: rows go from class to class by name, and the report says which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from alignmask import checkpoint
from alignmask.config import Config
from alignmask.data.coco_classes import COCO_CLASSES
from alignmask.model import AlignMask
from alignmask.pretrained.read import LoadReport, initialise, match_classes
from alignmask.pretrained.write import write_mask2former
from alignmask.safe_load import CheckpointError
from tests import tiny
from tests.model import peers
from tests.pretrained.heads import head, saved, with_rows


def fitted(
    source: list[str], names: list[str], folder: Path, softmax: bool = False
) -> tuple[Tensor, Tensor, LoadReport]:
    """The head before and after, and the report."""
    path = saved(with_rows(len(source), softmax), source, folder / "source")
    kind = "softmax" if softmax else "focal"
    model = tiny.model(1, num_classes=len(names), classification=kind, aligned_queries=None)
    before = head(model)
    report = initialise(model, path, names)
    assert report.not_loaded == report.unused == []
    return before, head(model), report


@pytest.mark.parametrize("softmax", [False, True])
def test_rows_follow_the_names(tmp_path: Path, softmax: bool) -> None:
    before, after, report = fitted(["cat", "dog", "emu"], ["emu", "fox", "Cat "], tmp_path, softmax)
    assert (after[0] == 3).all()  # emu
    assert torch.equal(after[1], before[1])  # fox
    assert (after[2] == 1).all()  # cat
    assert len(after) == 3 + softmax
    if softmax:
        assert (after[3] == -1).all()  # no object
    assert str(report) == (
        "classes taken by name: 2 (emu, Cat ); classes that start anew: 1 (fox); "
        "classes of the file that are not used: 1 (dog)"
    )


@pytest.mark.parametrize("names", ["b", "xbacy", "abcx", "ab"])
def test_fewer_and_more_classes(tmp_path: Path, names: str) -> None:
    before, after, _ = fitted(list("abc"), list(names), tmp_path, softmax=True)
    for row, name in enumerate(names):
        expected = before[row] if name in "xy" else torch.full((33,), 1.0 + "abc".index(name))
        assert torch.equal(after[row], expected)
    assert (after[-1] == -1).all()


def test_the_same_classes_load_fully(tmp_path: Path) -> None:
    names = ["a", "A", "b", "a"]
    _, after, report = fitted(names, names, tmp_path)
    assert after[:, 0].tolist() == [1, 2, 3, 4]
    assert str(report) == "everything was loaded and used"
    _, after, report = fitted(["a", "b"], ["b", "a"], tmp_path / "swapped")
    assert after[:, 0].tolist() == [2, 1]
    assert str(report) == "classes taken by name: 2 (b, a)"


def test_no_class_in_common(tmp_path: Path) -> None:
    before, after, report = fitted(["a", "b"], ["c", "d"], tmp_path)
    assert torch.equal(before, after)
    assert "classes that start anew: 2 (c, d); classes of the file" in str(report)


def test_heads_of_different_kinds_are_never_mixed(tmp_path: Path) -> None:
    for softmax in (False, True):
        path = saved(with_rows(2, softmax), ["a", "b"], tmp_path / str(softmax))
        model = with_rows(2, not softmax, seed=1)
        with torch.no_grad():
            model.query_decoder.heads.classify.bias.fill_(7)
        before = head(model)
        report = initialise(model, path, ["a", "b"])
        assert torch.equal(head(model), before)
        names = [f"query_decoder.heads.classify.{part}" for part in ("bias", "weight")]
        assert (report.not_loaded, sorted(report.unused), report.classes) == (names, names, None)


def test_exact_names_go_first() -> None:
    found = match_classes(["Dog", "dog", "DOG"], ["dog ", "dog", "cat", "Dog"])
    assert found.rows == {0: 3, 1: 1, 2: 0}
    assert (found.taken, found.new, found.unused) == (["Dog", "dog", "DOG"], [], ["cat"])
    assert match_classes(["a", "a", "a"], ["a", "x", "a"]).rows == {0: 0, 1: 2}


def test_long_lists_are_shortened() -> None:
    text = str(match_classes([f"n{i}" for i in range(12)], [f"n{i}" for i in range(10)]))
    first = ", ".join(f"n{i}" for i in range(10))
    assert text == f"classes taken by name: 10 ({first}); classes that start anew: 2 (n10, n11)"
    assert str(match_classes([f"n{i}" for i in range(11)], [])).endswith(f"11 ({first}, ...)")


def test_a_file_of_80_classes_without_names_has_cocos(tmp_path: Path) -> None:
    from alignmask.loading import from_huggingface

    baseline = from_huggingface(peers.mask2former(peers.BACKBONES["swin"])).model.config
    source = AlignMask(replace(baseline, num_classes=80))
    write_mask2former(source.state_dict(), Config(model=source.config), tmp_path / "coco.pth")
    model = AlignMask(replace(baseline, num_classes=3))
    before = head(model)
    report = initialise(model, tmp_path / "coco.pth", ["Toothbrush", "nucleus", "person"])
    assert report.classes is not None
    assert (report.classes.taken, report.classes.new) == (["Toothbrush", "person"], ["nucleus"])
    assert len(report.classes.unused) == len(COCO_CLASSES) - 2
    expected = head(source)[[79, 0, 0, 80]]
    expected[1] = before[1]
    assert torch.equal(head(model), expected)


def test_another_width_is_still_refused(tmp_path: Path) -> None:
    path = saved(with_rows(2), ["a", "b"], tmp_path / "source")
    weights = checkpoint.load_weights(path)
    weights["query_decoder.heads.classify.weight"] = torch.zeros(2, 31)
    meta = checkpoint.load_meta(path)
    checkpoint.save(path, checkpoint.load_config(path), weights, meta)
    with pytest.raises(CheckpointError, match=r"classify\.weight \(2, 31\), expected \(1, 32\)"):
        initialise(with_rows(1), path, ["b"])
