"""CAS against the same networks without it: what stock attacks see, what attacks made for it find, what channels do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Generator, nn

from robustviz import checkpoints
from robustviz.attacks import against, pgd, square, transfer
from robustviz.attacks.views import soft_mask
from robustviz.data import ImageSet, digits
from robustviz.defenses.assembly import has_cas
from robustviz.defenses.cas import auxiliary, cas_outputs, joint
from robustviz.evaluation import evaluate
from robustviz.evaluation.comparison import (
    PUBLISHED,
    WORST,
    Comparison,
    Contest,
    Entry,
    compare,
    describe_contests,
    with_threat,
)
from robustviz.features import ChannelStats, channel_stats, last_stage, snapshot
from robustviz.models import Classifier
from robustviz.objectives import cross_entropy, margin
from robustviz.pages.report import Grid, Picture, Section
from robustviz.plots import plot_frequency, plot_magnitude, plot_panels
from robustviz.presets import TrainingAttack, usual_threat
from robustviz.records import describe
from robustviz.tensors import evaluating, seeded
from robustviz.training import TrainConfig
from robustviz.training.stages import harden
from robustviz.types import LINF_8, Images, Labels, Objective, Threat

EPSILONS = (0.1, 0.15)
BATCH = 512

TRAINING: Mapping[str, TrainingAttack] = {"standard": "none", "AT": "pgd", "TRADES": "trades", "MART": "mart"}
"""How the networks are trained, each without and with CAS; AT is adversarial training (Madry et al.)."""


def small_steps(
    model: nn.Module,
    images: Images,
    labels: Labels,
    /,
    *,
    threat: Threat = LINF_8,
    steps: int = 40,
    objective: Objective = cross_entropy,
    generator: Generator | None = None,
) -> Images:
    """PGD with steps of a tenth of epsilon, whatever epsilon is; arguments, result and errors are those of `pgd`."""
    step_size = threat.epsilon / 10
    settings: dict[str, Any] = {"steps": steps, "step_size": step_size, "objective": objective}
    return pgd(model, images, labels, threat=threat, **settings, generator=generator)


COMMON: Mapping[str, Contest] = {
    "final logits only": Contest(small_steps, "published"),
    "final logits only, margin": Contest(partial(small_steps, objective=margin)),
    "Square": Contest(partial(square, steps=300)),
}
"""What every network is measured with: attacks that know nothing of CAS. The first is what stock tools do."""

ADAPTIVE: Mapping[str, Contest] = {
    **{
        f"joint, beta = {beta:g}": Contest(partial(small_steps, objective=joint(beta=beta)))
        for beta in (0.5, 2.0, 10.0, 100.0)
    },
    "auxiliary only": Contest(partial(small_steps, objective=auxiliary())),
    **{
        name: Contest(partial(against, view=soft_mask(1.0), attack=partial(small_steps, objective=objective)))
        for name, objective in {
            "soft mask, final logits": cross_entropy,
            "soft mask, joint": joint(),
            "soft mask, margin": margin,
        }.items()
    },
}
"""What a network with CAS meets besides; soft masks are BPDA with temperature 1."""

AGREES = "final decision is the auxiliary one, attacked"
SAME = f"worst of the {len(COMMON)} attacks that every network meets, epsilon {usual_threat('digits').epsilon}"
"""Names of remarks."""


def compare_cas(seeds: Sequence[int], say: Callable[[str], Any] = lambda message: None) -> list[Comparison]:
    """Compare networks on digits without and with CAS: natural training, adversarial training, TRADES and MART.

    The remarks are shares: how often final and auxiliary decision agree, what the attacks that every network meets
    leave together, and the channel statistics, where the magnitude, which has the unit of its layer, stands as its
    change under attack relative to the clean one.

    Args:
        seeds: Each trains the networks anew.
        say: Called with a line of text at every step.

    Returns:
        One comparison, named `cas`.
    """
    training_set, test_set = digits("train"), digits("test")
    settings = {
        "data": "digits",
        "contests": describe_contests({**COMMON, **ADAPTIVE}),
        "training": describe(TrainConfig()),
        "threat": describe(usual_threat("digits")),
    }
    entries = partial(trained_entries, training_set, test_set)
    strengths: dict[str, Any] = {"seeds": seeds, "epsilons": EPSILONS, "batch_size": BATCH}
    return [compare("cas", entries, test_set, settings=settings, say=say, **strengths)]


def trained_entries(training_set: ImageSet, test_set: ImageSet, seed: int) -> Iterator[tuple[str, Entry]]:
    """Networks of every kind of training, without and with CAS."""
    for name, attack in TRAINING.items():
        train = partial(
            harden,
            training_set,
            network="small_cnn",
            config=TrainConfig(seed=seed),
            threat=usual_threat("digits"),
            attack=attack,
        )
        yield from pair(name, train().model, train(defense="cas").model, test_set, seed)


def pair(
    name: str, plain: Classifier, masked: Classifier, test_set: ImageSet, seed: int
) -> Iterator[tuple[str, Entry]]:
    """Two networks trained alike, without and with CAS; images are transferred from the first to the second."""
    transferred = Contest(partial(transfer, source=plain, attack=small_steps))
    contests = {**COMMON, **ADAPTIVE, "transfer from the network without CAS": transferred}
    for network, model, met in ((name, plain, COMMON), (f"{name} + CAS", masked, contests)):
        found = remarks(model, test_set, seed)
        yield network, Entry(model, met, {f"{network}: {key}": share for key, share in found.items()})


def remarks(model: Classifier, test_set: ImageSet, seed: int) -> dict[str, float]:
    """Channel statistics; with CAS also how often both decisions agree and what the common attacks leave together."""
    attacked = under_attack(model, test_set, seed)
    clean, moved = (statistics(model, images) for images in (test_set, attacked))
    found = {
        "mean magnitude, attacked / clean - 1": moved.mean_magnitude / clean.mean_magnitude - 1,
        "largest magnitude, attacked / clean - 1": (moved.magnitude.max() / clean.magnitude.max() - 1).item(),
    }
    for condition, stats in (("clean", clean), ("attacked", moved)):
        found |= {
            f"mean frequency, {condition}": stats.mean_frequency,
            f"channels above one half, {condition}": stats.above_half / len(stats.frequency),
            f"uniformity, {condition}": stats.uniformity,
        }
    if has_cas(model):
        with evaluating(model), torch.no_grad():
            found[AGREES] = cas_outputs(model, attacked.images).agrees.double().mean().item()
        attacks = {label: with_threat(contest.attack, usual_threat("digits")) for label, contest in COMMON.items()}
        settings: dict[str, Any] = {"batch_size": BATCH, "generator": seeded(seed)}
        found[SAME] = evaluate(model, test_set.images, test_set.labels, attacks, **settings).worst_case()
    return found


def under_attack(model: Classifier, test_set: ImageSet, seed: int) -> ImageSet:
    """Attack with PGD-20, on the joint objective where there is one: the images of the channel statistics."""
    objective = joint() if has_cas(model) else cross_entropy
    attack = partial(small_steps, threat=usual_threat("digits"), steps=20, objective=objective)
    images = attack(model, test_set.images, test_set.labels, generator=seeded(seed))
    return ImageSet(images, test_set.labels, test_set.classes, test_set.name)


def statistics(model: Classifier, image_set: ImageSet) -> ChannelStats:
    """Channel statistics of the last stage, before the last mask, over all images."""
    layer, condition = last_stage(model), image_set.name
    return channel_stats(snapshot(model, image_set.images, image_set.labels, layer=layer, condition=condition))


SHOWN = ("standard", "AT", "AT + CAS")
"""Networks of the section, which come with the library."""


def cas_section(seed: int) -> Section:
    """Write about the shipped networks: naive against adaptive attacks, and both figures of the paper."""
    test_set, threat = digits("test"), usual_threat("digits")
    names = ("digits-standard", "digits-pgd", "digits-pgd-cas")
    standard, plain, masked = (checkpoints.load(name)[0] for name in names)
    models = dict(zip(SHOWN, (standard, plain, masked), strict=True))
    few = test_set.subset(100)

    def entries(_: int) -> Iterator[tuple[str, Entry]]:
        yield SHOWN[0], Entry(standard, COMMON)
        yield from pair(SHOWN[1], plain, masked, few, seed)

    strengths: dict[str, Any] = {"seeds": [seed], "epsilons": [threat.epsilon], "batch_size": BATCH}
    measured = compare("cas", entries, few, settings={}, **strengths)
    stats = {
        name: (statistics(model, test_set), statistics(model, under_attack(model, test_set, seed)))
        for name, model in models.items()
    }
    return Section(
        "A network that suppresses channels (CAS)",
        [
            "A second, linear classifier inside the network looks at how strongly each channel responds, decides, and "
            "multiplies every channel by its own weight for that class (Bai et al., arXiv 2103.08307). The choice of "
            "the class has no gradient. An attack on the final logits alone, which is what stock tools do, does not see "
            "it; the adaptive attacks raise the loss of both classifiers, or let the gradient pass a soft choice.",
            attack_sentence(measured, threat, len(few)),
            magnitude_sentence(stats),
            frequency_sentence(stats),
        ],
        pictures(stats, threat),
        [Grid(*measured.rows(threat.epsilon))],
    )


def attack_sentence(measured: Comparison, threat: Threat, count: int) -> str:
    """Say what CAS seems to gain, what is left of it, and whether that is what honest evaluations of it showed."""
    _, plain, masked = SHOWN
    naive, worst = (
        [measured.mean(network, threat.epsilon, condition) for network in (plain, masked)]
        for condition in (PUBLISHED, WORST)
    )
    every = [len(measured.attacks(network)) for network in (plain, masked)]
    same, agrees = (measured.remarks[f"{masked}: {key}"][0] for key in (SAME, AGREES))
    flattered = naive[1] - naive[0] > 0.05 and worst[1] - naive[1] < -0.05
    return (
        f"Of {count} test images at epsilon = {threat.epsilon}, the naive attack leaves {naive[0]:.0%} right with "
        f"adversarial training (AT) and {naive[1]:.0%} with AT + CAS; the same {len(COMMON)} attacks on both leave "
        f"{worst[0]:.0%} and {same:.0%}; all {every[1]} that apply to CAS leave {worst[1]:.0%} (against {every[0]} for "
        f"AT, so compare with care). {'So the' if flattered else 'Here it is not clear that the'} naive attack flatters "
        f"CAS. On {agrees:.0%} of the attacked images the final decision is that of the auxiliary classifier, so "
        "whoever fools the auxiliary classifier fools the network."
    )


Pairs = Mapping[str, tuple[ChannelStats, ChannelStats]]
"""Channel statistics, clean and attacked, of each network."""


def magnitude_sentence(stats: Pairs) -> str:
    """Say how the attack changes the mean magnitude, and whether that is the direction of the paper."""
    change = {name: b.mean_magnitude / a.mean_magnitude - 1 for name, (a, b) in stats.items()}
    largest = [(b.magnitude.max() / a.magnitude.max() - 1).item() for a, b in stats.values()]
    standard, hardened = change[SHOWN[0]], change[SHOWN[1]]
    expected = standard > 0 and abs(hardened) < standard
    return (
        "Under attack the mean magnitude of the channels changes by "
        f"{', '.join(f'{share:+.0%} ({name})' for name, share in change.items())}, and the largest magnitude by "
        f"{', '.join(f'{share:+.0%}' for share in largest)}. The paper reports that the attack raises the magnitude in "
        "standard networks and that adversarial training closes the gap: in the mean it is "
        f"{'so here too' if expected else 'not so here'}, in the largest channel it is "
        f"{'so' if largest[0] > 0 and abs(largest[1]) < largest[0] else 'not so'}."
    )


def frequency_sentence(stats: Pairs) -> str:
    """Say how often channels are active, and whether CAS lowers that as in the paper."""
    frequency = {name: [s.mean_frequency for s in both] for name, both in stats.items()}
    plain, masked = (frequency[name] for name in SHOWN[1:])
    lower = [after < before for before, after in zip(plain, masked, strict=True)]
    verdict = "it does" if all(lower) else "it does on clean images only" if lower[0] else "it does not"
    return (
        "A channel is active in an image if it exceeds a hundredth of the strongest one. The mean frequency, clean and "
        f"attacked, is {', '.join(f'{a:.0%} and {b:.0%} ({name})' for name, (a, b) in frequency.items())}. The paper "
        f"reports that CAS lowers the frequency: here {verdict}."
    )


def pictures(stats: Pairs, threat: Threat) -> list[Picture]:
    """Draw both figures of the paper, one panel for each network."""
    images = f"all test images, attacked by PGD-20 at epsilon = {threat.epsilon}"
    return [
        Picture.of(
            "cas-magnitude",
            plot_panels(plot_magnitude, stats),
            f"Mean activation of each channel, clean and attacked, for three networks. {magnitude_sentence(stats)}",
            f"Activation magnitude of the last stage over {images}. Each condition is sorted on its own, so one place "
            "holds two channels. Crosses are attacked.",
        ),
        Picture.of(
            "cas-frequency",
            plot_panels(plot_frequency, stats),
            f"Share of images that activate each channel, clean and attacked. {frequency_sentence(stats)}",
            f"Activation frequency of the last stage over {images}. Channels keep their order by clean frequency, so "
            "a cross above the profile is a channel that the attack wakes up. The dotted line marks one half.",
        ),
    ]
