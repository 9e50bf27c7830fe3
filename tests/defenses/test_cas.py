"""CAS on cases computed by hand, and what stock attacks see of it."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch import nn

from robustviz.attacks import against, eot, ifgsm, pgd, soft_mask
from robustviz.defenses.cas import CASBlock, CASOutput, auxiliary, cas_outputs, joint, with_cas
from robustviz.models import MODELS, Classifier, Normalize, small_cnn
from robustviz.networks import blocks
from robustviz.objectives import cross_entropy, divergence, dlr, margin, mart, mart_loss, trades, trades_loss
from robustviz.records import describe
from robustviz.tensors import evaluating, seeded
from robustviz.types import Threat

# One image, two channels of 1x2: z = (2, 1). Row 0 of M scores 2 - 3 = -1, row 1 scores -4 + 0.5 = -3.5, and
# the bias turns the decision: channel logits (-1, 1.5).
MAPS = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]])
WEIGHT = torch.tensor([[1.0, -3.0], [-2.0, 0.5]])
BIAS = torch.tensor([0.0, 5.0])
MASKED = {0: [[[1.0, 3.0]], [[0.0, -6.0]]], 1: [[[-2.0, -6.0]], [[0.0, 1.0]]]}


def block_by_hand():
    block = CASBlock(2, 2)
    with torch.no_grad():
        block.auxiliary.weight.copy_(WEIGHT)
        block.auxiliary.bias.copy_(BIAS)
    return block


def net_by_hand(blocks_in_a_row=1):
    """Pixels are the maps; the head adds the channels for class 0 and takes their difference for class 1."""
    head = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    stages = [block_by_hand() for _ in range(blocks_in_a_row)]
    body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Classifier(body, head, normalize=nn.Identity())


@pytest.fixture
def cas_net():
    """A small CNN with CAS, new weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = with_cas(small_cnn(), 10)
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, CASBlock):
                    module.auxiliary.weight.mul_(20)
    return net.eval()


@pytest.fixture(scope="module")
def trained(digits):
    """A small CNN with CAS that has learned the digits by its joint objective. Do not change it."""
    images, labels = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = with_cas(small_cnn(), 10).train()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(4):
            for rows in torch.randperm(len(images)).split(128):
                optimizer.zero_grad()
                joint(cross_entropy)(net, images[rows], labels[rows]).mean().backward()
                optimizer.step()
    net.zero_grad()
    return net.eval()


@pytest.fixture
def some(digits):
    return digits[0][:24].clone(), digits[1][:24].clone()


@pytest.mark.parametrize("training", [True, False])
def test_without_labels_the_largest_channel_logit_chooses_in_either_mode(training):
    block = block_by_hand().train(training)
    assert block(MAPS).tolist() == [MASKED[1]]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("label", [0, 1])
def test_labels_choose_the_mask_for_one_call(training, label):
    net = net_by_hand().train(training)
    output = cas_outputs(net, MAPS, torch.tensor([label]))
    assert output.channel_logits[0].tolist() == [[-1.0, 1.5]]
    features = torch.tensor(MASKED[label]).mean((1, 2))
    assert output.logits.tolist() == [[features.sum().item(), (features[0] - features[1]).item()]]
    assert cas_outputs(net, MAPS).logits.tolist() == net(MAPS).tolist() == [[-3.5, -4.5]]
    assert net.training == training


def test_loss_is_the_formula_on_fixed_numbers():
    net, labels = net_by_hand(), torch.tensor([0])
    # By hand: true mask gives z = (2, -3), logits (-1, 5); chosen mask gives z = (-4, 0.5), logits (-3.5, -4.5).
    channel = -log_softmax([-1.0, 1.5])[0]
    for training, logits in ((True, [-1.0, 5.0]), (False, [-3.5, -4.5])):
        value = joint(cross_entropy)(net.train(training), MAPS.clamp(0, 3), labels)
        assert value.item() == pytest.approx(-log_softmax(logits)[0] + 2 * channel, abs=1e-6)
    assert auxiliary(cross_entropy)(net, MAPS, labels).item() == pytest.approx(channel, abs=1e-6)
    assert joint(margin, beta=0.5)(net.eval(), MAPS, labels).item() == pytest.approx(-1.0 + 0.5 * 2.5, abs=1e-6)


def test_beta_is_shared_among_the_blocks():
    net, labels = net_by_hand(blocks_in_a_row=2).eval(), torch.tensor([1])
    output = cas_outputs(net, MAPS)
    # The second block sees z = (-4, 0.5): scores -4 - 1.5 and 8 + 0.25 + 5.
    assert [logits.tolist() for logits in output.channel_logits] == [[[-1.0, 1.5]], [[-5.5, 13.25]]]
    final, first, second = (-log_softmax(logits[0].detach())[1] for logits in (output.logits, *output.channel_logits))
    assert joint(beta=3.0)(net, MAPS, labels).item() == pytest.approx(final + 1.5 * (first + second), abs=1e-5)
    assert auxiliary()(net, MAPS, labels).item() == pytest.approx((first + second) / 2, abs=1e-5)


def test_gradient_reaches_the_weights_through_both_terms():
    net, labels = net_by_hand().train(), torch.tensor([0])
    weight = net.body[0].auxiliary.weight
    through_mask, through_logits, both = (
        torch.autograd.grad(objective(net, MAPS, labels).sum(), weight)[0]
        for objective in (joint(beta=0.0), auxiliary(), joint(beta=2.0))
    )
    assert through_mask[0].abs().sum() > 0
    assert through_mask[1].abs().sum() == 0  # the row of the other class has no part in the mask
    assert (through_logits != 0).all()
    torch.testing.assert_close(both, through_mask + 2 * through_logits)


@pytest.mark.parametrize("name", MODELS)
def test_all_ones_give_the_plain_model_in_every_network(name):
    plain = MODELS[name](classes=7, channels=1).eval()
    net = with_cas(plain, 7)
    masks = [module for module in net.modules() if isinstance(module, CASBlock)]
    assert len(masks) == (3 if name == "vgg16" else 2)
    with torch.no_grad():
        for mask in masks:
            mask.auxiliary.weight.fill_(1)
    images = torch.rand(2, 1, 16, 16, generator=seeded(0))
    output = cas_outputs(net, images)
    assert torch.equal(output.logits, plain(images))
    assert [logits.shape for logits in output.channel_logits] == [(2, 7)] * len(masks)
    assert not any(module.training for module in net.modules())
    # The blocks behind which the masks stand are the last of the plain network.
    last = list(blocks(plain))[-len(masks) :]
    assert [name for name, module in net.named_modules() if isinstance(module, CASBlock)] == [f"{n}.1" for n in last]
    assert not {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in net.parameters()}


def test_masked_blocks_are_as_in_the_paper():
    channels = {
        name: [
            module.auxiliary.in_features
            for module in with_cas(MODELS[name](), 10).modules()
            if isinstance(module, CASBlock)
        ]
        for name in ("small_cnn", "resnet20", "resnet18", "vgg16")
    }
    assert channels == {"small_cnn": [64, 64], "resnet20": [64, 64], "resnet18": [512, 512], "vgg16": [512] * 3}


@pytest.mark.parametrize("objective", [cross_entropy, margin, dlr])
@pytest.mark.parametrize("training", [True, False])
def test_joint_makes_one_forward_pass_and_leaves_no_trace(cas_net, some, objective, training):
    cas_net.train(training)
    before, passes = describe_state(cas_net), []
    cas_net.head.register_forward_hook(lambda *_: passes.append(1))
    joint(objective)(cas_net, *some).sum().backward()
    assert len(passes) == 1
    cas_net.head._forward_hooks.clear()
    assert describe_state(cas_net) == before


def describe_state(net):
    masks = [module for module in net.modules() if isinstance(module, CASBlock)]
    hooks = sum(len(module._forward_hooks) for module in net.modules())
    return [module.training for module in net.modules()], [(m.labels, m.mask_temperature) for m in masks], hooks


def test_labels_leave_after_an_error(cas_net, some):
    before = describe_state(cas_net)
    with pytest.raises(RuntimeError, match="channels"):
        cas_outputs(cas_net, some[0].expand(-1, 3, -1, -1), some[1])
    assert describe_state(cas_net) == before


def test_final_decision_is_compared_with_the_last_auxiliary_one():
    logits = torch.eye(3)
    output = CASOutput(logits, (logits.flip(0), logits[[0, 2, 1]]))
    assert output.agrees.tolist() == [True, False, False]


@pytest.mark.parametrize(("objective", "loss"), [(trades, trades_loss), (mart, mart_loss)])
def test_trades_and_mart_count_every_decision_and_attack_all(cas_net, some, objective, loss):
    images, labels = some
    seen = {}

    def attack(*arguments, objective, **settings):
        seen["attacked"] = pgd(*arguments, threat=Threat("linf", 0.1), steps=2, objective=objective, **settings)
        with evaluating(cas_net), torch.no_grad():
            seen["raised"] = objective(cas_net, seen["attacked"], labels)
        return seen["attacked"]

    frozen = deepcopy(cas_net)  # in train mode the statistics of batch norm move on
    values = joint(partial(objective, attack=attack, factor=4.0))(cas_net.train(), images, labels)

    def summed(net, given, part):
        clean, moved = (cas_outputs(net, batch, given) for batch in (images, seen["attacked"]))
        pairs = zip((clean.logits, *clean.channel_logits), (moved.logits, *moved.channel_logits), strict=True)
        return sum(part(*pair) for pair in pairs)  # beta / S is 1

    torch.testing.assert_close(values, summed(cas_net, labels, partial(loss, labels=labels, factor=4.0)))
    if objective is trades:
        raised = summed(frozen, None, divergence)
    else:
        raised = summed(frozen, None, lambda _, moved: nn.functional.cross_entropy(moved, labels, reduction="none"))
    torch.testing.assert_close(seen["raised"], raised)


def test_soft_backward_is_the_gradient_of_the_soft_mask():
    generator = seeded(5)
    maps = torch.rand(3, 4, 2, 2, dtype=torch.float64, generator=generator).requires_grad_()
    target = torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=generator)
    block = CASBlock(4, 5).double()
    hard = block(maps)
    block.mask_temperature = 0.5
    assert torch.equal(block(maps), hard)
    (gradient,) = torch.autograd.grad((block(maps) * target).sum(), maps)
    # By the product rule: the hard mask where the maps stand, the soft one where the mask depends on them.
    logits = block.auxiliary(maps.mean((2, 3)))
    mask = block.auxiliary.weight[logits.argmax(1)].detach()[:, :, None, None]
    soft = ((logits / 0.5).softmax(1) @ block.auxiliary.weight)[:, :, None, None]
    (through_soft,) = torch.autograd.grad((maps.detach() * soft * target).sum(), maps)
    torch.testing.assert_close(gradient, mask * target + through_soft)


def test_soft_mask_decides_alike_shares_the_weights_and_leaves_the_model(cas_net, some):
    before = describe_state(cas_net)
    view = soft_mask(2.0)(cas_net)
    assert torch.equal(view(some[0]), cas_net(some[0]))
    shared = zip([*view.parameters(), *view.buffers()], [*cas_net.parameters(), *cas_net.buffers()], strict=True)
    assert all(seen is own for seen, own in shared)
    assert describe_state(cas_net) == before
    assert [mask.mask_temperature for mask in view.modules() if isinstance(mask, CASBlock)] == [2.0, 2.0]


def test_soft_mask_refuses(cas_net):
    with pytest.raises(ValueError, match=r"temperature must be > 0, got 0\.0"):
        soft_mask(0.0)
    with pytest.raises(ValueError, match="choose channel masks"):
        soft_mask(1.0)(small_cnn())


@pytest.mark.filterwarnings("ignore:.*scipy.ndimage:DeprecationWarning")
def test_foolbox_attacks_the_model_unchanged_and_gives_the_naive_number(trained, digits):
    import eagerpy
    import foolbox

    images, labels = (part[:100] for part in digits)
    wrapped = foolbox.PyTorchModel(trained, bounds=(0, 1), device="cpu")
    linf = foolbox.attacks.LinfPGD(steps=8, abs_stepsize=0.03, random_start=False)
    attacked, _, won = linf(wrapped, eagerpy.astensor(images), eagerpy.astensor(labels), epsilons=0.15)
    ours = ifgsm(trained, images, labels, threat=Threat("linf", 0.15), steps=8, step_size=0.03)
    assert torch.equal(attacked.raw, ours)
    with torch.no_grad():
        fooled = trained(ours).argmax(1) != labels
    assert torch.equal(fooled, won.raw)
    assert 0.05 < fooled.float().mean() < 0.95


def test_the_naive_attack_overrates_the_defense(trained, digits):
    images, labels = (part[:200] for part in digits)
    attack = partial(pgd, threat=Threat("linf", 0.15), steps=10, step_size=0.03)

    def accuracy(objective, view=lambda model: model):
        attacked = against(trained, images, labels, view=view, attack=partial(attack, objective=objective))
        output = cas_outputs(trained, attacked)
        assert output.agrees.float().mean() > 0.9  # the head follows the mask
        return (output.logits.argmax(1) == labels).float().mean().item()

    naive = accuracy(cross_entropy)
    assert (trained(images).argmax(1) == labels).float().mean() > 0.95
    assert naive - accuracy(joint(cross_entropy)) > 0.15
    assert naive - accuracy(auxiliary(margin)) > 0.15
    assert naive - accuracy(cross_entropy, soft_mask(1.0)) > 0.15


def test_settings_can_be_described():
    record = describe(partial(pgd, objective=joint(margin, beta=4.0)))["objective"]
    assert record["objective"]["function"] == "margin"
    assert record["heads"] == {"function": "cas_heads", "beta": 4.0}
    assert describe(joint(partial(trades, attack=pgd)))["factor"] == 6.0


@pytest.mark.parametrize("beta", [-1.0, np.nan, np.inf])
def test_beta_out_of_range(beta):
    with pytest.raises(ValueError, match="beta must be"):
        joint(cross_entropy, beta=beta)


def test_networks_without_a_place_for_it(some):
    with pytest.raises(ValueError, match="CASBlock"):
        cas_outputs(small_cnn(), some[0])
    with pytest.raises(ValueError, match="CASBlock by hand"):
        with_cas(with_cas(small_cnn(), 10), 10)
    body = nn.Flatten()
    with pytest.raises(ValueError, match="CASBlock by hand"):
        with_cas(Classifier(body, nn.Linear(64, 10), normalize=Normalize(0.5, 0.5)), 10)


@pytest.mark.parametrize("objective", [joint, auxiliary])
def test_an_objective_of_several_draws_goes_around(cas_net, some, objective):
    """On logits that are there already every draw is the same, so inside it would average nothing."""
    with pytest.raises(ValueError, match=r"put eot around"):
        objective(eot(cross_entropy, 5))
    passes = []
    cas_net.head.register_forward_hook(lambda *_: passes.append(1))
    values = eot(objective(cross_entropy), 5)(cas_net, *some)
    assert len(passes) == 5
    torch.testing.assert_close(values, objective(cross_entropy)(cas_net, *some))


def test_bad_labels(unchecked, cas_net, some):
    with pytest.raises(ValueError, match="below the number of classes 10"):
        cas_outputs(cas_net, some[0], some[1] + 10)
    with pytest.raises(TypeError, match=r"labels must be an int64 tensor, got torch.uint8"):
        cas_outputs(cas_net, some[0], some[1].byte())


def test_first_weights_follow_from_the_generator_alone():
    plain, before = small_cnn(), torch.get_rng_state()

    def first(generator=None):
        masks = [m.auxiliary for m in with_cas(plain, 10, generator=generator).modules() if isinstance(m, CASBlock)]
        return [parameter.detach() for mask in masks for parameter in mask.parameters()]

    default, other = first(), first(seeded(1))
    assert all(map(torch.equal, default, first(seeded(0))))
    assert not any(map(torch.equal, default, other))
    assert not torch.equal(default[0], default[2])  # each block has its own
    assert torch.equal(torch.get_rng_state(), before)


def test_first_weights_are_those_of_a_linear_layer():
    """Drawn from the global generator they are what PyTorch draws, so that recorded trainings can be made again."""
    plain = small_cnn()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        masked = with_cas(plain, 10, generator=torch.default_generator)
        torch.manual_seed(4)
        expected = [nn.Linear(64, 10) for _ in range(2)]
    masks = [module.auxiliary for module in masked.modules() if isinstance(module, CASBlock)]
    for mask, layer in zip(masks, expected, strict=True):
        assert torch.equal(mask.weight, layer.weight)
        assert torch.equal(mask.bias, layer.bias)
