"""While the tests run, every shape and type that the library's signatures promise is checked."""

import os
import warnings

# Pictures of 8x8 pixels are done sooner by one thread than by two that wait for each other; subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import pytest

jaxtyping.install_import_hook("robustviz", "beartype.beartype")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402


@pytest.fixture
def unchecked(monkeypatch):
    """Switch the shape checks off, so that a test of bad input meets the library's own errors."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def foolbox():
    """The module; its import meets a deprecated name of SciPy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import foolbox
    return foolbox


@pytest.fixture(scope="session")
def digits():
    """All 1,797 handwritten digits: images (n, 1, 8, 8) in [0, 1], float32, and their labels. Do not write to them."""
    bunch = load_digits()
    images = torch.from_numpy((bunch.images / 16).astype(np.float32))[:, None]
    return images, torch.from_numpy(bunch.target).long()


@pytest.fixture(scope="session")
def digits_net(digits):
    """A small convolutional network with batch norm and dropout, about 95 % right on digits. Do not change it."""
    images, labels = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(256, 10),
        )
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(4):
            for rows in torch.randperm(len(images)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
                optimizer.step()
    net.zero_grad()
    return net.eval()
