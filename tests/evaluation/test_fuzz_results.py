"""A short run of the fuzzer of results files; `python -m tests.evaluation.fuzz_results` is the long
one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from alignmask.data import CocoError
from alignmask.evaluation.results_file import load_ground_truth, load_results
from tests.conftest import REPOSITORY
from tests.data import fuzz_coco
from tests.evaluation import fuzz_results


def test_readers_of_results_agree_on_damaged_files() -> None:
    command = [sys.executable, "-m", "tests.evaluation.fuzz_results", "--files", "120"]
    command += ["--seed", "7", "--pages", "1000"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "120 files, none with a crash or a disagreement" in done.stdout


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(fuzz_coco.valid()))
    return path


def test_the_undamaged_file_is_accepted_by_all(annotations: Path) -> None:
    path = annotations.with_name("results.json")
    path.write_text(json.dumps(fuzz_results.valid()))
    said = fuzz_results.verdicts(path, annotations, ignore_unknown=False)
    assert said == {"evaluation": None, "calibration": None, "analysis": None}
    beginnings = {fuzz_results.damaged(random.Random(n))[:1] for n in range(300)}
    assert {b"[", b"{", b"\xff", b"\xef"} < beginnings


def test_disagreements_and_poor_messages_are_seen() -> None:
    path = Path("results.json")

    def wrong(*said: str | None) -> str | None:
        return fuzz_results.disagreement(dict(zip("abc", said, strict=True)), path)

    good = "results.json: of 2 entries: 1 bad\n  bad: entry 1"
    assert wrong(None, None, None) is None
    assert wrong(good, good, good) is None
    assert wrong(good, good, None) == "the readers disagree"
    assert wrong(*["entry 1 is bad"] * 3) == "the message does not name the file"
    assert wrong(*["results.json: of 2 entries: 1 bad"] * 3) == "the message does not name an entry"
    assert wrong(*[good * 1000] * 3) == "the message is too long"


def test_numbers_of_thousands_of_digits_are_refused(annotations: Path) -> None:
    """Python reads no longer ones than 4300 digits, and says so by an error that is not JSON's."""
    digits = "9" * 5000
    path = annotations.with_name("results.json")
    path.write_text(f'[{{"image_id": {digits}}}]')
    with pytest.raises(CocoError, match=r"results\.json: not a COCO file: Exceeds the limit"):
        load_results(path, load_ground_truth(annotations))
    path.write_text(f'{{"images": [{digits}], "annotations": [], "categories": []}}')
    with pytest.raises(CocoError, match=r"results\.json: not a COCO file: Exceeds the limit"):
        load_ground_truth(path)
