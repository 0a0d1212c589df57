"""Films: their frames as images, and films and JSON lines of what was found.

PyAV, of the extra `[video]`, is imported when it is needed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from alignmask._extras import require_video
from alignmask._files import replacing

SUFFIXES = frozenset(
    [".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"]
)
CODECS = ("libx264", "mpeg4")
"""The first that PyAV was built with writes the film."""
TICK = Fraction(1, 90_000)
"""Of the clock that a film's times are told by, in seconds: of all usual rates, frames are whole
numbers of it."""
LINE_KEYS = {"frame", "time", "file_name", "instances"}


class Frame(NamedTuple):
    number: int
    """From 0."""
    time: float
    """In seconds."""
    image_CHW: torch.Tensor


class Film:
    """A film to be read, frame by frame.

    Raises:
        ValueError: It is damaged or no film, now or at the damaged frame.
    """

    def __init__(self, path: Path) -> None:
        require_video("alignmask predict on a film")
        self.path = path
        with _opened(path) as container:
            stream = container.streams.video[0]
            self.rate = stream.average_rate or 25
            self.frames = int(stream.frames)
            """As the file says; 0 if it does not."""

    def __iter__(self) -> Iterator[Frame]:
        with _opened(self.path) as container:
            for number, frame in enumerate(container.decode(video=0)):
                time = float(number / self.rate) if frame.time is None else float(frame.time)
                yield Frame(number, time, upright(frame))


def upright(frame: Any) -> torch.Tensor:
    """uint8 [3, H, W], turned as players show it: telephones film on their side."""
    image_HWC = frame.to_ndarray(format="rgb24")
    image_HWC = np.rot90(image_HWC, round(getattr(frame, "rotation", 0) / 90))
    return torch.from_numpy(np.ascontiguousarray(image_HWC.transpose(2, 0, 1)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: there are no pictures in this file")
            yield container
    except av.error.FFmpegError as error:
        raise ValueError(f"{path}: cannot read the film: {error.strerror}") from error


class FilmWriter:
    """Writes pictures of one size as a film; `writing_film` makes one."""

    def __init__(self, container: Any, rate: Any) -> None:
        self.container, self.rate = container, rate
        self.stream: Any = None
        self.last = -1

    def write(self, picture: Image.Image, time: float) -> None:
        import av

        if self.stream is None:
            codec = next(name for name in CODECS if name in av.codecs_available)
            self.stream = self.container.add_stream(codec, rate=self.rate)
            # The codecs take even sides alone.
            self.stream.width, self.stream.height = (side + side % 2 for side in picture.size)
            self.stream.pix_fmt = "yuv420p"
            self.stream.codec_context.time_base = TICK
        canvas = Image.new("RGB", (self.stream.width, self.stream.height))
        canvas.paste(picture)
        frame = av.VideoFrame.from_image(canvas)
        # Later than the one before, whatever the film says.
        self.last = max(self.last + 1, round(time / TICK))
        frame.pts, frame.time_base = self.last, TICK
        self.container.mux(self.stream.encode(frame))

    def finish(self) -> None:
        if self.stream is not None:
            self.container.mux(self.stream.encode())


@contextlib.contextmanager
def writing_film(path: Path, rate: Any, mark: str) -> Iterator[FilmWriter]:
    """A film that appears whole or not at all, and has a mark that says who made it."""
    import av

    with replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        container.metadata["comment"] = mark
        writer = FilmWriter(container, rate)
        yield writer
        writer.finish()


@contextlib.contextmanager
def writing_lines(path: Path) -> Iterator[Any]:
    """A function that writes a value as a line of JSON; the file appears whole or not at all."""
    with replacing(path) as part, open(part, "w", encoding="utf-8") as file:
        yield lambda value: file.write(json.dumps(value, allow_nan=False) + "\n")


def film_made_here(path: Path, mark: str) -> bool:
    """Whether predict made a film, which has the mark, or its JSON lines, as far as their contents
    say."""
    if path.suffix == ".jsonl":
        with open(path, encoding="utf-8") as file:
            first = json.loads(file.readline())
        return isinstance(first, dict) and first.keys() >= LINE_KEYS
    with _opened(path) as container:
        return bool(container.metadata.get("comment") == mark)
