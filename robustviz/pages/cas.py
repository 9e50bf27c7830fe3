"""What the report says of CAS: naive against adaptive attacks on the shipped networks, and both figures of the paper."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from robustviz import checkpoints
from robustviz.data import digits
from robustviz.defenses.defense import at
from robustviz.evaluation.comparison import PUBLISHED, WORST_OF_ALL, Comparison, Entry, compare
from robustviz.features import ChannelStats
from robustviz.pages.report import Grid, Picture, Section
from robustviz.plots import plot_frequency, plot_magnitude, plot_panels
from robustviz.presets import usual_threat
from robustviz.studies.cas import AGREES, CAS_BATCH, COMMON, SAME, pair, statistics, under_attack
from robustviz.types import Threat

_SHOWN = ("standard", "AT", "AT + CAS")
"""Networks of the section, which come with the library."""


def cas_section(seed: int) -> Section:
    """Write about the shipped networks: naive against adaptive attacks, and both figures of the paper."""
    test_set, threat = digits("test"), usual_threat("digits")
    names = ("digits-standard", "digits-pgd", "digits-pgd-cas")
    standard, plain, masked = (checkpoints.load(name)[0] for name in names)
    models = dict(zip(_SHOWN, (standard, plain, masked), strict=True))
    few = test_set.subset(100)

    def entries(_: int) -> Iterator[tuple[str, Entry]]:
        yield _SHOWN[0], Entry(standard, partial(at, COMMON))
        yield from pair(_SHOWN[1], plain, masked, few, seed)

    strengths: dict[str, Any] = {"seeds": [seed], "epsilons": [threat.epsilon], "batch_size": CAS_BATCH}
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
            _attack_sentence(measured, threat, len(few)),
            magnitude_sentence(stats),
            frequency_sentence(stats),
        ],
        pictures(stats, threat),
        [Grid(*measured.rows(threat.epsilon))],
    )


def _attack_sentence(measured: Comparison, threat: Threat, count: int) -> str:
    """Say what CAS seems to gain, what is left of it, and whether that is what honest evaluations of it showed."""
    _, plain, masked = _SHOWN
    naive, worst = (
        [measured.mean(network, threat.epsilon, condition) for network in (plain, masked)]
        for condition in (PUBLISHED, WORST_OF_ALL)
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


_Pairs = Mapping[str, tuple[ChannelStats, ChannelStats]]
"""Channel statistics, clean and attacked, of each network."""


def magnitude_sentence(stats: _Pairs) -> str:
    """Say how the attack changes the mean magnitude, and whether that is the direction of the paper."""
    change = {name: b.mean_magnitude / a.mean_magnitude - 1 for name, (a, b) in stats.items()}
    largest = [(b.magnitude.max() / a.magnitude.max() - 1).item() for a, b in stats.values()]
    standard, hardened = change[_SHOWN[0]], change[_SHOWN[1]]
    expected = standard > 0 and abs(hardened) < standard
    return (
        "Under attack the mean magnitude of the channels changes by "
        f"{', '.join(f'{share:+.0%} ({name})' for name, share in change.items())}, and the largest magnitude by "
        f"{', '.join(f'{share:+.0%}' for share in largest)}. The paper reports that the attack raises the magnitude in "
        "standard networks and that adversarial training closes the gap: in the mean it is "
        f"{'so here too' if expected else 'not so here'}, in the largest channel it is "
        f"{'so' if largest[0] > 0 and abs(largest[1]) < largest[0] else 'not so'}."
    )


def frequency_sentence(stats: _Pairs) -> str:
    """Say how often channels are active, and whether CAS lowers that as in the paper."""
    frequency = {name: [s.mean_frequency for s in both] for name, both in stats.items()}
    plain, masked = (frequency[name] for name in _SHOWN[1:])
    lower = [after < before for before, after in zip(plain, masked, strict=True)]
    verdict = "it does" if all(lower) else "it does on clean images only" if lower[0] else "it does not"
    return (
        "A channel is active in an image if it exceeds a hundredth of the strongest one. The mean frequency, clean and "
        f"attacked, is {', '.join(f'{a:.0%} and {b:.0%} ({name})' for name, (a, b) in frequency.items())}. The paper "
        f"reports that CAS lowers the frequency: here {verdict}."
    )


def pictures(stats: _Pairs, threat: Threat) -> list[Picture]:
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
