from functools import partial

import pytest
import torch
from torch import nn

from robustviz.attacks import fgsm, ifgsm, mifgsm, pgd
from robustviz.attacks.gradient import random_perturbation
from robustviz.objectives import cross_entropy, margin
from robustviz.tensors import norms, seeded
from robustviz.types import Threat

THREAT = Threat("linf", 0.15)


@pytest.fixture
def some(digits):
    return digits[0][:40].clone(), digits[1][:40].clone()


def decisions(net, images):
    with torch.no_grad():
        return net(images).argmax(1)


class TestAgainstFoolbox:
    """The same network, step size and steps, in the same process."""

    @pytest.mark.parametrize("steps", [1, 10, 40])
    @pytest.mark.parametrize("targeted", [False, True])
    def test_linf_has_the_same_bits(self, foolbox, digits_net, some, steps, targeted):
        images, labels = some
        labels = (labels + 3) % 10 if targeted else labels
        criteria = foolbox.criteria
        criterion = (criteria.TargetedMisclassification if targeted else criteria.Misclassification)(labels)
        oracle = foolbox.attacks.LinfPGD(abs_stepsize=0.02, steps=steps, random_start=False)
        expected = oracle.run(foolbox.PyTorchModel(digits_net, (0, 1), "cpu"), images, criterion, epsilon=0.15)
        settings = {"threat": THREAT, "steps": steps, "step_size": 0.02, "targeted": targeted}
        assert torch.equal(pgd(digits_net, images, labels, random_start=False, **settings), expected)
        assert torch.equal(ifgsm(digits_net, images, labels, **settings), expected)

    def test_fgsm_has_the_same_bits(self, foolbox, digits_net, some):
        oracle = foolbox.attacks.LinfFastGradientAttack()
        expected = oracle.run(foolbox.PyTorchModel(digits_net, (0, 1), "cpu"), *some, epsilon=0.15)
        assert torch.equal(fgsm(digits_net, *some, threat=THREAT), expected)

    @pytest.mark.parametrize("steps", [1, 10])
    def test_l2_is_close(self, foolbox, digits_net, some, steps):
        oracle = foolbox.attacks.L2PGD(abs_stepsize=0.2, steps=steps, random_start=False)
        expected = oracle.run(foolbox.PyTorchModel(digits_net, (0, 1), "cpu"), *some, epsilon=1.0)
        attacked = ifgsm(digits_net, *some, threat=Threat("l2", 1.0), steps=steps, step_size=0.2)
        torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-5)


def linear(weight):
    """An integer-weight linear network in float64, for images (n, 1, 1, d)."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(len(weight[0]), len(weight), bias=False)).double()
    net[1].weight.data = torch.tensor(weight, dtype=torch.float64)
    return net


def row(*pixels):
    return torch.tensor([[[pixels]]], dtype=torch.float64)


LABEL = torch.tensor([0])
NET = linear([[1, 2, 0, 0, 0], [0, 0, 3, -1, 0]])  # towards class 1: down, down, up, down, and nothing for the last
IMAGE = row(0.5, 0.125, 0.5, 0.125, 0.25)


class TestByHand:
    def test_fgsm(self):
        attacked = fgsm(NET, IMAGE, LABEL, threat=Threat("linf", 0.25))
        assert attacked.flatten().tolist() == [0.25, 0, 0.75, 0, 0.25]

    def test_targeted_goes_the_other_way(self):
        attacked = fgsm(NET, IMAGE, LABEL, threat=Threat("linf", 0.25), targeted=True)
        assert attacked.flatten().tolist() == [0.75, 0.375, 0.25, 0.375, 0.25]

    def test_path_of_ifgsm(self):
        path = []
        settings = {"threat": Threat("linf", 0.25), "steps": 3, "step_size": 0.125}
        ifgsm(NET, IMAGE, LABEL, on_step=path.append, **settings)
        assert [step.images.flatten().tolist() for step in path] == [
            [0.5, 0.125, 0.5, 0.125, 0.25],
            [0.375, 0, 0.625, 0, 0.25],
            [0.25, 0, 0.75, 0, 0.25],
            [0.25, 0, 0.75, 0, 0.25],
        ]

    def test_step_size_by_default(self):
        threat = Threat("linf", 0.25)
        assert pgd(NET, IMAGE, LABEL, threat=threat, steps=5, random_start=False)[0, 0, 0, 0] == 0.25
        path = []
        ifgsm(NET, IMAGE, LABEL, threat=threat, steps=5, on_step=path.append)
        assert path[1].images[0, 0, 0, 0] == 0.5 - 2.5 * 0.25 / 5
        path.clear()
        mifgsm(NET, IMAGE, LABEL, threat=threat, steps=4, on_step=path.append)
        assert path[1].images[0, 0, 0, 0] == 0.5 - 0.25 / 4

    def test_l2(self):
        net = linear([[3, 0, 0], [0, 4, 0]])
        attacked = fgsm(net, row(0.5, 0.5, 0.5), LABEL, threat=Threat("l2", 0.25))
        torch.testing.assert_close(attacked, row(0.35, 0.7, 0.5), rtol=0, atol=1e-15)
        attacked = ifgsm(net, row(0.5, 0.9, 0.5), LABEL, threat=Threat("l2", 0.5), steps=4, step_size=0.5)
        assert attacked[0, 0, 0, 1] == 1  # first onto the ball, then into the box
        assert norms(attacked - row(0.5, 0.9, 0.5), "l2").item() <= 0.5

    def test_momentum_carries_on_where_the_gradient_is_zero(self):
        """Up a hill with its top at 0.5, by steps of 0.25 from 0.25; the third gradient cancels the first."""

        def hill(model, images, labels, /, *, generator=None):
            return -((images - 0.5) ** 2).sum((1, 2, 3))

        path = []
        settings = {"objective": hill, "threat": Threat("linf", 1.0), "steps": 4, "step_size": 0.25}
        mifgsm(linear([[1], [2]]), row(0.25), LABEL, on_step=path.append, **settings)
        assert [step.images.item() for step in path] == [0.25, 0.5, 0.75, 0.75, 0.5]
        assert [step.objective.item() for step in path] == [-0.0625, 0, -0.0625, -0.0625, 0]
        plain = mifgsm(linear([[1], [2]]), row(0.25), LABEL, decay=0.0, **settings)
        assert plain.item() == 0.5

    def test_zero_gradient_moves_nothing(self):
        for threat in (Threat("linf", 0.25), Threat("l2", 0.25)):
            for attack in (fgsm, ifgsm, mifgsm):
                assert torch.equal(attack(linear([[1, 1], [1, 1]]), row(0.5, 0.5), LABEL, threat=threat), row(0.5, 0.5))

    def test_image_whose_gradient_is_not_a_number_stays(self):
        def broken(model, images, labels, /, *, generator=None):
            scale = torch.tensor([torch.nan, 1.0], dtype=images.dtype)
            return cross_entropy(model, images, labels) * scale

        images = IMAGE.repeat(2, 1, 1, 1)
        attacked = ifgsm(NET, images, LABEL.repeat(2), threat=Threat("linf", 0.25), objective=broken)
        assert torch.equal(attacked[0], images[0])
        assert attacked[1].flatten().tolist() == [0.25, 0, 0.75, 0, 0.25]

    def test_all_negative_logits_are_attacked(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double()
        net[1].weight.data = torch.tensor([[-1.0], [1.0]]).double()
        net[1].bias.data = torch.tensor([-100.0, -101.2]).double()
        attacked = pgd(net, row(0.5), LABEL, threat=Threat("linf", 0.2), objective=margin)
        assert decisions(net, attacked).item() == 1


@pytest.mark.parametrize(
    ("attack", "forward", "backward"),
    [
        (partial(fgsm), 1, 1),
        (partial(ifgsm, steps=7), 7, 7),
        (partial(mifgsm, steps=7), 7, 7),
        (partial(pgd, steps=7), 7, 7),
        (partial(pgd, steps=7, threat=Threat("l2", 1e-4)), 7, 7),
        (partial(pgd, steps=7, objective=margin, targeted=True), 7, 7),
        (partial(pgd, steps=7, on_step=lambda step: None), 8, 7),
        (partial(pgd, steps=7, restarts=3), 24, 21),
        (partial(pgd, steps=7, keep="best"), 8, 7),
        (partial(ifgsm, steps=7, keep="best", on_step=lambda step: None), 8, 7),
        (partial(pgd, steps=7, restarts=3, on_step=lambda step: None), 24, 21),
        (partial(pgd, steps=7, early_exit=True, threat=Threat("linf", 0.0)), 7, 7),
    ],
)
def test_passes(attack, forward, backward, counted, digits_net, some):
    net = counted(digits_net)
    rows = decisions(digits_net, some[0]) == some[1]
    attack(net, some[0][rows], some[1][rows])
    assert (net.forwards, net.backwards) == ([int(rows.sum())] * forward, [int(rows.sum())] * backward)
    assert net.trials == (2 if attack.keywords.get("early_exit") else 0)


def test_no_gradient_of_the_parameters_is_computed(some):
    class Frozen(nn.Linear):
        def forward(self, images):
            assert not self.weight.requires_grad
            return super().forward(images)

    net = nn.Sequential(nn.Flatten(), Frozen(64, 10))
    pgd(net, *some, steps=2)
    assert net[1].weight.requires_grad


@pytest.mark.parametrize("attack", [ifgsm, mifgsm])
def test_early_exit_spends_passes_only_on_images_still_alive(attack, counted, double_net, some):
    path, images, net = [], some[0].double(), counted(double_net)
    settings = {"threat": THREAT, "steps": 6}
    attack(double_net, images, some[1], on_step=path.append, **settings)
    fallen = torch.stack([step.fooled for step in path]).cummax(0).values
    attacked = attack(net, images, some[1], early_exit=True, **settings)
    alive = [len(images), *(~fallen).sum(1).tolist()]
    assert alive[0] > alive[1] > alive[-1] > 0
    assert net.forwards == alive[:6]
    first = [int(fallen[:, i].double().argmax()) if fallen[-1, i] else 6 for i in range(len(images))]
    expected = torch.stack([path[step].images[i] for i, step in enumerate(first)])
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-12)


def test_early_exit_fools_at_least_as_many(digits_net, some):
    settings = {"threat": Threat("linf", 0.08), "restarts": 3}
    right = [
        int((decisions(digits_net, pgd(digits_net, *some, early_exit=early, **settings)) == some[1]).sum())
        for early in (False, True)
    ]
    assert 0 < right[1] <= right[0] + 1 < 40


def test_early_exit_returns_images_that_are_wrong_already(counted, digits_net, some):
    images, wrong = some[0], (decisions(digits_net, some[0]) + 1) % 10
    net = counted(digits_net)
    assert torch.equal(ifgsm(net, images, wrong, early_exit=True), images)
    assert net.forwards == [len(images)]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("objective", [cross_entropy, margin])
def test_trace(digits_net, some, objective, targeted):
    images, labels = some
    path = []
    settings = {"threat": THREAT, "steps": 4, "restarts": 2, "objective": objective, "targeted": targeted}
    pgd(digits_net, images, labels, on_step=path.append, **settings)
    assert [(step.restart, step.step) for step in path] == [(r, s) for r in range(2) for s in range(5)]
    for step in path:
        with torch.no_grad():
            torch.testing.assert_close(step.objective, objective(digits_net, step.images, labels))
        assert torch.equal(step.fooled, (decisions(digits_net, step.images) == labels) == targeted)
        assert not step.images.requires_grad
        assert not step.objective.requires_grad
    assert not torch.equal(path[0].images, path[5].images)


def test_trace_begins_at_the_image_and_ends_at_the_result(digits_net, some):
    path = []
    attacked = ifgsm(digits_net, *some, threat=THREAT, on_step=path.append)
    assert torch.equal(path[0].images, some[0])
    assert torch.equal(path[-1].images, attacked)
    assert torch.equal(attacked, ifgsm(digits_net, *some, threat=THREAT))


def test_targeted_reaches_the_target(digits_net, some):
    images, targets = some[0], (some[1] + 1) % 10
    attacked = pgd(digits_net, images, targets, threat=Threat("linf", 0.5), steps=20, targeted=True)
    assert (decisions(digits_net, images) == targets).float().mean() < 0.1
    assert (decisions(digits_net, attacked) == targets).float().mean() > 0.9


@pytest.mark.parametrize("targeted", [False, True])
def test_restarts_keep_the_best(digits_net, some, targeted):
    images, path = some[0], []
    labels = (some[1] + 1) % 10 if targeted else some[1]
    threat = Threat("linf", 0.25 if targeted else 0.08)
    settings = {"steps": 3, "restarts": 4, "targeted": targeted}
    attacked = pgd(digits_net, images, labels, threat=threat, on_step=path.append, **settings)
    assert torch.equal(attacked, pgd(digits_net, images, labels, threat=threat, **settings))
    ends = [step for step in path if step.step == 3]
    won = 0
    for i in range(len(images)):
        ranks = [(bool(end.fooled[i]), (-1 if targeted else 1) * end.objective[i].item()) for end in ends]
        assert torch.equal(attacked[i], ends[ranks.index(max(ranks))].images[i])
        won += max(ranks)[0] and not all(fooled for fooled, _ in ranks)
    assert won > 0, "the settings should leave images that only some restarts fool"


class TogetherNet(nn.Module):
    """Every decision depends on the whole batch, as in a head that interpolates over a graph of it."""

    def __init__(self, net, joint=True):
        super().__init__()
        self.net, self.batch_dependent = net, joint

    def forward(self, images):
        logits = self.net(images)
        return logits - 0.5 * logits.mean(0) if self.batch_dependent else 0.8 * logits

    def alone(self):
        return TogetherNet(self.net, joint=False)


def test_a_batch_dependent_model_moves_together_and_is_judged_alone(digits_net, some):
    net, path = TogetherNet(digits_net), []
    settings = {"threat": Threat("linf", 0.06), "steps": 3}
    attacked = pgd(net, *some, restarts=4, on_step=path.append, **settings)
    ends = [step for step in path if step.step == 3]
    assert torch.equal(ends[0].images, pgd(net, *some, **settings)), "the first restart moves as a single one does"
    for end in ends:
        assert torch.equal(end.fooled, decisions(net.alone(), end.images) != some[1])
        torch.testing.assert_close(end.objective, cross_entropy(net.alone(), end.images, some[1]))
    for i in range(len(attacked)):
        ranks = [(bool(end.fooled[i]), end.objective[i].item()) for end in ends]
        assert torch.equal(attacked[i], ends[ranks.index(max(ranks))].images[i])


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("objective", [cross_entropy, margin])
def test_keep_best(digits_net, some, objective, targeted):
    """The iterate with the largest objective, over all restarts; a step so long that the last one is often worse."""
    images, path = some[0], []
    labels = (some[1] + 1) % 10 if targeted else some[1]
    settings = {"threat": THREAT, "steps": 6, "step_size": 0.15, "objective": objective, "targeted": targeted}
    best = pgd(digits_net, images, labels, keep="best", restarts=2, on_step=path.append, **settings)
    heights = torch.stack([step.objective for step in path]).detach() * (-1 if targeted else 1)
    assert torch.equal(best, torch.stack([path[k].images[i] for i, k in enumerate(heights.argmax(0).tolist())]))
    last = ifgsm(digits_net, images, labels, **settings)
    values = [
        objective(digits_net, points, labels)
        for points in (ifgsm(digits_net, images, labels, keep="best", **settings), last)
    ]
    gain = (values[0] - values[1]) * (-1 if targeted else 1)
    assert gain.min() >= -1e-5
    assert gain.max() > 0.1


def test_margin_objective_is_carlini_wagner_linf(digits_net, some):
    """Logits x 300 saturate cross-entropy, so that its gradient vanishes; the margin does not mind."""

    class Scaled(nn.Module):
        def forward(self, images):
            return 300 * digits_net(images)

    wrong = [
        int((decisions(digits_net, ifgsm(Scaled(), *some, threat=THREAT, objective=objective)) != some[1]).sum())
        for objective in (cross_entropy, margin)
    ]
    assert wrong[1] > wrong[0]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_start_is_uniform_in_the_ball(norm):
    """The share of the ball within a radius grows as its volume: in L2 (r / epsilon)^d; in L-inf pixel by pixel."""
    drawn = random_perturbation(torch.zeros(4000, 1, 1, 3, dtype=torch.float64), Threat(norm, 0.5), seeded(0))
    assert norms(drawn, norm).max() <= 0.5
    share = (norms(drawn, norm) / 0.5) ** 3
    assert [(share < level).double().mean().item() for level in (0.25, 0.5, 0.75)] == pytest.approx(
        [0.25, 0.5, 0.75], abs=0.03
    )
    assert drawn.mean((0, 1, 2)).abs().max() < 0.02


def test_random_start_depends_on_the_generator(digits_net, some):
    first, second = (pgd(digits_net, *some, steps=1, generator=seeded(seed)) for seed in (1, 2))
    assert not torch.equal(first, second)


IMAGES, LABELS = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 1])


class Toy(nn.Module):
    def __init__(self, answer=lambda logits: logits):
        super().__init__()
        self.layer, self.answer = nn.Linear(4, 3), answer

    def forward(self, images):
        return self.answer(self.layer(images.flatten(1)))


class Drawing(nn.Sequential):
    stochastic, generator = True, None


def nan(images):
    return images.clone().index_fill_(0, torch.tensor([0]), torch.nan)


BAD = {
    "0..255": ({"images": IMAGES * 510}, ValueError, "reach from 255 to 255: divide by 255"),
    "NaN": ({"images": nan(IMAGES)}, ValueError, "contain NaN"),
    "integers": ({"images": IMAGES.long()}, TypeError, "floating-point tensor, got torch.int64"),
    "shape": ({"images": IMAGES[:, 0]}, ValueError, r"shape \(n, c, h, w\).*got \(2, 2, 2\)"),
    "empty": ({"images": IMAGES[:0], "labels": LABELS[:0]}, ValueError, "not be empty"),
    "label range": ({"labels": torch.tensor([0, 3])}, ValueError, "below the number of classes 3, got 3"),
    "negative label": ({"labels": torch.tensor([0, -1])}, ValueError, "class indices from 0, got -1"),
    "length": ({"labels": torch.tensor([0, 1, 2])}, ValueError, r"shape \(2,\), one for each image, got \(3,\)"),
    "float labels": ({"labels": LABELS.float()}, TypeError, "int64 tensor, got torch.float32"),
    "steps": ({"steps": 0}, ValueError, "steps must be finite and >= 1, got 0"),
    "restarts": ({"restarts": 0}, ValueError, "restarts must be finite and >= 1, got 0"),
    "step size": ({"step_size": -0.1}, ValueError, "step_size must be finite and >= 0, got -0.1"),
    "step size NaN": ({"step_size": float("nan")}, ValueError, "step_size must be finite and >= 0, got nan"),
    "logits": ({"model": Toy(lambda logits: logits.sum(1))}, ValueError, r"logits of shape \(2, classes\), got \(2,\)"),
    "cut": ({"model": Toy(torch.Tensor.detach)}, ValueError, "must have a gradient with respect to the images"),
    "trace and exit": ({"early_exit": True, "on_step": print}, ValueError, "early_exit must be False with on_step"),
    "best and exit": ({"early_exit": True, "keep": "best"}, ValueError, "keep must be 'last' with early_exit"),
    "keep": ({"keep": "first"}, ValueError, "keep must be 'last' or 'best', got 'first'"),
    "best of luck": ({"keep": "best", "model": Drawing(Toy())}, ValueError, "draws at random"),
    "hidden batch": ({"early_exit": True, "model": Toy(lambda z: z - z.mean(0))}, ValueError, "on the whole batch"),
    "one logit": ({"model": Toy(lambda logits: logits[:, :1])}, ValueError, r"logits \(0, z\)"),
    "no logits": ({"model": Toy(lambda logits: {"logits": logits})}, ValueError, "got dict; wrap it in a module"),
    "function": ({"model": lambda images: images.flatten(1)}, TypeError, "torch.nn.Module, got function"),
    "batch": ({"early_exit": True, "model": TogetherNet(Toy())}, ValueError, "depend on the whole batch"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD)
def test_pgd_refuses(changes, error, message, unchecked):
    given = {"model": Toy(), "images": IMAGES, "labels": LABELS, **changes}
    with pytest.raises(error, match=message):
        pgd(given.pop("model"), given.pop("images"), given.pop("labels"), **given)


@pytest.mark.parametrize("attack", [fgsm, ifgsm, mifgsm])
def test_every_door_is_guarded(attack, unchecked):
    with pytest.raises(ValueError, match="divide by 255"):
        attack(Toy(), IMAGES * 510, LABELS)
    with pytest.raises(ValueError, match="below the number of classes 3"):
        attack(Toy(), IMAGES, torch.tensor([0, 3]))


@pytest.mark.parametrize("decay", [-1.0, float("inf")])
def test_mifgsm_refuses_decay(decay):
    with pytest.raises(ValueError, match="decay must be finite and >= 0, got"):
        mifgsm(Toy(), IMAGES, LABELS, decay=decay)


@pytest.mark.parametrize("epsilon", [-0.1, float("nan")])
def test_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon must be finite and >= 0"):
        pgd(Toy(), IMAGES, LABELS, threat=Threat("linf", epsilon))
