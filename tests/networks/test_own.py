"""Networks of other people against plain PyTorch: logits, features, attacks, and what is refused."""

from copy import deepcopy
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.transforms.v2.functional import normalize as standardize

from robustviz.attacks import pgd
from robustviz.defenses import with_cas
from robustviz.features import last_stage, snapshot
from robustviz.models import Normalize, small_cnn
from robustviz.networks import activations, check_classes, folded, own_network, rewired
from robustviz.networks.own import IMAGENET
from robustviz.tensors import seeded
from robustviz.types import Threat

IMAGES = torch.rand(3, 3, 32, 32, generator=seeded(0))
LABELS = torch.tensor([0, 1, 2])


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


@pytest.fixture(scope="module", params=["torchvision", "timm"])
def foreign(request):
    """A module, its images, and what is before its last linear layer."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        if request.param == "torchvision":
            module = torchvision.models.resnet18(num_classes=3)
            module(IMAGES)  # batch norm gets statistics of its own
            images = IMAGES
        else:
            module = timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2)
            nn.init.normal_(module.head.weight, std=0.1)
            images = torch.rand(3, 3, 224, 224, generator=seeded(0))
    layer = "fc" if request.param == "torchvision" else "head"
    module.eval()
    cut = deepcopy(module)
    cut.set_submodule(layer, nn.Identity())
    return module, images, cut


@pytest.mark.parametrize("outside", [True, False])
def test_the_numbers_of_a_plain_loop(foreign, outside):
    """Logits, features and PGD as one would write them without the library."""
    module, images, cut = foreign
    network = own_network(module, normalize="imagenet" if outside else None)
    prepare = partial(standardize, mean=IMAGENET[0], std=IMAGENET[1]) if outside else lambda x: x
    with torch.no_grad():
        torch.testing.assert_close(network(images), module(prepare(images)))
        torch.testing.assert_close(network.features(images), cut(prepare(images)))
        taken = snapshot(network, images, LABELS, layer="body", condition="c").values
        torch.testing.assert_close(taken, cut(prepare(images)))

    attacked = images.clone()
    for _ in range(2):
        attacked.requires_grad_()
        loss = nn.functional.cross_entropy(module(prepare(attacked)), LABELS, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        attacked = (attacked.detach() + 0.005 * gradient.sign()).clamp(images - 0.008, images + 0.008).clamp(0, 1)
    settings = {"threat": Threat("linf", 0.008), "steps": 2, "step_size": 0.005, "random_start": False}
    found = pgd(network, images, LABELS, **settings)
    assert (found - attacked).abs().max() < 1e-6 or ((found - attacked).abs() > 1e-6).float().mean() < 1e-3


def state(module):
    modules = list(module.modules())
    return (
        [(type(m), m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
        [(name, p.data_ptr(), p.requires_grad) for name, p in module.named_parameters()],
        [value.clone().tolist() for value in module.state_dict().values()],
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_shared_and_stays_as_it_is(training):
    module = seeded_net().train(training)
    module.neck.weight.requires_grad_(False)
    before = state(module)
    network = own_network(module, normalize=(0.5, 0.25))
    network(IMAGES).sum().backward()
    assert state(module) == before
    assert network.head is module.head
    assert module.head.weight.grad is not None
    assert network.training == network.body.training == training
    assert set(network.parameters()) == set(module.parameters())
    network.train()
    assert module.training


def test_slots_can_be_replaced_and_places_rewired():
    network = own_network(seeded_net())
    other = network.replace(head=nn.Linear(5, 7))
    assert other(IMAGES).shape == (3, 7)
    assert torch.equal(other.features(IMAGES), network.features(IMAGES))
    assert list(activations(network)) == ["body.network.body.1"]
    smooth = rewired(network, activations(network), lambda place: nn.SiLU(), where="instead")
    assert not torch.equal(smooth(IMAGES), network(IMAGES))
    assert smooth.head is smooth.body.network.head


def test_a_foreign_residual_network_gets_cas_and_a_fast_copy():
    network = own_network(torchvision.models.resnet18(num_classes=4).eval())
    assert last_stage(network) == "body.network.layer4.1"
    masked = with_cas(network, 4)
    assert [n for n, m in masked.named_modules() if type(m).__name__ == "CASBlock"] == [
        "body.network.layer4.0.1",
        "body.network.layer4.1.1",
    ]
    torch.testing.assert_close(folded(network)(IMAGES), network(IMAGES), rtol=1e-4, atol=1e-4)


WRAPPED = {
    "compiled": torch.compile,
    "in parallel": nn.DataParallel,
    "both": lambda module: nn.DataParallel(torch.compile(module)),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_module_inside_a_wrapper_is_used(kind):
    module = seeded_net()
    network = own_network(WRAPPED[kind](module))
    assert network.head is module.head
    assert torch.equal(network(IMAGES), module(IMAGES))


def test_hooks_and_parametrizations_stay():
    module = seeded_net()
    nn.utils.parametrizations.spectral_norm(module.head)
    module.neck.register_forward_hook(lambda m, i, output: output * 2)
    module.head.register_forward_pre_hook(lambda m, inputs: (inputs[0] + 1,))
    module.eval()
    network = own_network(module)
    assert torch.equal(network(IMAGES), module(IMAGES))
    assert [type(m).__name__ for m in network.modules()].count("ParametrizedLinear") == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("normalize", [None, "imagenet", (0.5, 0.25), ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])])
def test_dtypes_and_normalizations(normalize, dtype):
    module = seeded_net().to(dtype)
    network = own_network(module, normalize=normalize)
    mean, std = IMAGENET if normalize == "imagenet" else normalize or (0.0, 1.0)
    images = IMAGES.to(dtype)
    assert torch.equal(network(images), module(Normalize(mean, std).to(dtype)(images)))
    assert network(images).dtype == dtype


class Output(dict):
    """As libraries make them: a dictionary that can be asked by number too."""

    def __getitem__(self, key):
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)


OUTPUTS = {
    "dict": (lambda z: {"logits": z, "aux": 2 * z}, "logits"),
    "tuple": (lambda z: (0 * z, z), 1),
    "last of a list": (lambda z: [0 * z, z], -1),
    "dictionary with numbers": (lambda z: Output(loss=0, logits=z), 1),
    "named": (lambda z: Output(loss=0, logits=z), "logits"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_logits_inside_what_the_module_returns(kind):
    after, output = OUTPUTS[kind]
    network = own_network(seeded_net(after=after), output=output)
    assert torch.equal(network(IMAGES), seeded_net()(IMAGES))


@pytest.mark.parametrize("after", [lambda z: z, lambda z: z.squeeze(1), lambda z: z.squeeze()])
def test_one_logit_becomes_two(after):
    module = seeded_net(classes=1, after=after)
    network = own_network(module, classes=["no", "yes"])
    logits = network(IMAGES)
    assert network.classes == ("no", "yes")
    assert torch.equal(logits[:, 0], torch.zeros(3))
    assert torch.equal(logits[:, 1], seeded_net(classes=1)(IMAGES)[:, 0])
    torch.testing.assert_close(logits.softmax(1)[:, 1], logits[:, 1].sigmoid())


def test_outputs_are_chosen_by_name():
    module = seeded_net(classes=5)
    network = own_network(module, classes=["b", "a"], class_map={"a": 4, "b": 0, "other": 2})
    assert torch.equal(network(IMAGES), module(IMAGES)[:, [0, 4]])
    assert network.classes == network.replace().classes == ("b", "a")
    check_classes(network, ("b", "a"))
    with pytest.raises(ValueError, match=r"classes of the network \(b, a .*class_map, because they have a, b"):
        check_classes(network, ("a", "b"))
    check_classes(own_network(module), ("anything",))
    assert own_network(module, class_map={"x": 1, "y": 0}).classes == ("x", "y")


def test_the_head_may_be_more_than_a_layer():
    module = seeded_net()
    module.head = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    wide, narrow = own_network(module, layer="head"), own_network(module)
    assert (wide.features(IMAGES).shape, narrow.features(IMAGES).shape) == ((3, 5), (3, 8))
    assert torch.equal(wide(IMAGES), narrow(IMAGES))
    assert (wide.head, narrow.head) == (module.head, module.head[2])


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


def test_a_classifier_is_one():
    network = small_cnn()
    assert own_network(network) is network


def test_images_of_an_unusual_shape():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 5 * 7, 3))
    images = torch.rand(2, 3, 5, 7)
    with pytest.raises(ValueError, match="give `images`"):
        own_network(module)
    assert torch.equal(own_network(module, images=images)(images), module(images))


def test_a_network_that_writes_into_its_input_leaves_the_images():
    module = seeded_net()
    module.body.insert(0, Writing())
    images = IMAGES.clone().requires_grad_()
    network = own_network(module)
    torch.autograd.grad(network(images).sum(), images)
    assert torch.equal(images, IMAGES)


class Writing(nn.Module):
    def forward(self, images):
        return images.sub_(0.5)
