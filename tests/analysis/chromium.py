"""Headless Chromium, driven by Selenium, with what the tests of the page ask of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1500,1100",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
PATIENCE = 60.0
"""Seconds that anything may take at most: the machine may be busy."""

HELPERS = """
window.deep = (selector, root = document) => [  // in shadow roots, too
  ...root.querySelectorAll(selector),
  ...[...root.querySelectorAll('*')].flatMap((element) => (element.shadowRoot ? deep(selector, element.shadowRoot) : [])),
];
window.pixel = (x, y, width) => {  // of the shown picture, at a pixel of the image of that width
  const canvas = document.getElementById('picture');
  const at = (n) => Math.floor((n + 0.5) * canvas.width / width);
  const copy = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  copy.drawImage(canvas, -at(x), -at(y));
  return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
window.place = (number, point) => {  // of a point on the screen
  const view = Bokeh.index.find_one(models[number].figure);
  view.el.scrollIntoView({ block: 'center' });
  const box = view.el.getBoundingClientRect();
  const { score, iou } = models[number].source.data;
  return [box.left + view.frame.x_scale.compute(score[point]), box.top + view.frame.y_scale.compute(iou[point])];
};
"""


class Browser:
    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path) -> float:
        """Returns the seconds until the page was ready."""
        start = time.monotonic()
        self.driver.get(page.as_uri())
        self.until("document.body.dataset.ready === 'yes'")
        seconds = time.monotonic() - start
        self.run(HELPERS)
        return seconds

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def value(self, expression: str) -> Any:
        return self.run(f"return {expression}")

    def until(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.value(condition):
            assert time.monotonic() < end, (
                f"waited in vain for {condition}; console: {self.complaints()}"
            )
            time.sleep(0.02)

    def complaints(self) -> list[str]:
        """Warnings and errors on the console since the last call."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("WARNING", "SEVERE")
        ]

    def choose(self, field: str, value: str) -> None:
        """Sets a field by its id as a user does: with an input event."""
        self.run(
            "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
            "field.dispatchEvent(new Event('input', { bubbles: true }))",
            field, value,
        )  # fmt: skip

    def click(self, x: float, y: float) -> None:
        """With the mouse, at a place on the screen."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder

        actions = ActionBuilder(self.driver)
        actions.pointer_action.move_to_location(round(x), round(y)).click()
        actions.perform()

    def click_point(self, model: int, point: int) -> None:
        self.click(*self.value(f"place({model}, {point})"))

    def shows(self, model: int, point: int) -> None:
        """Waits until the picture shows that prediction."""
        self.until(f"document.getElementById('picture').dataset.shown === '{model}-{point}'")

    def rows(self, table: str) -> list[list[str]]:
        rows = f"[...document.querySelectorAll('{table} tbody tr')]"
        return self.value(f"{rows}.map((row) => [...row.cells].map((cell) => cell.textContent))")

    def summary(self, column: int) -> list[str]:
        return [row[column] for row in self.rows("#summary")]

    def slick_rows(self, model: int) -> list[list[str]]:
        """The lines that a model's table of predictions shows."""
        rows = f"deep('.slick-row', document.getElementById('target-{model}'))"
        order = "(a, b) => parseFloat(a.style.top) - parseFloat(b.style.top)"
        texts = "(row) => [...row.querySelectorAll('.slick-cell')].map((cell) => cell.textContent)"
        return self.value(f"{rows}.sort({order}).map({texts})")


def start(profile: Path) -> tuple[Browser, Callable[[], None]]:
    """The browser, and what ends it. Skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    chromedriver = shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        pytest.skip(
            "no Chromium with its driver (Debian: apt-get install chromium chromium-driver)"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    return Browser(driver), driver.quit
