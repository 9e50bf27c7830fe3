"""Minimal-norm attacks: exact where the nearest boundary is known, elsewhere as strong as other libraries."""

from functools import partial

import pytest
import torch
from torch import nn

from robustviz.attacks import carlini_wagner, deepfool, fmn
from robustviz.tensors import seeded

ATTACKS = {
    "cw": (partial(carlini_wagner, steps=25, search_steps=4, initial_const=1.0, lr=0.05), "l2"),
    "fmn-l2": (partial(fmn, norm="l2", steps=50), "l2"),
    "fmn-linf": (partial(fmn, steps=50), "linf"),
    "deepfool-l2": (deepfool, "l2"),
    "deepfool-linf": (partial(deepfool, norm="linf"), "linf"),
}
every_attack = pytest.mark.parametrize(("attack", "norm"), ATTACKS.values(), ids=ATTACKS.keys())
NEAREST = [name for name in ATTACKS if "deepfool" not in name]
every_nearest = pytest.mark.parametrize(("attack", "norm"), [ATTACKS[name] for name in NEAREST], ids=NEAREST)


@pytest.fixture
def some(digits, double_net):
    """Eight digits that the network gets right, in float64; many of their pixels are exactly 0 or 1."""
    images, labels = digits[0][:20].double(), digits[1][:20]
    right = (decisions(double_net, images) == labels).nonzero().squeeze(1)[:8]
    return images[right], labels[right]


def length(change, norm):
    return change.flatten(1).norm(dim=1, p=torch.inf if norm == "linf" else 2)


def decisions(net, images):
    with torch.no_grad():
        return net(images).argmax(1)


@every_attack
def test_exact_on_a_linear_model(attack, norm):
    """Two classes and a plane between them, with the images at known distances from 0.1 to 0.6."""
    normal = torch.randn(16, generator=seeded(3), dtype=torch.float64)
    points = 0.5 + 0.02 * torch.randn(12, 16, generator=seeded(1), dtype=torch.float64)
    distances = torch.linspace(0.1, 0.6, 12, dtype=torch.float64) * (1 if norm == "l2" else 0.4)
    side = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(6)
    gaps = side * distances * normal.norm(p=1 if norm == "linf" else 2)
    points += ((gaps - (points - 0.5) @ normal) / normal.dot(normal))[:, None] * normal
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).double().requires_grad_(False)
    net[1].weight.copy_(torch.stack([-normal, normal]))
    net[1].bias.copy_(torch.stack([normal.sum(), -normal.sum()]) / 2)
    images, labels = points.view(12, 1, 4, 4), (side > 0).long()
    if attack is ATTACKS["cw"][0]:
        attack = partial(carlini_wagner, steps=100)
    attacked = attack(net, images, labels)
    ratio = length(attacked - images, norm) / distances
    assert (decisions(net, attacked) != labels).all()
    assert ratio.min() > 1 - 1e-9
    assert ratio.max() < 1.021


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("classes", [3, 10])
def test_deepfool_finds_the_nearest_of_many_planes(norm, classes):
    """The distance to a plane is the gap of the logits, divided by the dual norm of the difference of weights."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).double().requires_grad_(False)
    net[1].weight.copy_(torch.randn(classes, 16, generator=seeded(3), dtype=torch.float64))
    net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    images = 0.5 + 0.05 * torch.randn(12, 1, 4, 4, generator=seeded(1), dtype=torch.float64)
    logits = net(images)
    labels = logits.argmax(1)
    slopes = net[1].weight[labels][:, None] - net[1].weight[None]
    planes = (logits.amax(1, keepdim=True) - logits) / slopes.norm(dim=2, p=1 if norm == "linf" else 2)
    nearest = planes.scatter(1, labels[:, None], torch.inf).amin(1)
    attacked = deepfool(net, images, labels, norm=norm)
    assert (decisions(net, attacked) != labels).all()
    assert (length(attacked - images, norm) > nearest).all()
    assert (length(attacked - images, norm) < 1.02 * nearest + 1e-5).all()


@every_attack
def test_all_negative_logits_are_no_shelter(attack, norm, double_net, some):
    class Shifted(nn.Module):
        def forward(self, images):
            return double_net(images) - 1024

    images, labels = some
    assert Shifted()(images).max() < 0
    attacked = attack(Shifted(), images, labels)
    torch.testing.assert_close(attacked, attack(double_net, images, labels), atol=1e-6, rtol=0)
    assert (decisions(double_net, attacked) != labels).all()


@every_attack
def test_result_does_not_depend_on_the_batch(attack, norm, double_net, some):
    images, labels = some[0][:3], some[1][:3]
    alone = [attack(double_net, images[i : i + 1], labels[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(attack(double_net, images, labels), torch.cat(alone), atol=1e-6, rtol=0)


@every_attack
def test_wrong_images_are_returned_as_they_are(attack, norm, double_net, some):
    images, labels = some[0], (decisions(double_net, some[0]) + 1) % 10
    assert torch.equal(attack(double_net, images, labels), images)


@every_nearest
def test_an_image_that_cannot_be_fooled_is_returned_as_it_is(attack, norm, some):
    class Sure(nn.Module):
        def forward(self, images):
            return torch.eye(10, dtype=images.dtype)[some[1]] + 0.01 * images.mean((1, 2, 3))[:, None]

    assert torch.equal(attack(Sure(), *some), some[0])


@every_nearest
def test_targeted_reaches_the_target(attack, norm, double_net, some):
    images, targets = some[0], (some[1] + 3) % 10
    attacked = attack(double_net, images, targets, targeted=True, steps=40)
    assert (decisions(double_net, attacked) == targets).all()
    nearest = attack(double_net, images, some[1], steps=40)
    assert (length(attacked - images, norm) > 0.97 * length(nearest - images, norm)).all()


@every_attack
def test_trace_changes_nothing_and_holds_the_result(attack, norm, double_net, some):
    path = []
    attacked = attack(double_net, *some, on_step=path.append)
    assert torch.equal(attacked, attack(double_net, *some))
    assert torch.equal(path[0].images, some[0])
    seen = torch.stack([step.images for step in path])
    won = torch.stack([step.fooled for step in path])
    for step in (path[3], path[-1]):
        with torch.no_grad():
            logits = double_net(step.images)
        assert torch.equal(step.fooled, logits.argmax(1) != some[1])
        rivals = logits.scatter(1, some[1][:, None], -torch.inf).amax(1)
        margins = rivals - logits.gather(1, some[1][:, None]).squeeze(1)
        torch.testing.assert_close(step.objective, margins)
    distances = torch.stack([length(images - some[0], norm) for images in seen]).where(won, torch.inf)
    assert torch.equal(length(attacked - some[0], norm), distances.amin(0))


@every_attack
def test_leaves_no_trace(attack, norm, double_net, some):
    net = double_net.train()
    net[0].eval().requires_grad_(False)
    images = some[0].requires_grad_()
    before = {name: values.clone() for name, values in net.state_dict().items()}
    random_state = torch.get_rng_state()
    attacked = attack(net, images, some[1])
    assert [module.training for module in net] == [False, *[True] * (len(net) - 1)]
    assert [p.requires_grad for p in net.parameters()] == [False] * 2 + [True] * (len(list(net.parameters())) - 2)
    assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    assert all(torch.equal(before[name], values) for name, values in net.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())
    assert images.grad is None
    assert not attacked.requires_grad
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_passes(counted, double_net, some):
    """One forward and one backward pass a step; DeepFool goes back once for each candidate."""
    net = counted(double_net)
    fmn(net, *some, steps=7)
    assert (net.forwards, net.backwards) == ([8] * 7, [8] * 7)
    net = counted(double_net)
    carlini_wagner(net, *some, steps=7, search_steps=1, lr=1e-3, initial_const=10.0)
    assert (net.forwards, net.backwards) == ([8] * 7, [8] * 7)
    net = counted(double_net)
    deepfool(net, *some, candidates=3, steps=2)
    assert len(net.forwards) == 2
    assert len(net.backwards) == 6


@pytest.mark.parametrize("attack", [ATTACKS["cw"][0], deepfool], ids=["cw", "deepfool"])
def test_images_leave_unless_the_model_depends_on_the_batch(attack, counted, double_net, some):
    net = counted(double_net)
    attack(net, *some)
    assert min(net.forwards) < 8
    net = counted(double_net, batch_dependent=True)
    attacked = attack(net, *some)
    assert set(net.forwards) == set(net.backwards) == {8}
    assert (decisions(net, attacked) != some[1]).sum() >= 6


def test_a_batch_dependent_model_chooses_image_by_image(counted, double_net, some):
    path = []
    attacked = fmn(counted(double_net, batch_dependent=True), *some, on_step=path.append)
    seen, won = torch.stack([step.images for step in path]), torch.stack([step.fooled for step in path])
    far = torch.stack([length(images - some[0], "linf") for images in seen]).where(won, torch.inf)
    assert len(set(far.argmin(0).tolist())) > 1
    assert torch.equal(attacked, torch.stack([seen[k, i] for i, k in enumerate(far.argmin(0).tolist())]))


def test_black_and_white_pixels_move(double_net, some):
    """Squeezed by only a millionth, atanh would put them where tanh has no slope left."""
    change = ATTACKS["cw"][0](double_net, *some) - some[0]
    for level in (0.0, 1.0):
        assert change[some[0] == level].abs().amax() > 0.05


def test_confidence_is_the_lead_in_logits(double_net, some):
    for confidence in (0.0, 2.0):
        attacked = ATTACKS["cw"][0](double_net, *some, confidence=confidence)
        with torch.no_grad():
            top = double_net(attacked).topk(2).values
        lead = top[:, 0] - top[:, 1]
        assert lead.min() >= confidence
        assert lead.median() < confidence + 0.8


def test_constants_are_searched_image_by_image(double_net, some):
    """From constants far too small and far too large, the search comes to nearly the same distance."""
    small, large = (
        length(
            carlini_wagner(double_net, *some, initial_const=const, search_steps=8, steps=25, lr=0.05) - some[0], "l2"
        )
        for const in (0.01, 30.0)
    )
    assert (small / large - 1).abs().max() < 0.3


class TestAgainstFoolbox:
    """The same network and steps: the median distance may be at most 1.02 times theirs."""

    @pytest.mark.parametrize("name", ["cw", "fmn-l2", "fmn-linf", "deepfool-l2", "deepfool-linf"])
    def test_median_distance(self, foolbox, digits, digits_net, name):
        peers, images, labels = foolbox.attacks, digits[0][:100], digits[1][:100]
        peer, ours, norm = {
            "cw": (
                peers.L2CarliniWagnerAttack(binary_search_steps=4, steps=40, initial_const=0.1),
                partial(carlini_wagner, search_steps=4, steps=40, initial_const=0.1),
                "l2",
            ),
            "fmn-l2": (peers.L2FMNAttack(steps=50), partial(fmn, norm="l2", steps=50), "l2"),
            "fmn-linf": (peers.LInfFMNAttack(steps=50), partial(fmn, steps=50), "linf"),
            "deepfool-l2": (peers.L2DeepFoolAttack(), deepfool, "l2"),
            "deepfool-linf": (peers.LinfDeepFoolAttack(), partial(deepfool, norm="linf"), "linf"),
        }[name]
        theirs = peer(foolbox.PyTorchModel(digits_net, (0, 1), "cpu"), images, labels, epsilons=None)[1]
        medians = []
        for attacked in (ours(digits_net, images, labels), theirs):
            distance = length(attacked - images, norm)
            distance[decisions(digits_net, attacked) == labels] = torch.inf
            medians.append(distance.median().item())
        assert medians[0] <= 1.02 * medians[1] < torch.inf


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (carlini_wagner, {"steps": 0}, "steps must be finite and >= 1, got 0"),
        (carlini_wagner, {"confidence": -1.0}, "confidence must be finite and >= 0, got -1.0"),
        (carlini_wagner, {"initial_const": 0.0}, "initial_const must be finite"),
        (fmn, {"gamma": -1.0}, "gamma must be finite and >= 0"),
        (deepfool, {"candidates": 0}, "candidates must be finite and >= 1"),
        (deepfool, {"norm": "l1"}, "norm must be one of linf, l2, got 'l1'"),
        (fmn, {"norm": "l1"}, "norm must be one of linf, l2, got 'l1'"),
    ],
)
def test_bad_settings(unchecked, attack, settings, message, double_net, some):
    with pytest.raises(ValueError, match=message):
        attack(double_net, *some, **settings)


@every_attack
def test_a_model_that_cuts_the_gradient_off_is_refused(attack, norm, double_net, some):
    class Cut(nn.Sequential):
        def forward(self, images):
            return super().forward(images.detach())

    with pytest.raises(ValueError, match="must have a gradient"):
        attack(Cut(double_net), *some)
