"""A file with networks of somebody else, for the tests that open them."""

import sys
from textwrap import dedent

import pytest
import torch
from torch import nn

from robustviz.networks import open_network
from robustviz.tensors import seeded

CODE = """
    import torch
    from torch import nn
    from helpers import WIDTH

    def build(width=WIDTH, classes=3, factor=1):
        return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, classes))

    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(192, 4))

    ready = build(width=5)
    number = 3
    def needy(width, depth): return build(width)
    def wrong(): return "a network"
    def raising(): return 1 / 0
    def leaving(): raise SystemExit(2)
    def undecided(): net = build(); net[3].weight.data[0, 0] = torch.nan; return net
"""
IMAGES = torch.rand(2, 3, 8, 8, generator=seeded(0))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(dedent(CODE))
    (tmp_path / "helpers.py").write_text("WIDTH = 16\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "helpers", raising=False)
    return tmp_path


def opened(spec, weights=None, **settings):
    return open_network(spec, weights, trust=True, **settings)


def plain(width=16, classes=3, seed=0):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.ReLU(), nn.Linear(width, classes)).eval()


def state_of(network):
    """What no call may change: modes, hooks, gradients, the random state."""
    modules = list(network.modules())
    return (
        [module.training for module in modules],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules],
        [(parameter.requires_grad, parameter.grad) for parameter in network.parameters()],
        torch.get_rng_state().tolist(),
    )


class Net(nn.Module):
    """Features of a convolution, a head, and what `after` makes of its output."""

    def __init__(self, classes=3, after=lambda logits: logits):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.neck = nn.Linear(4, 5)
        self.head = nn.Linear(5, classes)
        self.after = after

    def forward(self, images):
        return self.after(self.head(self.neck(self.body(images)).tanh()))


def seeded_net(**settings):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Net(**settings).eval()
