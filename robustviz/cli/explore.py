"""The command `explore`: an explorer as one page that works without Python and without a network."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from robustviz.cli.app import Count, Radius, say, writable
from robustviz.cli.target import Opened, Target, called
from robustviz.data import DOWNLOADS, ImageSet, load
from robustviz.presets import usual_threat
from robustviz.types import Norm

if TYPE_CHECKING:
    from robustviz.explorers import Explorer

TRAINED = 1500
"""Most images that small networks are trained on."""

_Kind = Literal["attack", "features", "channels", "training", "wnll"]


def explore(
    kind: _Kind,
    /,
    *checkpoints: str,
    data: str | None = None,
    norm: Norm | None = None,
    epsilon: Radius = None,
    images: Count | None = None,
    shown: Count = 30,
    root: Path = DOWNLOADS,
    out: Path = Path("runs/explore.html"),
    force: bool = False,
) -> None:
    """Write an explorer as one page: move its controls in any browser, without Python and without a network.

    The page holds everything that was measured, so it can be mailed, or opened from a USB stick.

    Args:
        kind: attack compares networks on images under attacks of growing strength; features shows where an attack
            carries images in the feature space of one network; channels shows which channels an attack wakes up, and
            what attacks on CAS leave of it; training trains small networks against several radii, which takes a minute,
            and compares them; wnll shows which training images decide in a network with a WNLL head, under each attack.
        checkpoints: Run folders, .safetensors files, or names that `robustviz checkpoints` lists; default: networks
            that come with robustviz. training takes none.
        data: Data set, as `robustviz train` takes it; default: what the networks were trained on.
        norm: linf or l2; default: what the record of the first network says.
        epsilon: Middle of the strengths, such as 8/255; default: what the record of the first network says.
        images: Test images, drawn evenly from the classes; default: 100 of digits, 40 of larger pictures.
        shown: How many of them have pictures; with attack, and with wnll at most 20.
        root: Folder of downloaded data sets; default data/downloads.
        out: The page, a name ending in .html.
        force: Replace a page that is there.
    """
    _check_out(out, force)
    settings: dict[str, Any] = {"data": data, "norm": norm, "epsilon": epsilon, "images": images, "root": root}
    explorer = _trained(checkpoints, **settings) if kind == "training" else _opened(kind, checkpoints, shown, settings)
    say(f"{len(explorer.frames):,} settings measured\nopen {explorer.save(out, force=force)}")


def _opened(kind: _Kind, checkpoints: tuple[str, ...], shown: int, settings: dict[str, Any]) -> "Explorer":
    """Measure networks that are there, and make the explorer of them."""
    names = {called(name): name for name in checkpoints} or _usual(kind, settings["data"])
    if kind in ("features", "wnll") and len(names) > 1:
        raise ValueError(f"{kind} shows one network, got {len(names)}: {', '.join(names)}; make a page for each")
    images = settings["images"]
    opened = {word: Target(name, device="cpu", **settings).opened(images or 100) for word, name in names.items()}
    sets = {one.images.name for one in opened.values()}
    if len(sets) > 1:
        raise ValueError(f"checkpoints must be trained on one data set, got {', '.join(sorted(sets))}; leave some out")
    if images is None:
        opened = {word: replace(one, images=_fewer(one.images)) for word, one in opened.items()}
    first = next(iter(opened.values()))
    if first.threat.norm != "linf" and kind != "attack":
        raise ValueError(f"--norm must be linf with {kind}, got {first.threat.norm}; attack takes both")
    say(f"{', '.join(opened)} on {len(first.images)} test images of {first.images.name}")
    if kind == "wnll":
        return _voted(next(iter(names.values())), first, shown, settings["root"])
    return _measured(kind, opened, shown, settings["root"])


def _fewer(images: ImageSet) -> ImageSet:
    """Keep as many images as can be attacked in less than a minute."""
    from robustviz.explorers.networks import usual_count

    return images.subset(min(usual_count(images), len(images)))


def _usual(kind: _Kind, data: str | None) -> dict[str, str]:
    """Name the shipped networks that an explorer shows, by their words on the screen."""
    from robustviz.explorers.channels import usual_pair_names
    from robustviz.explorers.networks import usual_names, usual_set

    if kind == "channels":
        return usual_pair_names(data or "digits")
    if kind == "wnll":
        return {"WNLL": f"{data or 'digits'}-pgd-wnll"}
    names = usual_names(data or usual_set())
    return names if kind == "attack" else {"standard": names["standard"]}


def _measured(kind: _Kind, opened: Mapping[str, Opened], shown: int, root: Path) -> "Explorer":
    """Measure the frames of an explorer."""
    from robustviz.explorers import attack_explorer, channels_explorer, features_explorer
    from robustviz.explorers.attack import strengths_around

    networks, first = {word: one.model for word, one in opened.items()}, next(iter(opened.values()))
    strengths = strengths_around(first.threat)
    if kind == "attack":
        return attack_explorer(networks, first.images, strengths=strengths, norm=first.threat.norm, shown=shown)
    if kind == "channels":
        return channels_explorer(networks, first.images, strengths=strengths[::2])
    pool = load(first.data, "train", root=root)
    return features_explorer(first.model, pool.subset(min(1000, len(pool))), first.images, strengths=strengths)


def _voted(name: str, opened: Opened, shown: int, root: Path) -> "Explorer":
    """Ask who votes in a network with a WNLL head."""
    from robustviz.explorers import wnll_explorer
    from robustviz.explorers.training import grids_around
    from robustviz.geometry import template_source

    source = template_source(name, load(opened.data, "train", root=root))
    strengths = grids_around(opened.threat.epsilon)[1]
    return wnll_explorer(opened.model, source, opened.images, strengths=strengths, shown=min(shown, 20))


def _trained(
    checkpoints: tuple[str, ...],
    data: str | None,
    norm: Norm | None,
    epsilon: float | None,
    images: int | None,
    root: Path,
) -> "Explorer":
    """Train small networks against growing radii, and make the explorer of them."""
    from robustviz.explorers import training_explorer
    from robustviz.explorers.training import grids_around

    if checkpoints:
        raise ValueError(f"training makes its own networks and takes no checkpoints, got {', '.join(checkpoints)}")
    if norm not in (None, "linf"):
        raise ValueError(f"--norm must be linf with training, got {norm}; attack takes both")
    data = data or "digits"
    training, test = (load(data, part, root=root) for part in ("train", "test"))
    training, test = training.subset(min(TRAINED, len(training))), test.subset(min(images or 100, len(test)))
    say(f"networks trained on {len(training)} images of {training.name}, measured on {len(test)} test images")
    radii, strengths = grids_around(usual_threat(data, epsilon=epsilon).epsilon)
    return training_explorer(training, test, radii=radii, strengths=strengths)


def _check_out(out: Path, force: bool) -> None:
    """Refuse a page that cannot be written, before anything is measured."""
    if out.suffix != ".html":
        raise ValueError(f"--out must end in .html, got {out}")
    writable("--out", out.parent)
    if out.is_dir():
        raise ValueError(f"--out must be a file, but {out} is a folder; choose another name")
    if out.exists() and not force:
        raise FileExistsError(f"--out {out} is there; choose another name, or add --force to replace it")
