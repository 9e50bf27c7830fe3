"""Kinds of networks, numbers and surroundings that trip attacks: one table of attacks against all of them."""

import copy
import warnings
from functools import partial
from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import (
    alone_head,
    apgd,
    apgd_targeted,
    carlini_wagner,
    deepfool,
    fgsm,
    fmn,
    ifgsm,
    mifgsm,
    pgd,
    random_noise,
    soft_mask,
    square,
)
from robustviz.checks import check_attacked
from robustviz.data import digits as digits_set
from robustviz.defenses import joint
from robustviz.objectives import cross_entropy, margin
from robustviz.tensors import seeded
from robustviz.types import Threat

LINF, L2 = Threat("linf", 8 / 255), Threat("l2", 0.5)
BOUND = {
    f"{name}-{threat.norm}": (partial(attack, threat=threat), threat)
    for threat in (LINF, L2)
    for name, attack in (
        ("fgsm", fgsm),
        ("ifgsm", ifgsm),
        ("pgd", partial(pgd, restarts=2, steps=4)),
        ("pgd-best", partial(pgd, keep="best", steps=4)),
        ("mifgsm", mifgsm),
        ("apgd", partial(apgd, steps=8)),
        ("apgd-targeted", partial(apgd_targeted, steps=4, targets=2)),
        ("square", partial(square, steps=15)),
        ("noise", partial(random_noise, steps=5)),
    )
}
NEAREST = {
    "deepfool-l2": (deepfool, None),
    "deepfool-linf": (partial(deepfool, norm="linf"), None),
    "fmn-l2": (partial(fmn, norm="l2", steps=40), None),
    "fmn-linf": (partial(fmn, steps=40), None),
    "cw": (partial(carlini_wagner, steps=20, search_steps=3, initial_const=1.0, lr=0.05), None),
}
ATTACKS = BOUND | NEAREST
every_attack = pytest.mark.parametrize(("attack", "threat"), ATTACKS.values(), ids=ATTACKS)
every_nearest = pytest.mark.parametrize("attack", [attack for attack, _ in NEAREST.values()], ids=NEAREST)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SCALED = [name for name in ATTACKS if name != "cw"]  # whose constant is in units of the logits
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(scope="module")
def net():
    return checkpoints.load("digits-standard")[0].eval()


@pytest.fixture
def some(digits, net):
    """Twelve digits that the network gets right."""
    images, labels = digits[0][:20], digits[1][:20]
    right = (decisions(net, images) == labels).nonzero().squeeze(1)[:12]
    return images[right].clone(), labels[right]


def decisions(net, images):
    with torch.no_grad():
        return net(images).argmax(1)


def one_by_one(net, images):
    return torch.cat([decisions(net, image[None]) for image in images])


@every_attack
@every_dtype
def test_every_type_of_number(attack, threat, dtype, net, some):
    """In the ball and the box to the last bit that a type has, and not so cautious that nothing happens."""
    images, labels = some[0].to(dtype), some[1]
    attacked = attack(copy.deepcopy(net).to(dtype), images, labels)
    assert attacked.dtype == dtype
    check_attacked(images, attacked, threat)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    if threat is not None:
        change = (attacked.double() - images.double()).flatten(1)
        farthest = change.norm(dim=1, p=torch.inf if threat.norm == "linf" else 2)
        assert farthest.max() <= threat.epsilon * (1 + 1e-6)
        assert farthest.max() > 0.8 * threat.epsilon


@every_nearest
@every_dtype
def test_the_nearest_image_fools_alone_as_in_its_batch(attack, dtype, net, some):
    images, labels = some[0].to(dtype), some[1]
    own = copy.deepcopy(net).to(dtype)
    attacked = attack(own, images, labels)
    assert (decisions(own, attacked) != labels).all()
    assert (one_by_one(own, attacked) != labels).all()
    assert (decisions(own, attacked.flip(0)) != labels.flip(0)).all()


@every_attack
@on_a_gpu
def test_on_a_gpu(attack, threat, net, some):
    """The same images are fooled there as here, but for a few that rounding decides."""
    attacked = attack(copy.deepcopy(net).cuda(), some[0].cuda(), some[1].cuda(), generator=seeded(0))
    assert attacked.is_cuda
    check_attacked(some[0], attacked.cpu(), threat)
    here = attack(net, *some, generator=seeded(0))
    assert ((decisions(net, attacked.cpu()) != some[1]) == (decisions(net, here) != some[1])).float().mean() > 0.8


class Returning(nn.Module):
    """A network with its logits in another form."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, images):
        return self.form(self.net(images))


FORMS = {
    "dict": (lambda z: {"logits": z}, ValueError, "got dict; wrap it in a module"),
    "tuple": (lambda z: (z, z), ValueError, "got tuple; wrap it in a module"),
    "nothing": (lambda z: None, ValueError, "got NoneType; wrap it in a module"),
    "one logit": (lambda z: z[:, :1], ValueError, r"at least two classes.*\(0, z\)"),
    "vector": (lambda z: z[:, 0], ValueError, r"shape \(12, classes\), got \(12,\)"),
    "maps": (lambda z: z[:, :, None, None], ValueError, r"got \(12, 10, 1, 1\)"),
    "decisions": (
        lambda z: z.argmax(1, keepdim=True).repeat(1, 2),
        ValueError,
        "floating-point logits, got torch.int64",
    ),
}


@every_attack
@pytest.mark.parametrize(("form", "error", "message"), FORMS.values(), ids=FORMS)
def test_what_is_not_logits_is_refused_in_words(attack, threat, form, error, message, net, some, unchecked):
    with pytest.raises(error, match=message):
        attack(Returning(net, form), *some)


@every_attack
def test_a_function_is_refused_in_words(attack, threat, net, some, unchecked):
    with pytest.raises(TypeError, match=r"torch.nn.Module, got function; call a function in the forward"):
        attack(lambda images: net(images), *some)


class Writing(nn.Module):
    """Normalizes in place."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images.mul_(2).sub_(1).add_(1).div_(2))


@every_attack
def test_a_network_may_write_into_its_input(attack, threat, net, some):
    images, labels = some
    before = images.clone()
    attacked = attack(Writing(net), images, labels)
    assert torch.equal(images, before)
    torch.testing.assert_close(attacked, attack(net, images, labels), atol=0.02, rtol=0)


@every_attack
def test_inside_inference_mode(attack, threat, net, some):
    expected = attack(net, *some)
    with torch.inference_mode():
        inside = attack(net, *some)
        assert torch.equal(inside, expected)
        images, labels = some[0] * 1, some[1] * 1
        assert images.is_inference()
        assert torch.equal(attack(net, images, labels), expected)
        assert torch.is_inference_mode_enabled()


def test_a_network_made_in_inference_mode_is_refused(some):
    with torch.inference_mode():
        made = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match=r"made outside torch.inference_mode\(\)"):
        pgd(made, *some)


@pytest.fixture(scope="module")
def plain():
    """A network that can be scripted and compiled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval()


@every_attack
@pytest.mark.parametrize("form", ["compiled", "scripted"])
def test_compiled_and_scripted(attack, threat, form, plain, some):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed = torch.compile(plain, backend="aot_eager") if form == "compiled" else torch.jit.script(plain)
        attacked = attack(changed, some[0], decisions(plain, some[0]))
    torch.testing.assert_close(attacked, attack(plain, some[0], decisions(plain, some[0])), atol=1e-3, rtol=0)


class Scaled(nn.Module):
    def __init__(self, net, factor):
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, images):
        return self.factor * self.net(images)


@pytest.mark.parametrize(("attack", "threat"), [ATTACKS[name] for name in SCALED], ids=SCALED)
@pytest.mark.parametrize("factor", [2.0**66, 2.0**-70])
def test_the_scale_of_the_logits_does_not_matter(attack, threat, factor, net, some):
    """A power of two changes no bit but the exponent; squares of such gradients are infinite, or zero, in float32."""
    function = attack.func if isinstance(attack, partial) else attack
    if "objective" in signature(function).parameters:
        attack = partial(attack, objective=margin)
    attacked, expected = attack(Scaled(net, factor), *some), attack(net, *some)
    fooled = [decisions(net, points) != some[1] for points in (attacked, expected)]
    moved = [(points - some[0]).flatten(1).norm(dim=1) for points in (attacked, expected)]
    assert int((fooled[0] != fooled[1]).sum()) <= 1
    torch.testing.assert_close(moved[0], moved[1], atol=0.02, rtol=0.1)


class OfTheBatch(nn.Module):
    """Subtracts the mean of the batch with functions alone, so that no module tells of it."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return F.batch_norm(self.net(images), None, None, training=True)


@pytest.mark.parametrize(
    "make",
    [lambda net: nn.Sequential(net, nn.BatchNorm1d(10, track_running_stats=False)), OfTheBatch],
    ids=["batch norm", "functional"],
)
class TestHiddenBatchDependence:
    """Batch statistics in evaluation mode: no image may leave, because every other one would be answered otherwise."""

    def test_early_exit_is_refused(self, make, net, some):
        for attack in (pgd, ifgsm, mifgsm, apgd, apgd_targeted):
            with pytest.raises(ValueError, match="early_exit must be False for a model whose answers depend"):
                attack(make(net).eval(), *some, early_exit=True)

    @every_attack
    def test_nobody_leaves(self, attack, threat, make, net, some):
        sizes = []
        model = make(net).eval()
        hook = model.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
        attack(model, *some)
        hook.remove()
        assert set(sizes) - {2} == {len(some[0])}  # two: an image beside itself or its opposite, to find out


def left(net, images, labels):
    return (decisions(net, images) == labels).double().mean().item()


def test_carlini_wagner_is_as_strong_on_a_joint_head_as_on_one_image_at_a_time():
    """Chosen image by image and scored jointly, it ends at most 3 points behind; kept as whole batches it did not."""
    model, _ = checkpoints.load("digits-wnll")
    some = digits_set("test")[:60]
    images, labels, apart = some.images, some.labels, alone_head(model)
    attack = partial(carlini_wagner, steps=40, search_steps=4, initial_const=1.0, lr=0.05)
    together = left(model, attack(model, images, labels), labels)
    assert together <= left(apart, attack(apart, images, labels), labels) + 0.03
    assert together < left(model, images, labels) - 0.05


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_joint_margin_through_the_soft_mask_breaks_channel_suppression(digits, temperature):
    """APGD on the final logits alone overrates it; the same steps on the joint margin, beta 10, do not."""
    model, _ = checkpoints.load("digits-pgd-cas")
    images, labels = digits[0][-80:], digits[1][-80:]
    settings = {"threat": Threat("linf", 0.15), "steps": 15}
    naive = left(model, apgd(model, images, labels, objective=cross_entropy, **settings), labels)
    view = soft_mask(temperature)(model)
    adaptive = left(model, apgd(view, images, labels, objective=joint(margin, beta=10.0), **settings), labels)
    assert adaptive < naive - 0.03
