"""The channel explorer: how strongly and how often channels respond, and what each attack on CAS leaves of it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from robustviz import checkpoints
from robustviz.attacks import against, soft_mask
from robustviz.data import ImageSet
from robustviz.defenses.cas import auxiliary, fine_pgd, has_cas, joint
from robustviz.defenses.defense import Contest
from robustviz.evaluation import wilson
from robustviz.explorers.attack import strengths_around
from robustviz.explorers.channels_chart import draw_channels
from robustviz.explorers.control import Control, in_levels, strength_control, strength_presets
from robustviz.explorers.explorer import Explorer, Row
from robustviz.explorers.frames import BUDGET, Frames, Value, check_budget
from robustviz.explorers.networks import compared, usual_images
from robustviz.explorers.pictures import rounded
from robustviz.features import FeatureSnapshot, channel_stats, last_stage, snapshot
from robustviz.presets import usual_threat
from robustviz.tensors import seeded
from robustviz.types import Images, Threat

FINAL = "final logits"

CHANNEL_ATTACKS: dict[str, Callable[..., Images]] = {
    FINAL: fine_pgd,
    "joint": partial(fine_pgd, objective=joint()),
    "auxiliary": partial(fine_pgd, objective=auxiliary()),
    "soft mask": partial(against, view=soft_mask(1.0), attack=fine_pgd),
}
"""What PGD-40 follows: the network's answer, that and its auxiliary classifiers, these alone, or the answer with masks
that have a gradient. Networks without CAS have only the first."""

EVERY = "all classes"
THRESHOLD = 0.01


def usual_pair_names(data: str) -> dict[str, str]:
    """Name the shipped adversarially trained networks of a data set, without and with CAS."""
    return {"adversarially trained": f"{data}-pgd", "with CAS": f"{data}-pgd-cas"}


def usual_pair(data: str = "digits") -> dict[str, nn.Module]:
    """Load these networks.

    Raises:
        FileNotFoundError: If none are shipped for the data set.
    """
    return {word: checkpoints.load(name)[0] for word, name in usual_pair_names(data).items()}


def channels_explorer(
    networks: Mapping[str, nn.Module] | None = None,
    images: ImageSet | None = None,
    *,
    strengths: Sequence[float] | None = None,
    budget: int = BUDGET,
) -> Explorer:
    """Measure channels under attacks of growing strength and return the explorer that shows them.

    Args:
        networks: By the names on the screen; None takes shipped networks of digits, adversarially trained and with CAS.
        images: None takes 200 test images of digits.
        strengths: Radii in L-infinity, growing from 0; None takes eleven, up to twice the usual radius.
        budget: Most frames: attacks x strengths x classes x networks.

    Raises:
        TypeError: If the networks are no dict of networks.
        ValueError: If there is no network or strength, or the grid exceeds its budget.
    """
    networks = usual_pair() if networks is None else compared(networks)
    images = usual_images(200, "digits") if images is None else images
    return show_channels(channel_frames(networks, images, strengths=strengths, budget=budget))


def channel_frames(
    networks: Mapping[str, nn.Module],
    images: ImageSet,
    *,
    strengths: Sequence[float] | None = None,
    seed: int = 0,
    budget: int = BUDGET,
) -> Frames:
    """Attack all images in every way at every strength, and keep the statistics of each network's last stage.

    Args:
        networks: By the names on the screen; left as they were.
        images: Behind the statistics.
        strengths: Radii in L-infinity, growing from 0; None takes eleven, up to twice the usual radius.
        seed: Seed of the random starts.
        budget: Most frames.

    Returns:
        Frames over attack, strength and class, of which the first is all. For each network n there are `magnitude n`
        and `frequency n` (attack, strength, class, channel); `accuracy` has the networks first. What a network without
        CAS answers is the same under every attack. `count` is the number of images of each class.

    Raises:
        ValueError: If the grid exceeds its budget, or a network has no stage that ends in an activation.
    """
    radii = strengths_around(usual_threat(images.name))[::2] if strengths is None else tuple(map(float, strengths))
    present = sorted(set(images.labels.tolist()))
    names = (EVERY, *(images.classes[label] for label in present))
    check_budget(
        {"attacks": len(CHANNEL_ATTACKS), "strengths": len(radii), "classes": len(names), "networks": len(networks)},
        budget,
    )
    jobs = [(n, name, radius) for n in networks for name in CHANNEL_ATTACKS for radius in radii]
    found: dict[tuple[str, str, float], FeatureSnapshot] = {}
    for n, name, radius in tqdm(jobs, desc="channel frames", unit="attack", leave=False):
        if name == FINAL or has_cas(networks[n]):
            found[n, name, radius] = _snapshot(networks[n], images, CHANNEL_ATTACKS[name], radius, seed)
        else:
            found[n, name, radius] = found[n, FINAL, radius]
    arrays: dict[str, Tensor] = {"count": torch.tensor([len(images), *((images.labels == c).sum() for c in present)])}
    shape = (len(CHANNEL_ATTACKS), len(radii), len(names))
    accuracies = []
    for place, n in enumerate(networks):
        taken = [found[n, name, radius] for name in CHANNEL_ATTACKS for radius in radii]
        stats = [channel_stats(one, threshold=THRESHOLD, label=label) for one in taken for label in (None, *present)]
        arrays[f"magnitude {place}"] = torch.stack([one.magnitude for one in stats]).float().reshape(*shape, -1)
        arrays[f"frequency {place}"] = torch.stack([one.frequency for one in stats]).float().reshape(*shape, -1)
        right = [(one.predictions == one.labels).double().cpu() for one in taken]
        picks = [torch.ones(len(images), dtype=torch.bool), *(images.labels.cpu() == label for label in present)]
        accuracies.append(torch.stack([one[pick].mean() for one in right for pick in picks]).reshape(shape))
    arrays["accuracy"] = torch.stack(accuracies)
    grid: dict[str, tuple[Value, ...]] = {"attack": tuple(CHANNEL_ATTACKS), "strength": radii, "label": names}
    return Frames("channels", grid, arrays, {"networks": list(networks), "data": images.name, "seed": seed})


def _snapshot(
    network: nn.Module, images: ImageSet, attack: Callable[..., Images], radius: float, seed: int
) -> FeatureSnapshot:
    contest = Contest(attack).at(Threat("linf", radius))
    attacked = contest.attack(network, images.images, images.labels, generator=seeded(seed))
    return snapshot(network, attacked, images.labels, layer=last_stage(network), condition="attacked")


def show_channels(frames: Frames) -> Explorer:
    """Make the channel explorer of frames that were measured, or loaded."""
    strengths, unit = in_levels(frames.grid["strength"], "linf")
    frames = Frames(frames.kind, {**frames.grid, "strength": strengths}, frames.arrays, frames.about)
    attacks, classes = frames.grid["attack"], frames.grid["label"]
    named = tuple(str(one) if place == 0 else f"class {one}" for place, one in enumerate(classes))
    controls = (
        Control("attack", "Attack on", attacks, attacks[0]),
        strength_control(strengths, unit),
        Control("label", "Images of", classes, classes[0], named),
    )
    rows = _rows(frames)
    return Explorer(
        title=f"Channels on {frames.about['data']}",
        lead="Which channels does an attack wake up? Gray: clean; crosses: attacked; thin lines: attack on the final "
        "logits.",
        frames=frames,
        controls=controls,
        presets=strength_presets(strengths) | {f"attack on {name}": {"attack": name} for name in attacks},
        captions=_captions(frames, unit),
        tables={"rows": rows, "clean": _clean(frames), "curves": _curves(frames)},
        draw=partial(draw_channels, frames, unit),
        signals={"group": controls[2].place},
    )


def _orders(frames: Frames, place: int) -> Tensor:
    """Order of a network's channels by their clean frequency, for every class."""
    return frames.arrays[f"frequency {place}"][0, 0].argsort(dim=-1, descending=True, stable=True)


def _rows(frames: Frames) -> list[Row]:
    """Return a row for every network and frame: magnitudes, largest first, and frequencies in the clean order."""
    rows = []
    for place, name in enumerate(frames.about["networks"]):
        magnitude = frames.arrays[f"magnitude {place}"].flatten(0, 2).sort(dim=-1, descending=True).values
        order = _orders(frames, place).repeat(len(frames) // len(frames.grid["label"]), 1)
        frequency = 100 * frames.arrays[f"frequency {place}"].flatten(0, 2).gather(1, order)
        for k in range(len(frames)):
            rows.append({"k": k, "n": name, "m": rounded(magnitude[k]), "f": rounded(frequency[k])})
    return rows


def _clean(frames: Frames) -> list[Row]:
    """Return a row for every network and class: the same without attack."""
    rows = []
    for place, name in enumerate(frames.about["networks"]):
        for group, order in enumerate(_orders(frames, place)):
            magnitude = frames.arrays[f"magnitude {place}"][0, 0, group].sort(descending=True).values
            frequency = 100 * frames.arrays[f"frequency {place}"][0, 0, group][order]
            rows.append({"g": group, "n": name, "m": rounded(magnitude), "f": rounded(frequency)})
    return rows


def _curves(frames: Frames) -> list[Row]:
    rows: list[Row] = []
    accuracy, count = frames.arrays["accuracy"], frames.arrays["count"].tolist()
    for k in range(len(frames)):
        state = frames.state(k)
        group = frames.grid["label"].index(state["label"])
        for share, name in zip(accuracy.flatten(1)[:, k].tolist(), frames.about["networks"], strict=True):
            low, high = wilson(share, count[group])
            y = {"y": rounded(100 * share), "low": rounded(100 * low), "high": rounded(100 * high)}
            rows.append({"a": state["attack"], "g": group, "n": name, "x": state["strength"], **y})
    return rows


def _captions(frames: Frames, unit: str) -> list[str]:
    """Say for each frame how accurate each network is, and how often its channels are active."""
    captions, size = [], len(frames.grid["label"])
    accuracy, counts = frames.arrays["accuracy"].flatten(1), frames.arrays["count"].tolist()
    means = [frames.arrays[f"frequency {place}"].mean(-1).flatten() for place in range(len(accuracy))]
    for k in range(len(frames)):
        state = frames.state(k)
        which = "" if k % size == 0 else f" of class {state['label']}"
        told = "; ".join(
            f"{name} {accuracy[place, k]:.0%} right, a channel is active in {means[place][k]:.0%} of the images on "
            f"average, clean {means[place][k % size]:.0%}"
            for place, name in enumerate(frames.about["networks"])
        )
        strength = f"strength {state['strength']}{unit}"
        captions.append(f"{counts[k % size]} images{which}, attack on {state['attack']}, {strength}: {told}.")
    return captions
