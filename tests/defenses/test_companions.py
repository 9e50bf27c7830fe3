"""MeanSparse, PSSiLU and EnResNet: their formulas against plain computations, and each as a whole defense."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from robustviz import checkpoints
from robustviz.attacks import pgd
from robustviz.data import digits
from robustviz.defenses import DEFENSES, present, sparsified
from robustviz.defenses.enresnet import BlockNoise, build_enresnet, without_noise
from robustviz.defenses.meansparse import (
    Moments,
    Sparsifier,
    gather,
    identity_through_sparsifiers,
    without_meansparse,
)
from robustviz.defenses.pssilu import PSSiLU, build_pssilu
from robustviz.models import initialized, resnet20, small_cnn
from robustviz.networks.places import activations
from robustviz.tensors import batch_dependent, drawing, evaluating, seeded
from robustviz.training import TrainConfig, train
from robustviz.types import Threat

THREAT = Threat("linf", 0.15)


@pytest.fixture(scope="module")
def hardened():
    return checkpoints.load("digits-pgd")[0]


@pytest.fixture(scope="module")
def small():
    return initialized(partial(resnet20, channels=1), 0).eval()


def answers(model, images, generator=None):
    with evaluating(model), drawing(model, generator), torch.no_grad():
        return model(images)


# MeanSparse.


def test_statistics_are_those_of_two_passes_over_batches_of_unequal_size(hardened):
    images = digits("train").subset(101).images
    sparse = sparsified(hardened, images, alpha=0.5, batch_size=17)
    seen = {}
    plain = without_meansparse(sparse)

    def keep(module, inputs, *, name):
        seen[name] = inputs[0].double().numpy()

    hooks = [
        place.module.register_forward_pre_hook(partial(keep, name=name)) for name, place in activations(plain).items()
    ]
    answers(plain, images)
    for hook in hooks:
        hook.remove()
    sparsifiers = [module for module in sparse.modules() if isinstance(module, Sparsifier)]
    assert len(sparsifiers) == len(seen) == 4
    for module, values in zip(sparsifiers, seen.values(), strict=True):
        np.testing.assert_allclose(module.mean, values.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(module.deviation, values.std((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_means_of_the_variances_of_batches_would_be_caught():
    """The trap: batches whose means differ. Averaging their variances loses most of the deviation."""
    batches = [torch.full((3, 1, 2), float(level)) + torch.tensor([-0.1, 0.1]) for level in range(4)]
    whole = Moments.of(batches[0])
    for batch in batches[1:]:
        whole = whole.plus(Moments.of(batch))
    exact = torch.cat(batches).double().std(unbiased=False)
    torch.testing.assert_close(whole.deviation.squeeze(), exact)
    averaged = torch.stack([batch.double().var(unbiased=False) for batch in batches]).mean().sqrt()
    assert averaged < 0.2 * exact


def test_the_formula_number_by_number():
    module = Sparsifier(2, alpha=1.5)
    module.mean.copy_(torch.tensor([0.0, 1.0]))
    module.deviation.copy_(torch.tensor([1.0, 0.1]))
    maps = torch.tensor([[[-1.6], [0.84]], [[1.4], [1.1]], [[0.2], [1.2]]])[..., None]
    expected = torch.tensor([[[-1.6], [0.84]], [[0.0], [1.0]], [[0.0], [1.2]]])[..., None]
    assert module(maps).equal(expected)


def test_without_a_band_the_bits_are_the_same(hardened):
    images = digits("test").subset(50).images
    sparse = sparsified(hardened, digits("train").images[:100], alpha=0.0)
    assert answers(sparse, images).equal(answers(hardened, images))
    assert answers(without_meansparse(sparsified(hardened, images, alpha=0.5)), images).equal(answers(hardened, images))


def test_gradients_of_the_operator_and_of_its_view():
    module = Sparsifier(1, alpha=1.0)
    module.deviation.fill_(0.5)
    maps = torch.tensor([-0.7, -0.2, 0.3, 0.9]).reshape(4, 1, 1, 1).requires_grad_()
    (own,) = torch.autograd.grad(module(maps).sum(), maps)
    assert own.flatten().tolist() == [1, 0, 0, 1]
    view = identity_through_sparsifiers(module)
    (through,) = torch.autograd.grad(view(maps).sum(), maps)
    assert through.flatten().tolist() == [1, 1, 1, 1]
    torch.testing.assert_close(view(maps), module(maps))
    assert not module.passes_gradient


def test_gathering_again_forgets_what_was_gathered(hardened):
    images = digits("train").images[:80]
    sparse = sparsified(hardened, images, alpha=2.0)
    before = {name: buffer.clone() for name, buffer in sparse.named_buffers()}
    gather(sparse, images)
    assert all(buffer.equal(before[name]) for name, buffer in sparse.named_buffers())


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_a_band_that_is_none_is_refused(hardened, alpha):
    with pytest.raises(ValueError, match="alpha must be finite and >= 0"):
        sparsified(hardened, digits("train").images[:10], alpha=alpha)


def test_two_sparsifiers_in_a_row_are_refused(hardened):
    sparse = sparsified(hardened, digits("train").images[:10], alpha=0.1)
    with pytest.raises(ValueError, match="without MeanSparse"):
        sparsified(sparse, digits("train").images[:10], alpha=0.1)


# PSSiLU.


def test_derivatives_are_right_also_in_the_parameters():
    module = PSSiLU().double()
    with torch.no_grad():
        module.a.fill_(-1.7)
        module.b.fill_(0.3)
    values = torch.linspace(-4, 4, 33, dtype=torch.float64).requires_grad_()
    parameters = dict(module.named_parameters())
    assert torch.autograd.gradcheck(
        lambda x, a, b: torch.func.functional_call(module, {"a": a, "b": b}, (x,)), (values, *parameters.values())
    )


def test_limits_of_the_shape():
    module, values = PSSiLU(), torch.linspace(-5, 5, 101)
    torch.testing.assert_close(module(values), nn.functional.silu(values))  # a = 1, b = 1e-8
    with torch.no_grad():
        module.a.fill_(-3.0)
        module.b.fill_(0.0)
    torch.testing.assert_close(module(values), values * torch.sigmoid(3 * values))
    with torch.no_grad():
        module.b.fill_(0.4)
    assert (module(torch.tensor([-5.0, -2.0])) > 0).all()  # negative inputs have positive outputs
    with torch.no_grad():
        module.b.fill_(5.0)
    assert module(values).isfinite().all()


def test_one_pair_acts_everywhere_and_is_not_decayed(small):
    model = build_pssilu(small)
    assert activations(model).keys() == activations(small).keys()
    pairs = [module for module in model.modules() if isinstance(module, PSSiLU)]
    assert len(pairs) == len(activations(model)) == 19
    assert all(pair.a is pairs[0].a and pair.b is pairs[0].b for pair in pairs)
    assert len(list(model.parameters())) == len(list(small.parameters())) + 2
    moved = deepcopy(model).double()
    assert len(list(moved.parameters())) == len(list(model.parameters()))
    train_set = digits("train").subset(40)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter is pairs[0].b or parameter is pairs[0].a)

    def nothing(model, images, labels, /, *, generator=None):
        return 0 * model(images).sum(1)

    with torch.no_grad():
        pairs[0].b.fill_(0.5)
    train(model, train_set.images, train_set.labels, TrainConfig(epochs=1, weight_decay=0.5), objective=nothing)
    assert (pairs[0].a.item(), pairs[0].b.item()) == (1.0, 0.5)  # decay alone could have moved them


# EnResNet.


def test_without_noise_it_is_the_resnet_bit_for_bit(small):
    images = digits("test").images[:5]
    plain = answers(small, images)
    assert answers(build_enresnet(small, scale=0.0), images).equal(plain)
    assert answers(without_noise(build_enresnet(small, scale=0.3)), images).equal(plain)
    assert not answers(build_enresnet(small, scale=0.3), images, seeded(1)).equal(plain)


def test_every_residual_block_has_noise_in_proportion_to_its_maps(small):
    model = build_enresnet(small, scale=0.25)
    noises = [module for module in model.modules() if isinstance(module, BlockNoise)]
    assert len(noises) == 9
    maps = torch.randn(6, 16, 32, 32, generator=seeded(0)) * torch.arange(1, 7)[:, None, None, None]
    noises[0].generator = seeded(4)
    change = noises[0](maps) - maps
    ratio = change.flatten(1).std(1) / maps.flatten(1).std(1)
    torch.testing.assert_close(ratio, torch.full((6,), 0.25), rtol=0.03, atol=0)
    released = BlockNoise(scale=0.25, over_batch=True)
    released.generator = seeded(4)
    spread = (released(maps) - maps).flatten(1).std(1)
    torch.testing.assert_close(spread, (0.25 * maps.std()).expand(6), rtol=0.03, atol=0)
    assert batch_dependent(released)
    assert not batch_dependent(model)


def test_members_are_averaged_and_differ(small):
    with torch.random.fork_rng([]):
        model = build_enresnet(small, members=3, scale=0.0)
    images = digits("test").images[:4]
    parts = [
        answers(small.replace(body=body, head=head), images)
        for body, head in zip(model.body.bodies, model.head.heads, strict=True)
    ]
    torch.testing.assert_close(answers(model, images), torch.stack(parts).mean(0))
    assert not parts[0].equal(parts[1])
    assert not parts[1].equal(parts[2])


def test_networks_side_by_side_are_not_put_side_by_side_again(small):
    with pytest.raises(ValueError, match="members must be 2"):
        build_enresnet(without_noise(build_enresnet(small, members=2)), members=3)


def test_draws_follow_the_generator(small):
    model, images = build_enresnet(small, scale=0.1), digits("test").images[:3]
    first = answers(model, images, seeded(7))
    assert answers(model, images, seeded(7)).equal(first)
    assert not answers(model, images, seeded(8)).equal(first)
    assert answers(model, images).equal(answers(model, images))


def test_only_residual_networks_have_blocks():
    with pytest.raises(ValueError, match="residual"):
        build_enresnet(initialized(small_cnn, 0))


# All of them.

COMPANIONS = [record for record in DEFENSES if record.name in ("meansparse", "pssilu", "enresnet")]
each = pytest.mark.parametrize("record", COMPANIONS, ids=lambda record: record.name)


@each
def test_a_network_is_built_again_from_its_settings(record, small):
    with torch.random.fork_rng([]):
        built = record.build(small)
        again = record.build(small, **record.settings(built))
    assert present(built) == (record,)
    assert {name: t.shape for name, t in built.state_dict().items()} == {
        name: t.shape for name, t in again.state_dict().items()
    }
    again.load_state_dict(built.state_dict())
    images = digits("test").images[:3]
    assert answers(again, images, seeded(1)).equal(answers(built, images, seeded(1)))


@each
def test_the_attacks_made_for_it_keep_the_threat_and_leave_no_trace(record, small):
    with torch.random.fork_rng([]):
        built = record.build(small).eval()
    images, labels = digits("test").images[:3], digits("test").labels[:3]
    weights = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    for name, contest in record.attacks(built, THREAT).items():
        assert contest.kind == "adaptive"
        attacked = contest.with_steps(2).attack(built, images, labels, generator=seeded(0))
        assert (attacked - images).abs().max() <= THREAT.epsilon + 1e-6, name
        assert attacked.min() >= 0
        assert attacked.max() <= 1
    assert all(tensor.equal(weights[name]) for name, tensor in built.state_dict().items())
    assert not any(getattr(module, "passes_gradient", False) for module in built.modules())


def test_attacks_made_for_meansparse_find_what_the_usual_one_misses(hardened):
    """The pattern of the literature: PGD on the network shows a gain over no defense, the adaptive set shows none."""
    test = digits("test").subset(150)
    sparse = sparsified(hardened, digits("train").images, alpha=0.6)

    def right(model, attack):
        attacked = attack(model, test.images, test.labels, generator=seeded(0))
        return answers(model, attacked).argmax(1) == test.labels

    stock = partial(pgd, threat=THREAT, steps=20)
    plain, naive = right(hardened, stock), right(sparse, stock)
    record = next(record for record in COMPANIONS if record.name == "meansparse")
    adaptive = [right(sparse, contest.with_steps(20).attack) for contest in record.attacks(sparse, THREAT).values()]
    assert naive.sum() > plain.sum()
    assert torch.stack([naive, *adaptive]).all(0).sum() < plain.sum()


def test_records_say_which_networks_have_them(hardened):
    assert present(hardened) == ()
    assert len({record.name for record in DEFENSES}) == len(DEFENSES)
    assert all(replace(record).name == record.name for record in DEFENSES)
