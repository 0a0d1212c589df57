"""Nothing connects to a network unless it is asked to."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import alignmask
from alignmask import evaluation  # noqa: F401  imports what evaluation needs before the network is cut
from alignmask.config import DataConfig, ShapesConfig
from alignmask.training.trainer import train
from tests.training.runs import config


class Reached(BaseException):
    """No handler of errors catches it."""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    attempts: list[str] = []

    def refuse(name: str) -> Any:
        def refused(*arguments: Any, **_: Any) -> NoReturn:
            attempts.append(f"{name}{arguments[-1:]}")
            raise Reached(attempts[-1])

        return refused

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse(name), raising=False)
    for name in ("create_connection", "getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse(name))
    for name in [name for name in os.environ if name.endswith(("_OFFLINE", "_proxy", "_PROXY"))]:
        monkeypatch.delenv(name)
    return attempts


def test_the_fixture_sees_a_connection(no_network: list[str]) -> None:
    import urllib.request

    with pytest.raises(Reached):
        urllib.request.urlopen("http://127.0.0.1:9/")
    assert no_network


def test_training_evaluating_comparing_and_predicting_need_no_network(
    no_network: list[str], tmp_path: Path
) -> None:
    data = DataConfig(
        shapes=ShapesConfig(root=tmp_path / "shapes", train_images=4, val_images=2, size=64),
        crop=64, eval_short_side=64, eval_max_side=64, workers=0,
    )  # fmt: skip
    run = train(config(data, tmp_path, iterations=1))
    alignmask.evaluate(run, workers=0)
    alignmask.analyze([run], out=tmp_path / "page", workers=0)
    image = np.zeros((64, 96, 3), np.uint8)
    for model in (run, "nuclei"):
        predictor = alignmask.load(model)
        alignmask.draw(image, predictor.predict(image), predictor.class_names)
    assert not no_network
