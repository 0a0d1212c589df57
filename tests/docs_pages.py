"""What the pages of the documentation contain: fenced blocks, inline code, links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

RECORDS = ("docs/log.md", "docs/results/")
"""A record keeps the commands and files of its date; its commands are not repeated."""
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE
)  # an indented block belongs to a list
_FILE = re.compile(r"<!-- file: (?P<file>\S+) -->\s*\Z")
_REASON = re.compile(r"<!-- not run: (?P<reason>.+?) -->\s*\Z", re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    code: str
    not_run: str | None
    """The reason, if the page says that the block is not run."""
    file: str | None = None
    """The file that the block is, if the page says so."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[str]:
    """Paths of all pages, relative to the repository."""
    found = [
        *REPOSITORY.glob("*.md"),
        *(REPOSITORY / "docs").rglob("*.md"),
        REPOSITORY / "core" / "README.md",
    ]
    return sorted(path.relative_to(REPOSITORY).as_posix() for path in found)


def is_record(page: str) -> bool:
    return page.startswith(RECORDS)


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text()


def blocks(page: str, text: str | None = None) -> list[Block]:
    text = text_of(page) if text is None else text
    found = []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        code = "".join(
            line[indent:] if line.strip() else line
            for line in match["code"].splitlines(keepends=True)
        )
        reason = _REASON.search(text, endpos=match.start())
        line = text.count("\n", 0, match.start()) + 1
        file = _FILE.search(text, endpos=match.start())
        not_run = reason["reason"] if reason else f"it is the file {file['file']}" if file else None
        found.append(
            Block(page, line, match["language"], code, not_run, file["file"] if file else None)
        )
    return found


def inline_code(page: str) -> list[str]:
    """The text of every `span`, without fenced blocks."""
    return re.findall(r"`([^`\n]+)`", _FENCE.sub("", text_of(page)))


def links(page: str) -> list[str]:
    """Targets of links and images that are neither addresses nor only an anchor."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", text_of(page)))
    return [target for target in targets if not re.match(r"\w+:|#", target)]


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, by the rule of both GitHub and MkDocs for plain
    headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", path.read_text()), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


def shell_commands(code: str) -> list[list[str]]:
    """The words of each command; comments and line breaks after a backslash are gone."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]
