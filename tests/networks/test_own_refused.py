"""What cannot become a `Classifier`, and why."""

from functools import partial

import pytest
import torch
from torch import nn

from robustviz.models import small_cnn
from robustviz.networks import own_network
from tests.networks.conftest import seeded_net


def with_after(after):
    module = seeded_net()
    module.softmax, module.scale = nn.Softmax(1), nn.Identity()
    module.after = partial(after, module)
    return module


def twice():
    module = seeded_net()
    module.body = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    module.neck = module.head = nn.Linear(4, 4)
    return module


REFUSED = {
    "softmax": (
        lambda: with_after(lambda m, z: m.scale(m.softmax(z))),
        {},
        ValueError,
        r"after head the module runs softmax \(Softmax\), scale \(Identity\); leave that out",
    ),
    "function": (lambda: with_after(lambda m, z: z.log_softmax(1)), {}, ValueError, "an operation that is no module"),
    "layer before the last": (seeded_net, {"layer": "neck"}, ValueError, r"after neck the module runs head \(Linear\)"),
    "unknown layer": (seeded_net, {"layer": "fc"}, ValueError, "layer must be one of .*, neck, head, got 'fc'"),
    "whole module": (seeded_net, {"layer": ""}, ValueError, "layer must be one of"),
    "layer on maps": (
        seeded_net,
        {"layer": "body.0"},
        ValueError,
        r"shape \(n, features\), but body\.0 gets \(1, 3, 3",
    ),
    "called twice": (twice, {}, ValueError, "is called 2 times"),
    "no linear layer": (
        lambda: nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        {},
        ValueError,
        "name the head by `layer`",
    ),
    "dict": (
        lambda: seeded_net(after=lambda z: {"a": z, "b": z}),
        {},
        ValueError,
        "got dict; give output, one of 'a', 'b'",
    ),
    "tuple": (lambda: seeded_net(after=lambda z: (z, z)), {}, ValueError, "got tuple; give output, one of 0 to 1"),
    "None": (lambda: seeded_net(after=lambda z: None), {}, ValueError, "must return a tensor of logits, got NoneType"),
    "wrong key": (lambda: seeded_net(after=lambda z: {"a": z}), {"output": "b"}, ValueError, "output .* got 'b'"),
    "not 2-D": (lambda: seeded_net(after=lambda z: z[:, :, None]), {}, ValueError, r"\(n, classes\), got \(1, 3, 1\)"),
    "decision": (lambda: seeded_net(after=lambda z: z.long()), {}, ValueError, r"shape \(n, classes\)"),
    "NaN": (lambda: seeded_net(after=lambda z: z * torch.nan), {}, ValueError, "logits must be finite, but 3 of 3"),
    "function as module": (lambda: torch.relu, {}, TypeError, "call a function in the forward method"),
    "scripted": (lambda: torch.jit.script(nn.Linear(2, 2)), {}, TypeError, "scripted program; build the network"),
    "few classes": (seeded_net, {"classes": ["a", "b"]}, ValueError, "3 different names, .* got 2; class_map"),
    "one name twice": (seeded_net, {"classes": ["a", "b", "a"]}, ValueError, "3 different names"),
    "class map without a class": (
        seeded_net,
        {"classes": ["a", "b"], "class_map": {"a": 0}},
        ValueError,
        "class_map must name an output for every class, but lacks b",
    ),
    "class map to nowhere": (seeded_net, {"class_map": {"a": 0, "b": 3}}, ValueError, r"from 0 to 2, got \[0, 3\]"),
    "class map to one": (seeded_net, {"class_map": {"a": 1, "b": 1}}, ValueError, "different outputs"),
    "normalization": (
        seeded_net,
        {"normalize": "cifar"},
        ValueError,
        r"\(mean, std\), 'imagenet' or None, got 'cifar'",
    ),
    "mean alone": (seeded_net, {"normalize": [0.5]}, ValueError, r"normalize must be \(mean, std\)"),
    "classifier": (small_cnn, {"normalize": "imagenet"}, ValueError, "is a Classifier already"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is (deprecated|not supported)")
@pytest.mark.parametrize("kind", REFUSED)
def test_own_network_refuses(unchecked, kind):
    make, settings, error, message = REFUSED[kind]
    module = make()
    with pytest.raises(error, match=message):
        own_network(module, **settings)
    if isinstance(module, nn.Module):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_an_exported_program_is_refused(unchecked):
    program = torch.export.export(nn.Linear(2, 2), (torch.rand(1, 2),))
    with pytest.raises(TypeError, match="exported program; build the network"):
        own_network(program)
