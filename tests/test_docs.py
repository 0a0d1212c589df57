"""The code in the documentation runs."""

from __future__ import annotations

import re

import pytest

from tests.conftest import REPOSITORY

PAGES = ("kernels.md",)


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_run(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})
