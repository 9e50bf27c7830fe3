"""Groups of options of `train`: the attacker during training, and how long and how fast to learn."""

from dataclasses import dataclass

from cyclopts import Parameter

from robustviz.cli.app import Radius, Seed
from robustviz.presets import TrainingAttack
from robustviz.training import Precision, Schedule
from robustviz.types import Norm


@Parameter(name="*")
@dataclass(frozen=True)
class Opponent:
    """The attacker during training.

    Attributes:
        attack: none trains on clean images; pgd on images attacked again in every step (Madry et al.); fgsm-rs does so
            with one step from a random start (Wong et al.), five times faster, while PGD watches whether it collapses;
            trades and mart weigh clean against attacked images in their objectives, and attack with PGD.
        epsilon: How far the attacker may go, such as 8/255, on pixels in [0, 1]. Default: 0.15 for digits, 0.3 for
            mnist, 0.1 for fashionmnist, 8/255 otherwise; in l2 1.0, 2.0, 1.0 and 0.5.
        norm: linf bounds every pixel, l2 the Euclidean length of the change.
        steps: Steps of PGD.
        step_size: Length of a step; default 2.5 * epsilon / steps.
    """

    attack: TrainingAttack = "none"
    epsilon: Radius = None
    norm: Norm = "linf"
    steps: int = 10
    step_size: Radius = None


@Parameter(name="*")
@dataclass(frozen=True)
class Course:
    """How long and how fast to learn.

    Attributes:
        epochs: Passes through the training images.
        batch_size: Images in one update.
        learning_rate: The largest learning rate.
        schedule: How the learning rate changes.
        weight_decay: L2 penalty on the weights.
        precision: bf16 computes faster on hardware made for it; fp32 switches that off; auto decides.
        seed: Decides weights, order and random starts.
    """

    epochs: int = 15
    batch_size: int = 128
    learning_rate: float = 0.1
    schedule: Schedule = "one-cycle"
    weight_decay: float = 5e-4
    precision: Precision = "auto"
    seed: Seed = 0


USUAL_OPPONENT, USUAL_COURSE = Opponent(), Course()
