"""The attack explorer: one image, any attack and strength, and what each network says before and after."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ipywidgets
from torch import nn

from robustviz.attacks import pgd
from robustviz.data import ImageSet
from robustviz.evaluation import Sweep, sweep
from robustviz.presets import usual_threat
from robustviz.widgets.attack_picture import AttackPicture
from robustviz.widgets.attack_record import ATTACKS, AttackState, attack_image
from robustviz.widgets.networks import compared, usual_images
from robustviz.widgets.panel import Panel, chooser, slider
from robustviz.widgets.upload import Shape, shrink

STRENGTHS = (0.0, 1 / 3, 2 / 3, 1.0, 4 / 3, 2.0, 4.0)
"""Points of the accuracy curve, in units of the data set's usual radius."""


def attack_explorer(
    networks: Mapping[str, nn.Module] | None = None,
    images: ImageSet | None = None,
    state: AttackState | None = None,
    *,
    curve_size: int = 100,
) -> Panel:
    """Make a panel that attacks one image with any attack and shows what each network says before and after.

    Args:
        networks: By the names in the picture; None takes the shipped standard and adversarially trained digits.
        images: To choose from; None takes the test images of digits.
        state: What is shown first; None attacks the first image with PGD-10 at the data set's usual radius.
        curve_size: Images behind the curve of accuracy, which is measured once, with PGD-10.

    Raises:
        TypeError: If the networks are no dict of networks.
        ValueError: If there is no network, or the state cannot be shown.
    """
    networks = compared(networks)
    images = usual_images() if images is None else images
    usual = usual_threat(images.name).epsilon
    start = AttackState(epsilon=usual)
    curves = accuracy_curves(networks, images.subset(min(curve_size, len(images))), usual)
    controls = {
        "image": slider(0, len(images) - 1, 1, "image"),
        "attack": chooser(ATTACKS, "attack"),
        "epsilon": slider(0.0, 1.0, 0.01 if usual > 0.1 else 1 / 255, "epsilon"),
        "steps": slider(1, 100, 1, "steps"),
        "target": chooser([("any wrong class", None), *((name, i) for i, name in enumerate(images.classes))], "target"),
    }
    presets = {
        "one step": replace(start, attack="FGSM"),
        "ten steps": start,
        "nothing allowed": replace(start, epsilon=0.0),
        "everything allowed": replace(start, epsilon=1.0),
        "nearest mistake": replace(start, attack="Carlini-Wagner", steps=40),
        "towards a target": replace(start, target=int((images.labels[0] + 1) % len(images.classes)), steps=20),
    }
    shape = tuple(images.images.shape[1:])
    compute = partial(attack_image, networks, images)
    picture = AttackPicture(list(networks), images, curves)
    panel = Panel(start if state is None else state, controls, compute, picture, presets=presets)
    panel.children = (*panel.children[:-2], upload_row(panel, shape), *panel.children[-2:])
    return panel


def accuracy_curves(networks: Mapping[str, nn.Module], images: ImageSet, usual: float) -> dict[str, Sweep]:
    """Measure the accuracy of each network under PGD-10 over the radii of `STRENGTHS`."""
    strengths = sorted({min(1.0, share * usual) for share in STRENGTHS} | {1.0})
    return {name: sweep(network, images.images, images.labels, pgd, strengths) for name, network in networks.items()}


def upload_row(panel: Panel, shape: Shape) -> ipywidgets.HBox:
    """Make the buttons that bring in a picture of one's own and take it away again."""
    upload = ipywidgets.FileUpload(accept="image/*", description="own picture", icon="")
    invert = ipywidgets.Checkbox(description="invert it: black on white", indent=False, layout={"width": "auto"})
    remove = ipywidgets.Button(description="back to the test images", layout={"width": "auto"})

    def take(change: Any) -> None:
        if change["new"]:
            with panel.telling():
                file = change["new"][-1]
                own = shrink(bytes(file["content"]), shape, name=file["name"], invert=invert.value)
                panel.show(replace(panel.state(), own=own))
            upload.value = ()  # so that the same file can be taken again

    def leave(button: Any) -> None:
        with panel.telling():
            panel.show(replace(panel.state(), own=""))

    upload.observe(take, "value")
    remove.on_click(leave)
    return ipywidgets.HBox([upload, remove, invert])
