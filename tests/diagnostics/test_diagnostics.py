"""Every planted case is found by the checks that should find it, and a plainly hardened network passes them all."""

import copy
import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustviz import checkpoints, cli
from robustviz.attacks import against, pgd
from robustviz.attacks.views import soft_mask, surrogate_head
from robustviz.data import digits
from robustviz.defenses.cas import joint
from robustviz.defenses.tvm import TVM
from robustviz.diagnostics import CHECKS, Diagnosis, Evidence, Finding, diagnose
from robustviz.diagnostics.attack_checks import (
    along_the_path,
    black_box,
    larger_epsilon,
    more_steps,
    other_losses,
    restarts,
    threat_model,
    transferred,
    undefended_breaks,
)
from robustviz.diagnostics.findings import doubted, graded
from robustviz.diagnostics.gradients import gpus, gradient
from robustviz.diagnostics.model_checks import (
    clean_accuracy,
    gradient_correct,
    gradient_present,
    logit_scale,
    repeatable,
)
from robustviz.objectives import cross_entropy, margin
from robustviz.pages.diagnosis import diagnosis_page
from robustviz.tensors import seeded
from robustviz.types import Threat

THREAT = Threat("linf", 0.15)


@pytest.fixture(scope="module")
def test_set():
    return digits("test").subset(100)


@pytest.fixture(scope="module")
def networks():
    """Networks that come with the library, by the ends of their names. Do not change them."""
    names = ("standard", "pgd", "pgd-wnll", "pgd-cas", "tvm")
    return {name: checkpoints.load(f"digits-{name}")[0] for name in names}


@pytest.fixture
def evidence_of(test_set):
    """Measure one network with few queries."""

    def measure(model, *, images=40, threat=THREAT, **settings):
        settings = {"queries": 50, "steps": 10, **settings}
        return Evidence(model.eval(), test_set.images[:images], test_set.labels[:images], threat, **settings)

    return measure


class Around(nn.Module):
    """A network with something before and after it."""

    def __init__(self, model, *, before=None, after=None):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, images):
        logits = self.model(images if self.before is None else self.before(images))
        return logits if self.after is None else self.after(logits)


@pytest.fixture(scope="module")
def found(networks, test_set):
    """The whole diagnosis of the plainly adversarially trained network, and what was reported on the way."""
    reported = []
    diagnosis = diagnose(
        networks["pgd"],
        test_set.images[:50],
        test_set.labels[:50],
        threat=THREAT,
        undefended=networks["standard"],
        steps=10,
        queries=30,
        on_check=lambda *report: reported.append(report),
    )
    return diagnosis, reported


# The network that must pass.


def test_a_plainly_hardened_network_passes_every_check(found):
    diagnosis, reported = found
    assert {finding.check: finding.verdict for finding in diagnosis.findings} == {
        finding.check: "pass" for finding in diagnosis.findings
    }
    assert diagnosis.verdict == "real"
    assert diagnosis.decisive == ()
    assert [(done, total) for _, done, total in reported] == [(i, 15) for i in range(1, 16)]
    assert tuple(finding for finding, _, _ in reported) == diagnosis.findings
    assert len({finding.check for finding in diagnosis.findings}) == len(CHECKS) == 15
    assert all("arXiv" in finding.source for finding in diagnosis.findings)


def test_the_accuracies_do_not_depend_on_the_checks(networks, test_set, monkeypatch):
    images, labels = test_set.images[:20], test_set.labels[:20]
    settings = {"threat": THREAT, "steps": 3, "queries": 10, "undefended": networks["standard"]}
    whole = diagnose(networks["pgd"], images, labels, **settings)
    monkeypatch.setattr("robustviz.diagnostics.suite.CHECKS", CHECKS[6:7])
    one = diagnose(networks["pgd"], images, labels, **settings)
    assert len(one.findings) == 1
    assert (one.accuracy, one.robust_accuracy) == (whole.accuracy, whole.robust_accuracy)


def test_the_accuracies_are_those_of_the_attacks(found, networks, test_set):
    diagnosis, _ = found
    model, images, labels = networks["pgd"], test_set.images[:50], test_set.labels[:50]
    alone = pgd(model, images, labels, threat=THREAT, steps=20, generator=seeded(0, 5))
    with torch.no_grad():
        share = (model(alone).argmax(1) == labels).double().mean().item()
    assert diagnosis.accuracy["PGD-20"] == share
    assert diagnosis.robust_accuracy <= min(diagnosis.accuracy.values())


def test_a_linear_network_of_two_classes_passes_too(test_set):
    class Halves(nn.Module):
        def forward(self, images):
            scores = (images[..., :4] - images[..., 4:]).sum((1, 2, 3))
            return torch.stack([scores, -scores], 1)

    labels = Halves()(test_set.images).argmax(1)
    diagnosis = diagnose(Halves(), test_set.images, labels, threat=Threat("linf", 0.02), steps=5, queries=20)
    assert diagnosis.verdict == "real"
    assert len(diagnosis.having("pass")) == 13
    assert diagnosis["one more restart"].number == 0  # every start ends in the same corner of the ball


# The planted cases: which check finds them.


def test_logits_times_300(networks, evidence_of):
    loud = evidence_of(Around(networks["pgd"], after=lambda logits: 300 * logits))
    assert logit_scale(loud).verdict == "fail"
    dead = gradient_present(loud)
    assert dead.verdict == "fail"
    assert "cross-entropy" in dead.reason
    assert float(loud.dead["margin"].double().mean()) == 0
    losses = other_losses(loud)
    assert losses.verdict == "fail"
    assert losses.number > 0.05
    assert gradient_correct(loud).verdict == "pass"


def test_a_quantized_input(networks, evidence_of):
    steps = evidence_of(Around(networks["pgd"], before=lambda images: (images * 8).round() / 8), steps=5)
    assert gradient_present(steps).number == 1
    assert gradient_correct(steps).verdict == "fail"
    assert gradient_correct(steps).number == 1
    assert larger_epsilon(steps).verdict == "fail"
    assert black_box(steps).verdict == "fail"


def test_a_gradient_that_is_cut_off(networks, evidence_of):
    cut = evidence_of(Around(networks["pgd"], before=lambda images: images.detach()), steps=3)
    assert gradient_present(cut).number == 1
    assert gradient_correct(cut).verdict == "fail"
    assert larger_epsilon(cut).verdict == "fail"


def test_a_random_layer(networks, evidence_of):
    noisy = evidence_of(
        Around(networks["pgd"], before=lambda images: images + 0.2 * torch.randn_like(images)), images=20, steps=3
    )
    finding = repeatable(noisy)
    assert finding.verdict in ("doubtful", "fail")
    assert finding.number > 0.01
    assert "fresh draws" in finding.reason


def test_tvm(networks, evidence_of):
    hasty = TVM(**networks["tvm"].purify.settings | {"steps": 10})
    finding = repeatable(evidence_of(networks["tvm"].replace(purify=hasty), images=20, steps=3))
    assert finding.verdict == "fail"
    assert "eot" in finding.remedy


def test_a_network_handed_over_in_train_mode(networks, test_set):
    model = copy.deepcopy(networks["pgd"]).train()
    finding = clean_accuracy(Evidence(model, test_set.images, test_set.labels, THREAT))
    assert finding.verdict == "doubtful"
    assert "train mode" in finding.reason
    assert model.training


def test_a_forward_pass_that_switches_to_train_mode(networks, evidence_of):
    class Switching(Around):
        def forward(self, images):
            self.model.train()
            return self.model(images)

    finding = clean_accuracy(evidence_of(Switching(copy.deepcopy(networks["pgd"]))))
    assert finding.verdict == "fail"
    assert "changed" in finding.reason


def test_batch_norm_with_the_statistics_of_the_batch(networks, evidence_of):
    model = copy.deepcopy(networks["pgd"])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = module.running_var = None
            module.track_running_stats = False
    finding = repeatable(evidence_of(model))
    assert finding.verdict == "fail"
    assert "other images of its batch" in finding.reason


def test_probabilities_instead_of_logits(networks, evidence_of):
    finding = logit_scale(evidence_of(Around(networks["pgd"], after=nn.Softmax(1))))
    assert finding.verdict == "fail"
    assert "probabilities" in finding.reason


def test_wnll_under_the_surrogate_gradient(networks, evidence_of):
    wnll = evidence_of(surrogate_head(networks["pgd-wnll"]))
    assert "probabilities" in logit_scale(wnll).reason
    assert logit_scale(wnll).verdict == gradient_correct(wnll).verdict == "fail"
    assert repeatable(wnll).verdict == "doubtful"
    assert black_box(wnll).verdict == "not run"


def test_hard_cas(networks, evidence_of):
    soft = partial(pgd, threat=THREAT, steps=10, step_size=0.02, objective=joint())
    answered = {"soft mask, joint": partial(against, view=soft_mask(1.0), attack=soft)}
    hard = evidence_of(networks["pgd-cas"], images=40, steps=20, queries=150, attacks=answered)
    assert black_box(hard).verdict == "fail"
    finding = other_losses(hard)
    assert finding.verdict == "fail"
    assert "soft mask, joint" in finding.reason


# What each of the other checks can find.


def test_an_attack_that_leaves_the_ball(networks, evidence_of):
    far = {"far": lambda model, images, labels, *, generator: (images + 0.3).clamp(0, 1)}
    stray = evidence_of(networks["pgd"], attacks=far, images=20, steps=2)
    finding = threat_model(stray)
    assert finding.verdict == "fail"
    assert "far" in finding.reason
    assert torch.equal(stray.given["far"].right, stray.clean)  # success far away is none


def test_an_attack_made_for_the_defense_meets_it_in_evaluation_mode(networks, evidence_of):
    seen = []

    def own(model, images, labels, /, *, generator=None):
        seen.append({module.training for module in model.modules()} | {p.requires_grad for p in model.parameters()})
        return images

    evidence = evidence_of(copy.deepcopy(networks["pgd"]), attacks={"own": own}, images=10, steps=1)
    evidence.model.train()
    assert torch.equal(evidence.given["own"].right, evidence.clean)
    assert seen == [{False}]
    assert evidence.model.training


@pytest.mark.parametrize(("epsilon", "said"), [(0.0, "nothing to attack"), (8.0, "plain gray")])
def test_a_threat_that_makes_no_sense(networks, evidence_of, epsilon, said):
    finding = threat_model(evidence_of(networks["pgd"], images=10, threat=Threat("linf", epsilon), steps=1))
    assert finding.verdict == "fail"
    assert said in finding.reason


def test_without_an_undefended_network_two_checks_are_not_run(networks, evidence_of):
    alone = evidence_of(networks["pgd"], images=10)
    for check in (transferred, undefended_breaks):
        finding = check(alone)
        assert finding.verdict == "not run"
        assert finding.number is None
        assert finding.shown == "-"


def test_a_masked_gradient_loses_to_transfer_and_a_hard_undefended_network_is_noticed(networks, evidence_of):
    masked = Around(networks["standard"], before=lambda images: (images * 16).round() / 16)
    assert transferred(evidence_of(masked, undefended=networks["standard"], steps=5)).verdict == "fail"
    finding = undefended_breaks(evidence_of(networks["standard"], undefended=networks["pgd"]))
    assert finding.verdict == "fail"


def test_images_that_transfer_are_driven_on_after_they_fool_the_undefended_network(networks, evidence_of):
    plain = networks["standard"]
    moved = evidence_of(networks["pgd"], undefended=plain)
    settings = {"threat": THREAT, "steps": 10, "generator": seeded(0, 5)}
    stopped = pgd(plain, moved.images, moved.labels, early_exit=True, **settings)
    with torch.no_grad():
        driven, barely = (cross_entropy(plain, images, moved.labels).mean() for images in (moved.elsewhere, stopped))
    assert driven > 2 * barely


def test_a_part_that_can_be_taken_out_is_named(networks, evidence_of):
    finding = undefended_breaks(evidence_of(networks["pgd-wnll"], undefended=networks["standard"], images=20, steps=2))
    assert "without WNLL" in finding.reason


def test_too_few_steps_are_noticed(networks, evidence_of):
    assert more_steps(evidence_of(networks["standard"], steps=1)).verdict == "fail"


class Stripes(nn.Module):
    """Two classes that change places whenever the mean gray level moves by a little."""

    def __init__(self, *, gradient):
        super().__init__()
        self.gradient = gradient

    def forward(self, images):
        waves = torch.sin(2000 * (images if self.gradient else images.detach()).mean((1, 2, 3)))
        return torch.stack([waves, -waves], 1)


def striped(images, *, gradient):
    model = Stripes(gradient=gradient)
    return Evidence(model, images, model(images).argmax(1), THREAT)


def test_every_start_finds_something_new_where_only_chance_decides(test_set):
    finding = restarts(striped(test_set.images, gradient=False))
    assert finding.verdict == "fail"
    assert finding.number == pytest.approx(1 / 8, abs=0.1)  # each start halves what is left


def test_a_decision_that_flips_is_lost_on_the_path(test_set):
    finding = along_the_path(striped(test_set.images, gradient=True))
    assert finding.verdict == "fail"
    assert finding.number > 0.2


def test_every_radius_is_attacked_alike(test_set):
    wider = striped(test_set.images, gradient=True).wider
    attacked = [share for radius, share in wider.items() if radius > 0]
    assert len(attacked) == 4
    assert min(attacked) > 0.2  # where the decision flips at every step, chance decides at the last one


def test_nan_and_guessing_are_noticed(networks, test_set):
    broken = Evidence(
        Around(networks["pgd"], after=lambda z: z * torch.nan).eval(), test_set.images, test_set.labels, THREAT
    )
    assert "NaN" in clean_accuracy(broken).reason
    wrong = Evidence(networks["pgd"], test_set.images, (test_set.labels + 1) % 10, THREAT)
    assert "guessing" in clean_accuracy(wrong).reason
    for count, shift in ((8, 0), (19, 0), (1, 0), (1, 1)):
        few = Evidence(networks["pgd"], test_set.images[:count], (test_set.labels[:count] + shift) % 10, THREAT)
        assert clean_accuracy(few).verdict == "doubtful"
        assert "so few images" in clean_accuracy(few).reason


def test_a_share_of_few_images_tells_nothing(networks, test_set):
    images, labels = test_set.images[:1], test_set.labels[:1]
    diagnosis = diagnose(networks["pgd"], images, labels, threat=THREAT, steps=2, queries=3)
    assert diagnosis.verdict == "doubtful"
    assert {finding.unit for finding in diagnosis.having("pass")}.isdisjoint({"share", "points"})
    one_lost = Finding("a", "fail", 1 / 6, "points", "Lost.", "source", "Mend it.")
    assert [doubted(one_lost, count).verdict for count in (6, 20)] == ["doubtful", "fail"]
    assert doubted(replace(one_lost, number=0.5), 6).verdict == "fail"
    converged = diagnosis["twice the steps"]
    assert "one image counts for 100 points here: too few to tell" in converged.reason
    assert "100 images" in converged.remedy


@pytest.mark.parametrize(
    ("unit", "count", "verdict"), [("points", 19, "doubtful"), ("points", 20, "pass"), ("median gap", 1, "pass")]
)
def test_a_pass_is_taken_back_where_one_image_counts_for_more_than_five_points(unit, count, verdict):
    assert doubted(Finding("check", "pass", 0.0, unit, "Because.", "source"), count).verdict == verdict
    failed = Finding("check", "fail", 0.5, unit, "Because.", "source")
    assert doubted(failed, count) is failed


# Reports.


def test_a_diagnosis_is_read_back_from_json(found, tmp_path):
    diagnosis, _ = found
    path = diagnosis.save(tmp_path / "diagnosis.json")
    assert json.loads(path.read_text())["verdict"] == "real"
    assert Diagnosis.load(path) == diagnosis


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"verdict": "real", "findings": 3}'])
def test_other_text_is_refused(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match="not a diagnosis"):
        Diagnosis.load(tmp_path / "other.json")


def made(*verdicts):
    findings = tuple(
        Finding(f"check {v}", v, None if v == "not run" else 0.5, "share", f"Because {v}.", "source", f"Do {v}.")
        for v in verdicts
    )
    return Diagnosis(findings, {"clean": 0.9, "PGD": 0.4}, 0.3, {"images": 100})


@pytest.mark.parametrize(
    ("verdicts", "overall", "decisive"),
    [
        (("pass", "not run"), "real", ()),
        (("pass", "doubtful"), "doubtful", ("doubtful",)),
        (("doubtful", "fail", "pass"), "not real", ("fail", "doubtful")),
    ],
)
def test_the_worst_finding_decides_and_comes_first(verdicts, overall, decisive):
    diagnosis = made(*verdicts)
    assert diagnosis.verdict == overall
    assert tuple(finding.verdict for finding in diagnosis.decisive) == decisive
    text = diagnosis.to_text()
    places = [text.index(f"Because {verdict}.") for verdict in decisive]
    assert places == sorted(places)
    assert text.count("upper bound") == 1
    if "not run" in verdicts:
        assert "Not checked: check not run." in text
    if "fail" in verdicts:
        assert "What to do: Do fail." in text


def test_the_page_says_everything(tmp_path):
    diagnosis = made("pass", "doubtful", "fail", "not run")
    page = diagnosis_page(diagnosis, tmp_path / "index.html", command="robustviz diagnose x")
    text = page.read_text()
    for verdict in ("pass", "doubtful", "fail", "not run"):
        assert f"Because {verdict}." in text
    assert text.index("Because fail.") < text.index("Because doubtful.") < text.index("Because pass.")
    assert "Verdict: not real." in text
    assert "robustviz diagnose x" in text
    assert "40.0%" in text


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("verdict", "number"), [("fine", 0.5), ("pass", None), ("not run", 0.5)])
def test_a_finding_without_sense_is_refused(verdict, number):
    with pytest.raises(ValueError, match="must be"):
        Finding("check", verdict, number, "share", "Because.", "source")


def test_verdicts_follow_the_bounds():
    numbers = (0.1, 0.2, 0.3, 0.4, float("nan"))
    assert [graded(number, 0.1, 0.3) for number in numbers] == ["pass", "doubtful", "doubtful", "fail", "fail"]


def test_the_command_writes_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["robustviz", "diagnose", "digits-standard"])
    words = ["diagnose", "digits-standard", "--images", "20", "--steps", "2", "--queries", "3", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        cli.app([*words, "--undefended", "digits-standard"])
    assert not end.value.code
    printed = capsys.readouterr().out
    diagnosis = Diagnosis.load(tmp_path / "diagnosis.json")
    assert diagnosis.to_text().strip() in printed
    assert (tmp_path / "diagnosis.txt").read_text() == diagnosis.to_text()
    assert diagnosis.settings["threat"]["epsilon"] == 0.15
    assert diagnosis.having("not run") == ()
    assert "robustviz diagnose digits-standard" in (tmp_path / "index.html").read_text()
    with pytest.raises(FileExistsError, match="--force"):
        cli.app(words)


@pytest.mark.parametrize(
    ("change", "said"), [({"classes": ["cat", "dog"]}, "'cat', 'dog'"), ({"image_shape": [3, 32, 32]}, "3, 32, 32")]
)
def test_an_undefended_network_of_another_data_set_is_refused_before_any_check(tmp_path, monkeypatch, change, said):
    monkeypatch.setattr("robustviz.diagnostics.diagnose", lambda *_, **__: pytest.fail("a check was run"))
    source = checkpoints.find("digits-standard")
    shutil.copy(source, other := tmp_path / "other.safetensors")
    record = json.loads(source.with_suffix(".json").read_text())
    record["settings"] |= change
    other.with_suffix(".json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=f"--undefended.*{said}"):
        cli.app(["diagnose", "digits-pgd", "--undefended", str(other)])


# How it is called.


def test_a_diagnosis_leaves_no_trace_and_repeats(networks, test_set):
    class Careless(Around):
        def forward(self, images):
            self.model.train()
            return self.model(images) + 0 * torch.rand(1)

    model = Careless(copy.deepcopy(networks["standard"]).eval())
    model.training = False
    before = copy.deepcopy(model.state_dict())
    state, modes = torch.random.get_rng_state(), [module.training for module in model.modules()]
    images, labels = test_set.images[:10], test_set.labels[:10]
    one, two = (diagnose(model, images, labels, threat=THREAT, steps=1, queries=3) for _ in range(2))
    assert one == two
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused(networks, test_set):
    images, labels = test_set.images[:10], test_set.labels[:10]
    with pytest.raises(ValueError, match="255"):
        diagnose(networks["pgd"], images * 255, labels)
    with pytest.raises(ValueError, match="steps and queries"):
        diagnose(networks["pgd"], images, labels, steps=0)
    with pytest.raises(ValueError, match="below the number of classes"):
        diagnose(networks["pgd"], images, labels + 10)
    for name in ("clean", "FGSM", "PGD-20, start 1", "PGD on margin"):
        with pytest.raises(ValueError, match=f"attacks must not .*{name}"):
            diagnose(networks["pgd"], images, labels, attacks={name: pgd})
    with pytest.raises(ValueError, match="logits of shape"):
        diagnose(nn.Flatten(0), images, labels)
    with pytest.raises(TypeError, match=r"undefended must be a network .*, got str"):
        diagnose(networks["pgd"], images, labels, undefended="digits-standard")
    seven = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))
    with pytest.raises(ValueError, match=r"undefended must have the 10 classes of the model, .* \(1, 7\)"):
        diagnose(networks["pgd"], images, labels, undefended=seven)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_layer_that_draws_on_the_gpu_repeats_and_leaves_its_random_state(networks, test_set):
    model = Around(networks["pgd"], before=lambda images: images + 0.1 * torch.randn_like(images))
    model = copy.deepcopy(model).cuda().eval()
    images, labels = test_set.images[:10].cuda(), test_set.labels[:10].cuda()
    state = torch.cuda.get_rng_state()
    one, two = (gradient(margin, model, images, labels, seed=1) for _ in range(2))
    assert torch.equal(one, two)
    diagnose(model, images, labels, threat=THREAT, steps=1, queries=3)
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.usefixtures("unchecked")
def test_the_gpus_of_parameters_buffers_and_images_are_found():
    def held(device=None):
        return SimpleNamespace(is_cuda=device is not None, device=SimpleNamespace(index=device))

    def network(parameter, buffer):
        return SimpleNamespace(parameters=lambda: [held(parameter)], buffers=lambda: [held(buffer)])

    assert gpus(held(3), network(1, 0), network(1, None)) == [0, 1, 3]


def test_the_passes_are_counted(networks, test_set):
    seen = []
    hook = networks["pgd"].register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    try:
        diagnosis = diagnose(
            networks["pgd"], test_set.images[:10], test_set.labels[:10], threat=THREAT, steps=2, queries=5
        )
    finally:
        hook.remove()
    assert diagnosis.settings["passes_per_image"] == round(sum(seen) / 10, 1)
