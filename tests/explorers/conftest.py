"""Small frames that are measured once for all tests of explorers."""

from functools import partial

import pytest

from robustviz import checkpoints
from robustviz.attacks import fgsm, pgd
from robustviz.data import digits as digits_set
from robustviz.explorers.attack import attack_frames
from robustviz.explorers.attack_view import show_attack
from robustviz.explorers.networks import usual_networks
from robustviz.explorers.training import training_frames
from robustviz.explorers.wnll import wnll_frames
from robustviz.explorers.wnll_view import USUAL
from robustviz.geometry import template_source

ATTACKS = {"PGD": partial(pgd, steps=4), "FGSM": fgsm}
STRENGTHS = (0.0, 0.05, 0.1, 0.15, 0.2)
GRAPHS = (5, 15)


@pytest.fixture(scope="session")
def attacks():
    """The two attacks of the frames."""
    return ATTACKS


@pytest.fixture(scope="session")
def networks():
    """The two shipped networks of digits. Do not change them."""
    return usual_networks("digits")


@pytest.fixture(scope="session")
def some():
    """Twenty test images of digits."""
    return digits_set("test").subset(20)


@pytest.fixture(scope="session")
def frames(networks, some):
    """Two networks, two attacks, five strengths, six of twenty images with pictures."""
    return attack_frames(networks, some, attacks=ATTACKS, strengths=STRENGTHS, shown=6)


@pytest.fixture(scope="session")
def few():
    """Ninety-six images of digits to train on."""
    return digits_set("train").subset(96)


@pytest.fixture(scope="session")
def trained(few, some, tmp_path_factory):
    """Two radii, two numbers of epochs, three strengths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTVIZ_CACHE", str(tmp_path_factory.mktemp("cache")))
        return training_frames(few, some, radii=(0.0, 0.1), epochs=(1, 3), strengths=(0.0, 0.05, 0.1))


@pytest.fixture(scope="session")
def voting():
    """The shipped network of digits with a WNLL head, and what its template was drawn from. Do not change it."""
    return checkpoints.load(USUAL)[0], template_source(USUAL, digits_set("train"))


@pytest.fixture(scope="session")
def ballots(voting, some):
    """Four attacks, two graphs, three strengths, five of twenty images with voters."""
    return wnll_frames(*voting, some, neighbors=GRAPHS, strengths=STRENGTHS[::2], shown=5)


@pytest.fixture(scope="session")
def explorer(frames):
    return show_attack(frames)
