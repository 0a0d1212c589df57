"""What tests of other projects' weights compare."""

from __future__ import annotations

import torch

from alignmask.model import AlignMask


def assert_same(model: AlignMask, expected: AlignMask) -> None:
    state = expected.state_dict()
    assert set(model.state_dict()) == set(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
