import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from torch import nn

from robustviz.attacks import apgd, deepfool, fgsm, pgd, square
from robustviz.defenses.tvm import TVM
from robustviz.fingerprint import fingerprint
from robustviz.models import initialized, small_cnn, vgg16
from robustviz.objectives import cross_entropy, dlr, margin
from robustviz.tensors import drawing, seeded
from robustviz.training import TrainConfig, hold_out, train
from robustviz.training.config import bf16_pays, learning_rate
from robustviz.types import Threat

THREAT = Threat("linf", 0.1)
FAST = TrainConfig(epochs=2, batch_size=64, precision="fp32")


@pytest.fixture(scope="module")
def some():
    """200 digits."""
    return some_digits()


def some_digits():
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels[:200]).float().view(-1, 1, 8, 8) / 16
    return images, torch.from_numpy(labels[:200]).long()


def small(seed=0):
    """A network that also draws from the global random state, by its dropout."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(128, 10),
        )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def timeless(logs):
    return [replace(log, seconds=0.0) for log in logs]


# The learning rate against PyTorch's schedulers.


def torch_rates(steps, make):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.2)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


schedulers = torch.optim.lr_scheduler


@pytest.mark.parametrize(
    ("schedule", "make", "tolerance"),
    [
        ("constant", lambda o: schedulers.LambdaLR(o, lambda _: 1.0), 1e-12),
        ("steps", lambda o: schedulers.MultiStepLR(o, [500, 750]), 1e-12),
        ("cosine", lambda o: schedulers.CosineAnnealingLR(o, 1000), 1e-9),
        (  # PyTorch counts its phases from step to step: equal but for one step in a thousand
            "one-cycle",
            lambda o: schedulers.OneCycleLR(
                o, 0.2, 1000, anneal_strategy="linear", cycle_momentum=False, div_factor=1e9, final_div_factor=1
            ),
            1e-3,
        ),
    ],
)
def test_learning_rate_is_that_of_pytorch(schedule, make, tolerance):
    config = TrainConfig(learning_rate=0.2, schedule=schedule)
    ours = [learning_rate(config, step / 1000) for step in range(1000)]
    np.testing.assert_allclose(ours, torch_rates(1000, make), rtol=0, atol=tolerance)
    assert max(ours) == pytest.approx(0.2, rel=1e-6)


def test_updates_are_those_of_sgd(some):
    """Whole batches on a linear network in float64, so that nothing depends on the order."""
    images, labels = some[0].double(), some[1]
    config = TrainConfig(epochs=4, batch_size=200, schedule="cosine", weight_decay=0.01, precision="fp32")
    model, twin = (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double() for _ in range(2))
    twin.load_state_dict(model.state_dict())
    logs = train(model, images, labels, config, validation=0.0)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for epoch in range(4):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * (epoch + 0.5) / 4)) / 2
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(twin(images), labels)
        loss.backward()
        optimizer.step()
        assert logs[epoch].loss == pytest.approx(loss.item(), rel=1e-6)
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-6, atol=1e-8)


def test_a_network_learns(digits):
    images, labels = digits
    model = initialized(small_cnn, 0)
    logs = train(model, images[:1000], labels[:1000], replace(FAST, epochs=3))
    assert [log.epoch for log in logs] == [1, 2, 3]
    assert logs[0].loss > logs[1].loss > logs[2].loss
    assert logs[-1].robust_accuracy is None
    assert all(log.seconds > 0 for log in logs)
    with torch.no_grad():
        assert (model.eval()(images[1000:]).argmax(1) == labels[1000:]).double().mean() > 0.8


def test_the_seed_decides_everything(some):
    config = replace(FAST, padding=1, flip=True)
    results = []
    for seed in (0, 0, 1):
        model = small()
        torch.rand(1)  # the global state does not matter
        logs = train(model, *some, replace(config, seed=seed), attack=partial(pgd, threat=THREAT, steps=1))
        results.append((weights(model), timeless(logs)))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert not same(results[0][0], results[2][0])


@pytest.mark.parametrize("fails", [False, True])
def test_a_call_leaves_no_trace(some, fails):
    model = small().eval()
    model[4].train()
    before, state, default = weights(model), torch.get_rng_state(), torch.get_default_dtype()
    objective = partial(spoiled, share=torch.nan) if fails else cross_entropy
    if fails:
        with pytest.raises(ValueError, match=r"loss must stay finite, got nan in epoch 1; lower learning_rate"):
            train(model, *some, FAST, objective=objective)
    else:
        train(model, *some, FAST)
        assert not same(weights(model), before)
    assert [module.training for module in model] == [False] * 4 + [True, False]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == default
    assert not torch.is_autocast_enabled("cpu")
    assert all(parameter.requires_grad and parameter.is_contiguous() for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def spoiled(model, images, labels, /, *, share, generator=None):
    return cross_entropy(model, images, labels) * share


def test_frozen_modules_stay_as_they_are(some):
    model = small()
    for module in model[:2]:
        module.requires_grad_(False)
    before, modes = weights(model), []
    model[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    train(model, *some, FAST, validation=0.0)
    after = weights(model)
    assert same({k: v for k, v in before.items() if k[0] in "01"}, {k: v for k, v in after.items() if k[0] in "01"})
    assert not torch.equal(before["5.weight"], after["5.weight"])
    assert set(modes) == {False}
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] * 4 + [True] * 2
    assert all(module.training for module in model)


@pytest.mark.parametrize(("count", "sizes"), [(33, [33]), (65, [32, 33]), (34, [32, 2]), (1, [1]), (32, [32])])
def test_a_last_batch_of_one_joins_the_one_before(some, count, sizes):
    """Batch norm over one value for each channel cannot be trained on a single image."""
    model, seen = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), []
    model.register_forward_hook(lambda module, inputs, _: seen.append(len(inputs[0])) if module.training else None)
    train(model, some[0][:count], some[1][:count], replace(FAST, epochs=1, batch_size=32), validation=0.0)
    assert seen == sizes


@pytest.mark.parametrize("kind", ["BatchNorm1d", "vgg16"])
def test_networks_that_need_two_images_train_on_any_number(some, kind):
    layers = nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)
    model = nn.Sequential(*layers) if kind == "BatchNorm1d" else initialized(vgg16, 0)
    images = some[0][:33] if kind == "BatchNorm1d" else some[0][:33].expand(-1, 3, -1, -1).contiguous()
    logs = train(model, images, some[1][:33], replace(FAST, epochs=1, batch_size=32), validation=0.0)
    assert math.isfinite(logs[0].loss)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_epoch_on_a_gpu(some, precision):
    model = small().cuda()
    config = replace(FAST, epochs=1, precision=precision, padding=1, flip=True)
    (log,) = train(model, *some, config, attack=partial(pgd, threat=THREAT, steps=2))
    assert math.isfinite(log.loss)
    assert log.clean_accuracy >= log.robust_accuracy
    assert all(parameter.is_cuda for parameter in model.parameters())


class Says(nn.Module):
    """Returns whatever a function makes of the logits."""

    def __init__(self, answer):
        super().__init__()
        self.inner, self.answer = small(), answer

    def forward(self, images):
        return self.answer(self.inner(images))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda z: {"logits": z}, "got dict; wrap it"),
        (lambda z: (z, z), "got tuple; wrap it"),
        (lambda z: None, "got NoneType; wrap it"),
        (lambda z: z[:, :1], "with one logit z decides between"),
        (lambda z: z[:, :, None], r"shape \(1, classes\), got \(1, 10, 1\)"),
    ],
)
def test_a_model_must_return_logits(some, answer, words):
    with pytest.raises(ValueError, match=words):
        train(Says(answer), *some, FAST)


def test_a_model_must_be_a_module(unchecked, some):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        train(lambda images: images, *some, FAST)


# Validation.


def test_the_best_epoch_is_kept(some):
    """A monitor that is harmless in the second and third of four epochs: the later one wins the tie or is better."""
    calls, snapshots = [], []
    model = small()

    def monitor(model, images, labels, /, *, generator=None):
        calls.append(len(images))
        return images if len(calls) == 2 else torch.zeros_like(images)

    logs = train(
        model,
        *some,
        replace(FAST, epochs=4),
        monitor=monitor,
        on_epoch=lambda log: snapshots.append(weights(model)),
    )
    assert calls == [20] * 4
    robust = [log.robust_accuracy for log in logs]
    assert max(robust) == robust[1] > max(robust[0], robust[2], robust[3])
    assert [log.chosen for log in logs] == [True, True, False, False]
    assert same(weights(model), snapshots[1])
    assert not same(snapshots[1], snapshots[3])


def test_clean_accuracy_decides_without_an_attack(some):
    snapshots, model = [], small()
    logs = train(
        model, *some, replace(FAST, epochs=6, learning_rate=1.0), on_epoch=lambda log: snapshots.append(weights(model))
    )
    clean = [log.clean_accuracy for log in logs]
    best = max(epoch for epoch, accuracy in enumerate(clean) if accuracy == max(clean))
    assert [log.chosen for log in logs] == [accuracy == max(clean[: i + 1]) for i, accuracy in enumerate(clean)]
    assert same(weights(model), snapshots[best])


def test_without_validation_the_last_epoch_is_kept(some):
    snapshots, model = [], small()
    logs = train(model, *some, FAST, validation=0.0, on_epoch=lambda log: snapshots.append(weights(model)))
    assert [(log.clean_accuracy, log.robust_accuracy) for log in logs] == [(None, None)] * 2
    assert same(weights(model), snapshots[-1])


def test_accuracies_of_the_validation_part(some):
    model, attack = small(), partial(fgsm, threat=THREAT)
    logs = train(model, *some, replace(FAST, epochs=1), attack=attack)
    _, held = hold_out(some[1], 0.1)
    images, labels = some[0][held], some[1][held]
    model.eval()
    assert logs[0].clean_accuracy == (model(images).argmax(1) == labels).double().mean().item()
    attacked = attack(model, images, labels)
    assert logs[0].robust_accuracy == (model(attacked).argmax(1) == labels).double().mean().item()


def test_hold_out_is_stratified_and_always_the_same(some):
    kept, held = hold_out(some[1], 0.25)
    assert sorted(kept.tolist() + held.tolist()) == list(range(200))
    expected = some[1].bincount() / 4
    assert ((some[1][held].bincount() - expected).abs() < 1).all()
    assert torch.equal(hold_out(some[1], 0.25)[1], held)


# Attacks.


def test_the_attack_sees_training_images_in_evaluation_mode(some):
    images, labels = some
    model, seen, modes = small(), {"attack": [], "monitor": [], "objective": []}, []
    made = []
    model.register_forward_hook(
        lambda module, *_: modes.append((module.training, next(module.parameters()).requires_grad))
    )

    def attack(model, images, labels, /, *, generator=None):
        """One step that switches nothing by itself."""
        seen["attack"].append(images)
        modes.append("attack")
        point = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model, point, labels).sum(), point)
        made.append((images + 0.1 * gradient.sign()).clamp(0, 1))
        modes.append("end")
        return made[-1]

    def monitor(model, images, labels, /, *, generator=None):
        seen["monitor"].append(images)
        assert not model.training
        return images

    def objective(model, images, labels, /, *, generator=None):
        seen["objective"].append(images)
        return cross_entropy(model, images, labels)

    train(model, images, labels, FAST, attack=attack, monitor=monitor, objective=objective)
    kept, held = hold_out(labels, 0.1)
    numbers = {image.numpy().tobytes(): number for number, image in enumerate(images)}
    parts = {name: [numbers.get(image.numpy().tobytes()) for image in torch.cat(seen[name])] for name in seen}
    assert sorted(parts["attack"]) == sorted(kept.tolist() * 2)
    assert set(parts["monitor"]) == set(held.tolist())
    assert parts["attack"][:180] != parts["attack"][180:]  # another order in every epoch
    for attacked, used in zip(made, seen["objective"], strict=True):
        assert torch.equal(attacked, used)
    for attacked, before in zip(made, seen["attack"], strict=True):
        assert 0.05 < (attacked - before).abs().amax() <= 0.1 + 1e-6
    start = modes.index("attack")
    assert modes[start : start + 4] == ["attack", (False, False), "end", (True, True)]
    assert modes.count((True, True)) == 2 * 3


def test_augmentation_comes_before_the_attack(some):
    shifted = []

    def attack(model, images, labels, /, *, generator=None):
        shifted.append(images)
        return images

    train(small(), *some, replace(FAST, epochs=1, padding=2), attack=attack, monitor=fgsm)
    originals = {image.numpy().tobytes() for image in some[0]}
    moved = [image.numpy().tobytes() not in originals for image in torch.cat(shifted)]
    assert 0.8 < np.mean(moved) < 1


class Noise(nn.Module):
    """A stochastic module that remembers what it adds."""

    stochastic = True

    def __init__(self):
        super().__init__()
        self.generator, self.drawn = None, []

    def forward(self, images):
        self.drawn.append(torch.rand((), generator=self.generator or seeded(0)).item())
        return images + self.drawn[-1] / 100


def test_stochastic_modules_draw_anew_in_every_update(some):
    model = nn.Sequential(Noise(), small())
    train(model, *some, FAST, validation=0.0)
    updates = model[0].drawn[-8:]
    assert len(set(updates)) == 8
    assert model[0].generator is None
    with drawing(model, None):
        assert model[0].generator is None


# Precision.


def test_bf16_computes_in_bfloat16_and_keeps_float32(some):
    found = {}
    for precision in ("bf16", "fp32", "auto"):
        model, seen = initialized(small_cnn, 0), []

        def look(module, inputs, output, seen=seen):
            if output.shape[0] > 1:  # one image only asks for the number of classes
                seen.append((output.dtype, output.is_contiguous(memory_format=torch.channels_last)))

        model.body[0][0].register_forward_hook(look)
        logs = train(model, *some, replace(FAST, precision=precision), attack=partial(pgd, threat=THREAT, steps=1))
        found[precision] = set(seen)
        assert math.isfinite(logs[-1].loss)
        assert all(p.dtype == torch.float32 and p.is_contiguous() for p in model.parameters())
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert found["bf16"] == {(torch.bfloat16, True)}
    assert found["fp32"] == found["auto"] == {(torch.float32, False)}


@pytest.mark.parametrize(
    "monitor",
    [
        partial(pgd, threat=THREAT, steps=2, restarts=2, objective=margin),
        partial(apgd, threat=THREAT, steps=3, objective=dlr),
        partial(square, threat=THREAT, steps=3),
        partial(deepfool, steps=2),
    ],
    ids=lambda attack: attack.func.__name__,
)
def test_bf16_with_any_attack(some, monitor):
    made = []

    def watched(model, images, labels, /, *, generator=None):
        made.append((images, monitor(model, images, labels, generator=generator)))
        return made[-1][1]

    config = replace(FAST, epochs=1, precision="bf16")
    logs = train(initialized(small_cnn, 0), *some, config, attack=watched)
    assert math.isfinite(logs[0].loss)
    assert 0 <= logs[0].robust_accuracy <= logs[0].clean_accuracy
    assert {attacked.dtype for _, attacked in made} == {torch.float32}
    assert all((attacked != images).any() for images, attacked in made)


def test_bf16_is_used_where_it_pays(monkeypatch):
    cpu, large, tiny = torch.device("cpu"), torch.rand(1, 3, 32, 32), torch.rand(1, 1, 8, 8)
    for supported in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=supported: answer, raising=False)
        assert bf16_pays(large, cpu) is supported
        assert not bf16_pays(tiny, cpu)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert not bf16_pays(large, cpu)  # a PyTorch that cannot tell
    assert not bf16_pays(large, torch.device("mps"))


# Resumption.

LONG = TrainConfig(epochs=4, batch_size=64, padding=1, flip=True, precision="fp32")


def attack_until(last):
    """FGSM that ends the process, without a chance to tidy up, when it is called once more than `last` times."""
    calls = []

    def fatal(model, images, labels, /, *, generator=None):
        calls.append(len(images))
        if len(calls) > last:
            os.kill(os.getpid(), signal.SIGKILL)
        return pgd(model, images, labels, threat=THREAT, steps=1, generator=generator)

    return fatal


def killed(state):
    """What the process runs that is killed: 3 updates and a validation an epoch, killed in the third epoch."""
    torch.set_num_threads(int(sys.argv[1]))
    train(small(), *some_digits(), LONG, attack=attack_until(10), resume=state)


def test_a_killed_run_resumes_to_the_same_bits(some, tmp_path):
    state = tmp_path / "run.state"
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_loop\n"
    code += f"test_loop.killed({str(state)!r})"
    answer = subprocess.run(
        [sys.executable, "-c", code, str(torch.get_num_threads())],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    assert list(tmp_path.iterdir()) == [state]
    counts, results = [], []
    for resume in (None, state):
        model, attack = small(7 if resume else 0), attack_until(10**6)
        epochs = []
        logs = train(
            model, *some, LONG, attack=attack, resume=resume, on_epoch=lambda log, e=epochs: e.append(log.epoch)
        )
        counts.append(epochs)
        results.append((weights(model), timeless(logs)))
    assert counts == [[1, 2, 3, 4], [3, 4]]
    assert results[0][1] == results[1][1]
    assert same(results[0][0], results[1][0])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_an_interrupted_run_resumes_to_the_same_bits(some, tmp_path, precision, stop):
    config = replace(LONG, precision=precision)

    def interrupt(log):
        if log.epoch == stop:
            raise KeyboardInterrupt

    whole = small()
    logs = train(whole, *some, config)
    parts, state = small(), tmp_path / "run.state"
    with pytest.raises(KeyboardInterrupt):
        train(parts, *some, config, resume=state, on_epoch=interrupt)
    again = small(1)
    assert timeless(train(again, *some, config, resume=state)) == timeless(logs)
    assert same(weights(again), weights(whole))


@pytest.fixture
def state(some, tmp_path):
    """The state of a run of two epochs."""
    path = tmp_path / "run.state"
    train(small(), *some, FAST, attack=partial(fgsm, threat=THREAT), resume=path)
    return path


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"config": replace(FAST, epochs=3)}, "config"),
        ({"config": replace(FAST, seed=1)}, "config"),
        ({"attack": partial(fgsm, threat=Threat("linf", 0.2))}, "attack"),
        ({"attack": None}, "attack"),
        ({"monitor": partial(pgd, threat=THREAT)}, "monitor"),
        ({"objective": margin}, "objective"),
        ({"validation": 0.2}, "validation"),
        ({"count": 150}, "data"),
        ({"config": replace(FAST, seed=1), "validation": 0.2}, "config and validation"),
    ],
)
def test_another_run_is_not_resumed(some, state, changes, named):
    before = state.read_bytes()
    settings = {"config": FAST, "attack": partial(fgsm, threat=THREAT)} | changes
    count = settings.pop("count", 200)
    with pytest.raises(ValueError, match=rf"run.state belongs to a run with another {named};.*or remove it"):
        train(small(), some[0][:count], some[1][:count], resume=state, **settings)
    assert state.read_bytes() == before


@pytest.mark.parametrize(("origin", "said"), [("net b", "net b"), (None, "new weights")])
def test_another_start_is_not_resumed(some, tmp_path, origin, said):
    train(small(), *some, FAST, resume=tmp_path / "run.state", origin="net a")
    with pytest.raises(ValueError, match=rf"run.state belongs to a run that began with net a, not with {said}; start"):
        train(small(), *some, FAST, resume=tmp_path / "run.state", origin=origin)


def test_a_state_that_does_not_say_where_it_began_and_with_what_is_resumed(some, tmp_path):
    path = tmp_path / "run.state"
    train(small(), *some, FAST, resume=path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["robustviz"])
    del header["format"], header["settings"]["start"], header["settings"]["model"]
    save_file(load_file(path), path, {"robustviz": json.dumps(header)})
    assert len(train(small(), *some, FAST, resume=path, origin="net a")) == FAST.epochs


def test_a_state_of_an_earlier_version_says_so_if_it_cannot_go_on(some, tmp_path):
    path = tmp_path / "run.state"
    train(small(), *some, FAST, resume=path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["robustviz"])
    del header["format"]
    save_file(load_file(path), path, {"robustviz": json.dumps(header)})
    assert len(train(small(), *some, FAST, resume=path)) == FAST.epochs
    header["settings"]["model"].remove("2 ReLU")
    save_file(load_file(path), path, {"robustviz": json.dumps(header)})
    with pytest.raises(
        ValueError, match=r"as an earlier version of robustviz described it; it cannot go on: remove it"
    ):
        train(small(), *some, FAST, resume=path)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        (nn.Dropout(0.9), nn.Dropout(0.0)),
        (TVM(keep=0.5, steps=3), nn.Identity()),
        (TVM(keep=0.5, steps=3), TVM(keep=1.0, weight=1.0, steps=3)),
    ],
)
def test_a_model_with_other_settings_is_not_resumed(some, tmp_path, first, other):
    """The weights fit, but it is not the model whose training stopped."""
    path = tmp_path / "run.state"
    train(nn.Sequential(first, small()), *some, FAST, resume=path)
    with pytest.raises(ValueError, match=r"run.state belongs to a run with another model;.*or remove it"):
        train(nn.Sequential(other, small()), *some, FAST, resume=path)
    assert len(train(nn.Sequential(first, small()), *some, FAST, resume=path)) == FAST.epochs


def test_another_model_is_not_resumed(some, state):
    with pytest.raises(ValueError, match=r"run.state belongs to a run with another model"):
        train(initialized(small_cnn, 0), *some, FAST, attack=partial(fgsm, threat=THREAT), resume=state)


def test_a_damaged_state_is_refused(some, state):
    content = state.read_bytes()
    for damaged in (b"", b"{}", content[: len(content) // 2], content[:-1], b"\x10" + content[1:]):
        state.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"run.state is damaged or not a training state.*remove it to start again"):
            train(small(), *some, FAST, attack=partial(fgsm, threat=THREAT), resume=state)
    for metadata in (None, {"other": "1"}, {"robustviz": "{"}):
        save_file({"weight": torch.zeros(1)}, state, metadata)
        with pytest.raises(ValueError, match=r"run.state is damaged or not a training state"):
            train(small(), *some, FAST, resume=state)


def test_the_state_is_on_disk_when_the_epoch_is_told(some, tmp_path):
    path, sizes = tmp_path / "run.state", []
    train(small(), *some, FAST, resume=path, on_epoch=lambda log: sizes.append(path.stat().st_size))
    assert len(sizes) == 2
    assert list(tmp_path.iterdir()) == [path]


# Bad input.


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("epochs", 0, "epochs must be >= 1, got 0"),
        ("batch_size", 0, "batch_size must be >= 1, got 0"),
        ("padding", -1, "padding must be >= 0, got -1"),
        ("seed", -1, "seed must be >= 0, got -1"),
        ("learning_rate", -0.1, "learning_rate must be >= 0 and below inf, got -0.1"),
        ("learning_rate", math.nan, "learning_rate must be >= 0"),
        ("learning_rate", math.inf, "learning_rate must be >= 0"),
        ("momentum", 1.0, "momentum must be >= 0 and below 1.0, got 1.0"),
        ("weight_decay", -1.0, "weight_decay must be >= 0"),
        ("schedule", "linear", "constant, steps, cosine, one-cycle, got 'linear'"),
        ("precision", "fp16", "auto, fp32, bf16, got 'fp16'"),
    ],
)
def test_bad_settings(unchecked, setting, value, words):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**{setting: value})


def test_bad_input(unchecked, some):
    images, labels = some
    frozen = small().requires_grad_(False)
    for model, bad_images, bad_labels, settings, error, words in (
        (small(), images * 255, labels, {}, ValueError, "divide by 255"),
        (small(), (images * 255).int(), labels, {}, TypeError, "floating-point"),
        (small(), images / 0, labels, {}, ValueError, "NaN"),
        (small(), images, labels[:50], {}, ValueError, r"shape \(200,\)"),
        (small(), images, labels - 1, {}, ValueError, "class indices from 0, got -1"),
        (small(), images, labels + 1, {}, ValueError, "below the number of classes 10, got 10"),
        (frozen, images, labels, {}, ValueError, "nothing to train"),
        (small(), images, labels, {"validation": 1.0}, ValueError, "validation must be a share"),
        (small(), images, labels, {"validation": -0.1}, ValueError, "validation must be a share"),
        (small(), images, labels, {"validation": 0.999}, ValueError, "validation must be a share"),
        (small(), images, labels, {"attack": partial(pgd, steps=0)}, ValueError, "steps must be"),
    ):
        with pytest.raises(error, match=words):
            train(model, bad_images, bad_labels, FAST, **settings)


def test_bytes_train_like_the_floats_they_are():
    """The same weights, and the same fingerprint, so that a run that was interrupted with floats goes on with bytes."""
    pixels = torch.randint(256, (40, 1, 8, 8), generator=seeded(0)).byte()
    labels, config = torch.arange(40) % 2, replace(FAST, epochs=2)
    assert fingerprint(pixels, labels) == fingerprint(pixels.float() / 255, labels)
    networks = [initialized(partial(small_cnn, classes=2), 0) for _ in range(2)]
    attack = partial(pgd, threat=THREAT, steps=1)
    for network, images in zip(networks, (pixels, pixels.float() / 255), strict=True):
        train(network, images, labels, config, attack=attack)
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
