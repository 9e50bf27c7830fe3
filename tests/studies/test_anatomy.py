"""What the switches of the anatomy change, and that they change nothing else."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from robustviz import checkpoints, cli
from robustviz.attacks import carlini_wagner, ifgsm, linear_head, surrogate_head
from robustviz.data import digits
from robustviz.geometry.votes import template_source
from robustviz.pages.anatomy import anatomy_section, reading
from robustviz.studies.anatomy import AS_PUBLISHED, CW, SWITCHES, Anatomy, SwitchRow, anatomy
from robustviz.studies.released import attacked_template, batch_statistics, released_ifgsm, resorted, scaled
from robustviz.tensors import seeded
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def network():
    return checkpoints.load("digits-pgd-wnll")[0]


@pytest.fixture(scope="module")
def source():
    return template_source("digits-pgd-wnll", digits("train"))


@pytest.fixture(scope="module")
def found(network, source):
    return anatomy(network, digits("test").subset(60), source, threat=THREAT, steps=3, cw_images=20, cw_steps=10)


def test_the_sorted_loss_is_that_of_a_plain_loop():
    """Row i of the sorted batch gives its value, and its gradient goes to row i of the batch as it was."""
    outputs = torch.randn(7, 4, generator=seeded(0), dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    labels[::2] = outputs.argmax(1)[::2]
    scores, after = resorted(outputs, labels)
    values = F.cross_entropy(scores, after, reduction="none")
    (gradient,) = torch.autograd.grad(values.sum(), outputs)
    wrong = [i for i in range(7) if int(outputs[i].argmax()) != int(labels[i])]
    right = [i for i in range(7) if i not in wrong]
    assert wrong
    assert len(right) >= 4
    for place, old in enumerate(wrong + right):
        row = outputs.detach()[old] if old in wrong else F.one_hot(labels[old], 4).double()
        assert after[place] == labels[old]
        expected = -row.log_softmax(0)[labels[old]]
        torch.testing.assert_close(values[place], expected)
        torch.testing.assert_close(gradient[place], row.softmax(0) - F.one_hot(labels[old], 4))


def test_a_batch_that_is_sorted_already_is_attacked_as_published():
    """Where every image is misclassified the order stays, and the released attack is IFGSM."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    images = torch.rand(5, 1, 2, 2, generator=seeded(1))
    labels = (model(images).argmax(1) + 1) % 3
    settings = {"threat": Threat("linf", 1e-4), "steps": 3}
    assert released_ifgsm(model, images, labels, **settings).equal(ifgsm(model, images, labels, **settings))


def test_the_released_attack_keeps_the_threat_and_the_callers_labels(network):
    test = digits("test").subset(40)
    before = test.labels.clone()
    attacked = released_ifgsm(surrogate_head(network), test.images, test.labels, threat=THREAT, steps=4)
    assert (attacked - test.images).abs().max() <= THREAT.epsilon + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert test.labels.equal(before)


def test_batch_statistics_are_those_of_the_batch_and_leave_no_trace(network):
    images, plain = digits("test").images[:30], linear_head(network)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        found = batch_statistics(plain)(images)
        plain.train()
        try:
            expected = plain(images)
        finally:
            plain.eval()
            plain.load_state_dict({name: state[name] for name in plain.state_dict() if name in state}, strict=False)
    torch.testing.assert_close(found, expected)
    assert all(tensor.equal(state[name]) for name, tensor in network.state_dict().items())
    with torch.no_grad():
        assert not found.allclose(plain(images))


def test_the_template_is_attacked_and_the_network_stays(network, source):
    before = network.head.template.clone()
    moved = attacked_template(network, source, partial(ifgsm, threat=THREAT, steps=2))
    assert network.head.template.equal(before)
    assert moved.head.template_labels.equal(network.head.template_labels)
    assert not moved.head.template.allclose(before)
    still = attacked_template(network, source, partial(ifgsm, threat=Threat("linf", 0.0), steps=1))
    torch.testing.assert_close(still.head.template, before, rtol=1e-3, atol=1e-3)


def test_scaling_multiplies_what_the_attack_found(network):
    test, plain = digits("test").subset(5), linear_head(network)
    attack = partial(carlini_wagner, steps=5, search_steps=1)
    whole = attack(plain, test.images, test.labels, generator=seeded(0))
    part = scaled(plain, test.images, test.labels, attack=attack, factor=0.1, generator=seeded(0))
    torch.testing.assert_close(part - test.images, 0.1 * (whole - test.images), rtol=1e-4, atol=1e-7)


def test_every_switch_is_measured_on_both_heads(found):
    assert [row.switch for row in found.rows] == [switch for switch in SWITCHES for _ in range(2)]
    assert {len(row.attacked) for row in found.rows} == {60, 20}
    plain = found.row(AS_PUBLISHED, "linear head")
    assert found.row("template attacked", "linear head").attacked == plain.attacked  # there is no template beside
    assert found.row("labels re-sorted", "WNLL").clean == found.row(AS_PUBLISHED, "WNLL").clean
    weak = found.row("C&W perturbation scaled", "linear head").shares()[1]
    assert weak > found.row(CW, "linear head").shares()[1]  # scaled down, the attack no longer reaches the boundary


def test_the_change_and_its_interval_are_those_of_paired_images():
    rows = tuple(
        SwitchRow(switch, head, (True,) * 4, right)
        for switch, right in (
            (AS_PUBLISHED, (True, False, False, False)),
            ("labels re-sorted", (True, True, True, False)),
        )
        for head in ("WNLL", "linear head")
    )
    mean, half = Anatomy(rows, {}).moved(rows[2])
    assert mean == 0.5
    assert half == pytest.approx(1.96 * torch.tensor([0.0, 1.0, 1.0, 0.0]).std().item() / 2)


def test_saved_and_read_back(found, tmp_path):
    assert Anatomy.load(found.save(tmp_path / "anatomy.json")).rows == found.rows
    (tmp_path / "other.json").write_text('{"kind": "anatomy", "settings": {}, "results": {"rows": [[1]]}}')
    with pytest.raises(ValueError, match="not an anatomy"):
        Anatomy.load(tmp_path / "other.json")


def test_words_follow_the_numbers(found):
    headers, cells = found.table()
    assert {len(row) for row in cells} == {len(headers)}
    text = " ".join(anatomy_section(found).paragraphs)
    assert reading(found) in text
    assert "cannot be proved" in text
    flat = Anatomy(tuple(SwitchRow(row.switch, row.head, row.clean, row.clean) for row in found.rows), found.settings)
    assert "No switch" in reading(flat)


def test_a_network_without_the_head_is_refused():
    with pytest.raises(ValueError, match="WNLL head"):
        anatomy(checkpoints.load("digits-pgd")[0], digits("test").subset(5), digits("train"), threat=THREAT)


def test_the_command(tmp_path, capsys):
    words = ["anatomy", "digits-pgd-wnll", "--images", "20", "--steps", "2", "--cw-images", "5", "--cw-steps", "3"]
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit) as end:
        cli.app([*words, "--out", str(out)])
    assert not end.value.code
    assert "labels re-sorted" in capsys.readouterr().out
    assert "Anatomy of a published figure" in out.read_text()
    assert len(Anatomy.load(tmp_path / "page.json").rows) == 14
    with pytest.raises(FileExistsError, match="--force"):
        cli.app([*words, "--out", str(out)])
