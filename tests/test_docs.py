"""What the documentation shows can be done: its Python runs, its commands are understood, its files
and links exist."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro
from PIL import Image

import alignmask
from alignmask import checkpoint, cli, ops
from alignmask.config import Config, DataConfig
from tests import docs_pages, tiny
from tests.conftest import REPOSITORY

PAGES = docs_pages.pages()
BLOCKS = [
    block for page in PAGES if not docs_pages.is_record(page) for block in docs_pages.blocks(page)
]
WRITTEN = {block.file for block in BLOCKS if block.file}
"""Files that a reader of CONTRIBUTING.md writes."""
SHELL = [block for block in BLOCKS if block.language == "sh" and not block.not_run]
PYTHON_PAGES = sorted({block.page for block in BLOCKS if block.language == "python"})
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(re.findall(r"^(\w+) = \[", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE))


# ---- Python


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name: a checkpoint, a photo, a Hugging Face model."""
    folder = tmp_path_factory.mktemp("docs")
    config = Config(
        model=tiny.model_config(), data=DataConfig(eval_short_side=64, eval_max_side=96)
    )
    meta = {"class_names": list("abcd"), "category_ids": [1, 2, 3, 4]}
    checkpoint.save(folder / "runs" / "mine", config, tiny.model().state_dict(), meta)
    Image.new("RGB", (96, 64), (90, 140, 60)).save(folder / "photo.jpg")
    square = {"image_id": 1, "category_id": 1, "segmentation": [[10, 10, 40, 10, 40, 40, 10, 40]]}
    images = [{"id": n, "file_name": name, "width": 96, "height": 64}
              for n, name in ((1, "photo.jpg"), (2, "other.jpg"))]  # fmt: skip
    truth = [
        {**square, "image_id": n, "id": n, "iscrowd": 0, "area": 900, "bbox": [10, 10, 30, 30]}
        for n in (1, 2)
    ]
    categories = [{"id": 1, "name": "square"}]
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": truth, "categories": categories})
    )
    (folder / "results.json").write_text(
        json.dumps([{**square, "image_id": n, "score": 0.9} for n in (1, 2)])
    )
    return folder


@pytest.fixture(scope="module")
def hugging_face_model(stand_ins: Path) -> None:
    from tests.integrations import huggingface

    huggingface.mask2former().save_pretrained(stand_ins / "mask2former-swin-small")


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_python_runs(
    page: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """The blocks of a page run one after another, in one namespace."""
    if "transformers" in docs_pages.text_of(page):
        pytest.importorskip("transformers")
        request.getfixturevalue("hugging_face_model")
    monkeypatch.chdir(stand_ins)
    namespace: dict[str, Any] = {}
    ran = 0
    for block in docs_pages.blocks(page):
        if block.language == "python" and not block.not_run:
            exec(compile("\n" * block.line + block.code, block.page, "exec"), namespace)
            ran += 1
    assert ran or all(
        block.not_run for block in docs_pages.blocks(page) if block.language == "python"
    )


def test_every_block_has_a_language_that_is_checked() -> None:
    for block in BLOCKS:
        assert block.language in ("sh", "python", "mermaid") or block.file, block


# ---- commands


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The real parser of every command, which then calls nothing; the list names what it would have
    called."""
    called: list[str] = []

    def harmless(function: Callable[..., Any]) -> Callable[..., int]:
        @functools.wraps(function)
        def instead(*_: Any, **__: Any) -> int:
            called.append(function.__module__)
            return 0

        return instead

    one, several = tyro.cli, tyro.extras.subcommand_cli_from_dict
    monkeypatch.setattr(tyro, "cli", lambda function, **options: one(harmless(function), **options))
    monkeypatch.setattr(
        tyro.extras,
        "subcommand_cli_from_dict",
        lambda functions, **options: several(
            {n: harmless(f) for n, f in functions.items()}, **options
        ),
    )
    return called


def check_command(words: list[str]) -> None:
    """Raises AssertionError unless the command can be given in the repository. It is not carried
    out."""
    while re.fullmatch(r"\w+=\S*", words[0]):  # variables of the environment
        words = words[1:]
    match words:
        case ["alignmask", *arguments]:
            assert cli.main(arguments) == 0, words
        case [
            "torchrun" | "accelerate",
            *_,
            "-m",
            "alignmask.cli",
            "train",
            "r50_50ep",
        ]:
            assert cli.main(words[words.index("train") :]) == 0
        case ["make", target, *variables]:
            assert target in MAKE_TARGETS, words
            makefile = (REPOSITORY / "Makefile").read_text()
            assert all(f"$({variable.split('=')[0]})" in makefile for variable in variables), words
        case ["pip", "install", *packages]:
            for package in packages:
                named = re.fullmatch(r"\.(?:\[([\w,]+)\])?", package)
                assert named, words
                assert set((named[1] or "train").split(",")) <= EXTRAS, words
        case ["python", script, *_] if script.startswith("bench/"):
            assert (REPOSITORY / script).is_file(), words
        case ["pytest", *arguments]:
            for path in arguments:
                assert (
                    not path.startswith("tests") or path in WRITTEN or (REPOSITORY / path).exists()
                ), words
        case [".", ".venv/bin/activate"]:
            pass
        case _:
            raise AssertionError(f"a command that nothing checks: {words}")


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_are_understood(block: docs_pages.Block, parsed: list[str]) -> None:
    commands = docs_pages.shell_commands(block.code)
    assert commands
    for words in commands:
        check_command(words)
    assert len(parsed) == sum(
        "alignmask" in words or "alignmask.cli" in words for words in commands
    )


def test_commands_inside_of_sentences_are_understood(
    parsed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = 0
    for page in PAGES:
        if docs_pages.is_record(page) or page == "CHANGELOG.md":
            continue
        for code in docs_pages.inline_code(page):
            if re.match(
                r"make [a-z-]+( \w+=|$)|pip install |alignmask \w+ (?!CHECKPOINT)|torchrun |pytest "
                r"",
                code,
            ):
                check_command(docs_pages.shell_commands(code)[0])
                seen += 1
            elif re.match(r"alignmask \w+$", code):
                assert code.split()[1] in cli.COMMANDS, (page, code)
                seen += 1
    assert seen > 20


# ---- files, options and links


@pytest.mark.parametrize("page", PAGES)
def test_files_named_exist(page: str) -> None:
    """`core/<op>/formula.h` stands for one file of every op."""
    if page == "CHANGELOG.md":
        pytest.skip("names what was renamed")
    for code in docs_pages.inline_code(page):
        if not re.fullmatch(
            r"(core|bindings|python|tests|bench|docs|examples|cmake)/[\w./<>*-]*", code
        ):
            continue
        if "mask_area" in code:  # CONTRIBUTING.md's example of an op to be written
            continue
        for op in ops.OPS if "<op>" in code else ("",):
            assert list(REPOSITORY.glob(code.replace("<op>", op).rstrip("/"))), (
                f"{page} names {code}"
            )


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in docs_pages.links(page):
        target, _, anchor = link.partition("#")
        path = (REPOSITORY / page).parent / target
        assert path.exists(), f"{page} links to {link}"
        assert not anchor or anchor in docs_pages.anchors(path), f"{page} links to {link}"


def test_the_readme_stays_short() -> None:
    assert len(docs_pages.text_of("README.md").splitlines()) <= 100


def test_the_citation_names_the_version_of_the_package() -> None:
    stated = re.search(r"^version: (.+)$", (REPOSITORY / "CITATION.cff").read_text(), re.MULTILINE)
    assert stated
    assert stated[1] == alignmask.__version__


# ---- the log

LOG = docs_pages.text_of("docs/log.md")
ENTRIES = re.split(r"^(?=## )", LOG, flags=re.MULTILINE)[1:]


def test_an_entry_of_the_log_is_short_and_in_the_index() -> None:
    index = LOG.partition("\n## ")[0]
    assert len(ENTRIES) > 30
    dates = []
    for entry in ENTRIES:
        title = entry.splitlines()[0].removeprefix("## ")
        date, _, verdict = title.partition(": ")
        dates.append(date)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date), title
        assert f"[{verdict}](#" in index, f"the index lacks: {title}"
        assert len(entry.rstrip().splitlines()) <= 40, title
        long = [
            line
            for line in entry.splitlines()[1:]
            if len(line) > 120 and not line.startswith(("|", "!["))
        ]
        assert not long, long
    assert dates == sorted(dates, reverse=True), "newest first"
    assert index.count("](#") == len(ENTRIES)


# ---- the pages as a whole


def test_the_api_page_shows_what_is_public() -> None:
    """Functions and classes; not the packages that `alignmask` also offers by name."""
    page = docs_pages.text_of("docs/api.md")
    shown = set(re.findall(r"(?:^::: |heading: )([\w.]+)", page, re.MULTILINE))
    for module in (alignmask, ops):
        public = [name for name in module.__all__ if callable(getattr(module, name))]
        assert not {f"{module.__name__}.{name}" for name in public} - shown


def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "quality_focal_loss(logits_RC" in re.sub(
        r"<[^>]*>|\s", "", (tmp_path / "api.html").read_text()
    )
