"""`alignmask predict` on films, and on several images at a time."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import alignmask
from tests.commands.terminal import Terminal, photo

SIZE = (48, 62)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames, ten a second."""
    av = pytest.importorskip("av", reason="films need the extra [video]")
    path = tmp_path_factory.mktemp("films") / "a film.avi"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(10))
        stream.height, stream.width = SIZE
        for _ in range(5):
            image_HWC = np.kron(rng.integers(0, 255, (6, 31, 3)), np.ones((8, 2, 1)))
            frame = av.VideoFrame.from_ndarray(image_HWC.astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    return [image_HWC for _, image_HWC in timed_frames_of(path)]


def timed_frames_of(path: Path) -> list[tuple[float, np.ndarray]]:
    import av

    with av.open(str(path)) as container:
        return [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


@pytest.mark.parametrize("options", [["--batch-size", "2"], ["--tile", "40"]])
def test_a_film_becomes_a_film_and_lines(
    workshop: Path, alignmask_: Terminal, film: Path, tmp_path: Path, options: list[str]
) -> None:
    arguments = ("predict", workshop / "run", film, "--out", tmp_path, "--threshold", 0, *options)
    assert alignmask_(*arguments) == 0
    assert "in 5 frames: " in alignmask_.out
    lines = [json.loads(line) for line in (tmp_path / "a film.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2, 3, 4]
    assert [line["time"] for line in lines] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    predictor = alignmask.load(workshop / "run")
    for line, image_HWC in zip(lines, frames_of(film), strict=True):
        found = (
            predictor.predict_in_tiles(image_HWC, 40, suppression="hard")
            if "--tile" in options
            else predictor.predict(image_HWC, suppression="hard")
        )
        assert [entry["score"] for entry in line["instances"]] == pytest.approx(
            found.scores_N.tolist(), abs=1e-5
        )
        names = [predictor.class_names[label] for label in found.labels_N]
        assert [entry["class"] for entry in line["instances"]] == names
        assert line["instances"][0]["segmentation"]["size"] == list(SIZE)
    assert lines[0]["instances"] != lines[1]["instances"]
    times, drawn = zip(*timed_frames_of(tmp_path / "a film.mp4"), strict=True)
    assert times == pytest.approx([0, 0.1, 0.2, 0.3, 0.4], abs=1e-4)
    picture = predictor.draw(frames_of(film)[4], found, threshold=0)
    assert drawn[4].shape[:2] == picture.size[::-1]
    assert np.abs(drawn[4].astype(int) - np.asarray(picture)).mean() < 12  # of lossy colours
    assert alignmask_(*arguments) == 0  # what predict made is replaced
    (tmp_path / "a film.mp4").write_text("mine")
    assert "that predict did not make (" in alignmask_.complaint(*arguments)


def test_mistakes_with_films(
    workshop: Path, alignmask_: Terminal, film: Path, tmp_path: Path
) -> None:
    run = ("predict", workshop / "run", "--out", tmp_path / "out")
    image = photo(tmp_path / "a.png")
    assert "images in two calls" in alignmask_.complaint(*run, film, image)
    text = alignmask_.complaint(*run, film, "--format", "geojson", "coco")
    assert "--format geojson is for images: films have overlay and coco" in text
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    assert f"{broken}: cannot read the film: " in alignmask_.complaint(*run, broken)
    assert list((tmp_path / "out").iterdir()) == []
    assert "no such file" in alignmask_.complaint(*run, tmp_path / "gone.mp4")
    assert "--batch-size: expected 1 or more" in alignmask_.complaint(*run, film, "--batch-size", 0)


def test_films_need_their_extra(
    workshop: Path, alignmask_: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mp4").touch()
    monkeypatch.setattr(
        "alignmask._extras._missing", lambda modules: modules[:1] if "av" in modules else ()
    )
    text = alignmask_.complaint(
        "predict", workshop / "run", tmp_path / "a.mp4", "--out", tmp_path / "o"
    )
    assert (
        "alignmask predict on a film needs av: install them with `pip install '.[video]'`" in text
    )


def test_films_are_turned_as_players_show_them() -> None:
    from alignmask.predicting.video import upright

    image_HWC = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    for degrees, turned in (
        (0, image_HWC),
        (90, np.rot90(image_HWC)),
        (-90, np.rot90(image_HWC, -1)),
    ):
        frame = SimpleNamespace(rotation=degrees, to_ndarray=lambda format: image_HWC)
        expected = torch.from_numpy(turned.transpose(2, 0, 1).copy())
        assert torch.equal(upright(frame), expected)


def test_batches_of_images_give_what_single_ones_give(
    workshop: Path, alignmask_: Terminal, tmp_path: Path
) -> None:
    """Sizes change in between, and one file is damaged."""
    for number, size in enumerate([(50, 70), (50, 70), (50, 70), (40, 64), (50, 70)]):
        photo(tmp_path / "in" / f"{number}.png", size)
    (tmp_path / "in" / "1b.png").write_bytes(b"damaged")
    written = []
    for size in (1, 2):
        out = tmp_path / f"out{size}"
        options = ("--threshold", 0, "--batch-size", size, "--format", "coco", "overlay")
        assert alignmask_("predict", workshop / "run", tmp_path / "in", "--out", out, *options) == 2
        assert "1b.png: not an image file" in alignmask_.err
        assert len(list(out.glob("*.png"))) == 5
        written.append(json.loads((out / "predictions.json").read_text()))
    scores = [[entry.pop("score") for entry in entries] for entries in written]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)  # sums are rounded otherwise
    assert written[0] == written[1]
    assert len(written[0]) > 5
