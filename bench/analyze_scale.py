"""Time, memory and size of `alignmask analyze` on perturbed ground truth of a COCO data set.

    python bench/analyze_scale.py ANNOTATIONS IMAGES --images 5 50 500

makes data sets of so many images (those of the file, over and over) with 100 predictions each,
analyses them in a process of their own, and opens the page in Chromium: seconds until it is ready,
and until what follows a filter, a click on a point, and the same on another image, has been drawn.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from alignmask.data.rle import encode
from alignmask.evaluation.results_file import load_ground_truth

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.analysis import chromium

PER_IMAGE = 100


def predictions(
    truths: list[dict[str, Any]], size: tuple[int, int], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Shifted and cut ground truth; the score follows the shift, loosely."""
    import torch

    made = []
    for _ in range(PER_IMAGE):
        truth = truths[rng.integers(len(truths))]
        mask_HW = mask_utils.decode(truth["segmentation"]).astype(bool)
        shift = rng.integers(-30, 31, 2) * rng.random()
        mask_HW = np.roll(mask_HW, shift.astype(int), (0, 1))
        mask_HW[rng.integers(size[0] // 2, size[0]) :] = False
        score = float(1 / (1 + np.exp(np.abs(shift).sum() / 8 - 2 + rng.normal())))
        made.append(
            {
                "category_id": truth["category_id"],
                "segmentation": encode(torch.from_numpy(mask_HW[None]))[0],
                "score": score,
            }
        )
    return made


def make(annotations: Path, count: int, out: Path) -> None:
    """Writes annotations.json and results.json of `count` images."""
    data = json.loads(annotations.read_text())
    truth = load_ground_truth(annotations)
    rng = np.random.default_rng(0)
    originals = [
        image
        for image in data["images"]
        if any(not a["iscrowd"] for a in truth.by_image.get(image["id"], []))
    ]
    made = {}
    images, instances, results = [], [], []
    for number in range(count):
        original = originals[number % len(originals)]
        image_id, mine = number + 1, truth.by_image[original["id"]]
        if original["id"] not in made:
            made[original["id"]] = predictions(
                [a for a in mine if not a["iscrowd"]], truth.sizes[original["id"]], rng
            )
        images.append({**original, "id": image_id})
        for annotation in mine:
            segmentation = {
                **annotation["segmentation"],
                "counts": annotation["segmentation"]["counts"].decode(),
            }
            instances.append(
                {
                    **annotation,
                    "id": len(instances) + 1,
                    "image_id": image_id,
                    "segmentation": segmentation,
                }
            )
        results += [{**entry, "image_id": image_id} for entry in made[original["id"]]]
    data.update(images=images, annotations=instances)
    (out / "annotations.json").write_text(json.dumps(data))
    (out / "results.json").write_text(json.dumps(results))


def time_page(page: Path, profile: Path) -> str:
    """Seconds until the page is ready, and until each change has been drawn."""
    browser, end = chromium.start(profile)

    def timed(script: str, done: str = "true") -> float:
        code = f"""
          const end = arguments[0], start = performance.now();
          const set = (id, value) => {{
            document.getElementById(id).value = value;
            document.getElementById(id).dispatchEvent(new Event('input', {{ bubbles: true }}));
          }};
          {script};
          const drawn = () => requestAnimationFrame(() => setTimeout(() => end(performance.now() - start)));
          const wait = () => ({done} ? requestAnimationFrame(drawn) : requestAnimationFrame(wait));
          wait();
        """
        return browser.driver.execute_async_script(code) / 1000

    def point(number: int) -> float:
        shown = f"document.getElementById('picture').dataset.shown === '0-{number}'"
        return timed(f"models[0].source.selected.indices = [{number}]", f"({shown})")

    try:
        times = {"ready": browser.open(page)}
        browser.driver.set_script_timeout(chromium.PATIENCE)
        points = browser.value("models[0].kept.length")
        times |= {
            "class filter": timed("set('class', 0)"),
            "all classes": timed("set('class', -1)"),
        }
        times |= {
            "IoU filter": timed("set('iou-from', 0.5)"),
            "IoU of any class": timed("set('kind', 'any')"),
        }
        times |= {"a point": point(10), "another": point(points - 10)}
        complaints = browser.complaints()
    finally:
        end()
    if complaints:
        raise RuntimeError(f"{page}: the console shows {complaints}")
    return f"{points} points: " + ", ".join(
        f"{what} {seconds:.2f} s" for what, seconds in times.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path)
    parser.add_argument("pictures", type=Path, metavar="IMAGES")
    parser.add_argument("--images", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--keep", type=Path, help="folder that the data sets and reports stay in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for count in arguments.images:
            folder = (arguments.keep or Path(temporary)) / str(count)
            folder.mkdir(parents=True, exist_ok=True)
            make(arguments.annotations, count, folder)
            command = [sys.executable, "-m", "alignmask.cli", "analyze", folder / "results.json"]
            command += [
                "--annotations",
                folder / "annotations.json",
                "--images",
                arguments.pictures,
            ]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            start = time.perf_counter()
            subprocess.run(
                [*map(str, command), "--out", folder / "out", "--fraction", str(arguments.fraction)],
                check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            # Of the largest child so far: name the sizes in ascending order.
            peak = after.ru_maxrss / 2**20
            size = (folder / "out" / "report.html").stat().st_size / 1e6
            print(
                f"{count * PER_IMAGE} predictions: {work:.1f} s of processor time ({seconds:.1f} "
                f"s), peak {peak:.2f} GiB, "
                f"page {size:.1f} MB\n  "
                f"{time_page(folder / 'out' / 'report.html', Path(temporary) / f'profile-{count}')}",
                flush=True,
            )


if __name__ == "__main__":
    main()
