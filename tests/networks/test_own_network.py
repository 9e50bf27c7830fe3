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
from tests.networks.conftest import seeded_net

IMAGES = torch.rand(3, 3, 32, 32, generator=seeded(0))
LABELS = torch.tensor([0, 1, 2])


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda():
    before = torch.cuda.get_rng_state()
    network = own_network(seeded_net().cuda(), normalize="imagenet")
    images = IMAGES.cuda()
    expected = own_network(seeded_net(), normalize="imagenet")(IMAGES)
    torch.testing.assert_close(network(images).cpu(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(folded(network, images=images)(images).cpu(), expected, rtol=1e-3, atol=1e-4)
    wired = rewired(network, activations(network), lambda place: nn.PReLU(place.channels, init=1.0))
    torch.testing.assert_close(wired(images).cpu(), expected, rtol=1e-3, atol=1e-4)
    assert snapshot(network, images, LABELS.cuda(), layer="body", condition="c").values.is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), before)
