"""What the tests of the attacks share."""

import copy

import pytest
import torch
from torch import nn


class Counter(torch.autograd.Function):
    """The identity, which counts the images that pass forward and back."""

    @staticmethod
    def forward(ctx, images, model):
        ctx.model = model
        model.forwards.append(len(images))
        return images.view_as(images)

    @staticmethod
    def backward(ctx, gradient):
        ctx.model.backwards.append(len(gradient))
        return gradient, None


class Counted(nn.Module):
    """A network with other decisions for another batch, if asked; `forwards` and `backwards` list the batch sizes.

    `trials` counts the passes of an image beside itself or its opposite, which only ask whether the batch matters.
    """

    def __init__(self, net, batch_dependent=False):
        super().__init__()
        self.net, self.batch_dependent, self.forwards, self.backwards, self.trials = net, batch_dependent, [], [], 0

    def forward(self, images):
        if len(images) == 2 and any(
            torch.equal(images[1], other) for other in (images[0], (images[0] < 0.5).to(images))
        ):
            self.trials += 1
            return self.net(images)
        logits = self.net(Counter.apply(images, self))
        return logits - 0.5 * logits.mean(0) if self.batch_dependent else logits


@pytest.fixture
def counted():
    """`counted(net, batch_dependent=False)`: the network, which lists how many images every pass saw."""
    return Counted


@pytest.fixture
def double_net(digits_net):
    """The network in float64, so that the size of the batch changes nothing that is seen."""
    return copy.deepcopy(digits_net).double()


@pytest.fixture
def autoattack():
    """`autoattack(net, threat)`: the authors' package, with its parts as attributes, seeded 0."""
    package = pytest.importorskip("pyautoattack")

    def make(net, threat):
        return package.AutoAttack(net, norm={"linf": "Linf", "l2": "L2"}[threat.norm], eps=threat.epsilon, seed=0)

    return make
