import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustviz.attacks import pgd, round_to_8bit
from robustviz.types import Threat

THREAT = Threat("linf", 0.15)


def decisions(net, images):
    with torch.no_grad():
        return net(images).argmax(1)


def test_what_is_saved_is_what_was_checked(digits, digits_net, tmp_path):
    images, labels = (digits[0][:30] * 255).round() / 255, digits[1][:30]
    attacked = pgd(digits_net, images, labels, threat=THREAT)
    record = round_to_8bit(digits_net, images, attacked, labels, threat=THREAT)
    assert record.after.sum() > 0
    paths = record.save(tmp_path / "attacked")
    read = np.stack([np.asarray(Image.open(path)) for path in paths])
    reader = torch.from_numpy(read)[:, None].float() / 255
    assert torch.equal(reader, record.images)
    assert (reader - attacked).abs().max() <= 0.5 / 255 + 1e-6
    near = (reader - images).abs().amax((1, 2, 3)) <= 0.15 + 1e-3 / 255
    assert torch.equal(record.after, (decisions(digits_net, reader) != labels) & near)
    assert torch.equal(record.before, decisions(digits_net, attacked) != labels)


def test_colors_survive(tmp_path):
    levels = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    net = nn.Sequential(nn.Flatten(), nn.Linear(60, 2))
    images = levels / 255
    paths = round_to_8bit(net, images, images, torch.tensor([0, 1])).save(tmp_path)
    assert [path.name for path in paths] == ["0000.png", "0001.png"]
    read = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))
    assert torch.equal(read.permute(0, 3, 1, 2), levels.byte())


def test_a_tiny_perturbation_is_lost_and_a_distant_one_does_not_count():
    """A plane 0.2 gray levels from the image: rounding goes back across it; the third goes out of the ball."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).double()
    net[1].weight.data = torch.tensor([[0.0], [255.0]], dtype=torch.float64)
    net[1].bias.data = torch.tensor([0.0, -100.2], dtype=torch.float64)
    images = torch.full((3, 1, 1, 1), 100 / 255, dtype=torch.float64)
    attacked = torch.tensor([100.3, 100.6, 103.0], dtype=torch.float64).view(3, 1, 1, 1) / 255
    record = round_to_8bit(net, images, attacked, torch.zeros(3, dtype=torch.long), threat=Threat("linf", 2 / 255))
    assert record.levels.flatten().tolist() == [100, 101, 103]
    assert record.before.tolist() == [True, True, False]
    assert record.after.tolist() == [False, True, False]


@pytest.mark.parametrize("epsilon", [0.1, 8 / 255, 0.4 / 255, 0.0])
def test_rounding_stays_within_the_threat_where_the_attack_did(digits_net, digits, epsilon):
    images, labels = digits[0][:40], digits[1][:40]
    threat = Threat("linf", epsilon)
    attacked = pgd(digits_net, images, labels, threat=threat, steps=3)
    record = round_to_8bit(digits_net, images, attacked, labels, threat=threat)
    change = (record.images - images).abs()
    assert (change <= epsilon + 0.5 / 255 + 1e-5).all()
    if epsilon * 255 >= 1:  # every ball of this size holds a gray level
        assert (change <= epsilon + 1e-5).all()
        assert torch.equal(record.after, decisions(digits_net, record.images) != labels)
