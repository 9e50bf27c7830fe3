"""Run every check on one network."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from robustviz.checks import check_images
from robustviz.diagnostics import attack_checks, model_checks
from robustviz.diagnostics.evidence import OWN_NAMES, Evidence
from robustviz.diagnostics.findings import Diagnosis, Finding, doubted, share_of
from robustviz.diagnostics.gradients import gpus
from robustviz.evaluation import CLEAN
from robustviz.records import describe
from robustviz.tensors import draw_seed
from robustviz.types import LINF_8, Attack, Images, Labels, Threat

CHECKS: tuple[Callable[[Evidence], Finding], ...] = (
    attack_checks.threat_model,
    model_checks.clean_accuracy,
    model_checks.repeatable,
    model_checks.logit_scale,
    model_checks.gradient_present,
    model_checks.gradient_correct,
    attack_checks.iteration_helps,
    attack_checks.more_steps,
    attack_checks.restarts,
    attack_checks.larger_epsilon,
    attack_checks.other_losses,
    attack_checks.black_box,
    attack_checks.transferred,
    attack_checks.along_the_path,
    attack_checks.undefended_breaks,
)
"""Every check; each takes what was measured and returns one finding."""


def diagnose(
    model: nn.Module,
    images: Images,
    labels: Labels,
    *,
    threat: Threat = LINF_8,
    attacks: Mapping[str, Attack] | None = None,
    undefended: nn.Module | None = None,
    steps: int = 20,
    queries: int = 1000,
    generator: Generator | None = None,
    on_check: Callable[[Finding, int, int], Any] | None = None,
) -> Diagnosis:
    """Ask whether the robustness of a network is real: fifteen checks, which share what they measure.

    Args:
        model: Maps images in [0, 1] to logits; measured in evaluation mode and left exactly as it was.
        images: Clean images in [0, 1]; 100 to 500 of them, as one batch.
        labels: Their classes.
        threat: What the attacker may do.
        attacks: Attacks made for this defense, by name; they count in the worst case and show what the usual ones miss.
        undefended: A network for the same task without the defense; without it two checks are not run.
        steps: Steps of each iterated attack.
        queries: Proposals of each black-box attack; a random network is asked a tenth of them.
        generator: Source of the seed; None is a fresh one seeded 0.
        on_check: Called after every check with (finding, done, total); None shows a progress bar.

    Returns:
        One finding for each check, and the accuracies that they rest on.

    Raises:
        TypeError: If images or labels are not tensors of the right kind, or `undefended` is not a network.
        ValueError: If images, labels or a setting are out of range, a name in `attacks` is one that the checks use,
            the model does not return logits (n, K), or `undefended` has another number of classes.

    Source: Carlini et al., arXiv 1902.06705; Athalye et al., arXiv 1802.00420; Tramer et al., arXiv 2002.08347; Croce &
    Hein, arXiv 2003.01690; Pintor et al., arXiv 2106.09947.
    """
    check_images(images, labels)
    if steps < 1 or queries < 1:
        raise ValueError(f"steps and queries must be >= 1, got {steps} and {queries}")
    if not isinstance(undefended, nn.Module | None):
        kind = type(undefended).__name__
        raise TypeError(f"undefended must be a network (nn.Module) or None, got {kind}; checkpoints.load reads one")
    seed = draw_seed(generator)
    attacks = {} if attacks is None else dict(attacks)
    if taken := [name for name in attacks if name.startswith(OWN_NAMES)]:
        raise ValueError(f"names in attacks must not begin with {' / '.join(OWN_NAMES)}, got {taken[0]!r}; rename it")
    findings: list[Finding] = []
    models = [model] if undefended is None else [model, undefended]
    bar = tqdm(total=len(CHECKS), leave=False, disable=None if on_check is None else True)
    with restored(images, *models), counted(model) as seen, bar:
        evidence = Evidence(model, images, labels, threat, attacks, undefended, seed, steps, queries)
        if undefended is not None:
            _check_undefended(evidence)
        for done, check in enumerate(CHECKS, 1):
            bar.set_description(check.__name__.replace("_", " "))
            findings.append(doubted(check(evidence), len(images)))
            bar.update()
            if on_check is not None:
                on_check(findings[-1], done, len(CHECKS))
        every = {CLEAN: evidence.clean} | {name: outcome.right for name, outcome in evidence.outcomes.items()}
    settings = {
        "threat": describe(threat),
        "images": len(images),
        "attacks": describe(attacks),
        "undefended": describe(undefended),
        "steps": steps,
        "queries": queries,
        "seed": seed,
        "passes_per_image": round(seen[0] / len(images), 1),
    }
    accuracy = {name: share_of(right) for name, right in every.items()}
    worst = share_of(torch.stack([*every.values()]).all(0))
    return Diagnosis(tuple(findings), accuracy, worst, settings)


def _check_undefended(evidence: Evidence) -> None:
    found, classes = tuple(evidence.ask(evidence.images[:1], evidence.undefended).shape), evidence.logits.shape[1]
    if found != (1, classes):
        raise ValueError(
            f"undefended must have the {classes} classes of the model, but it answers one image with logits of shape "
            f"{found}; give a network of the same data set"
        )


@contextmanager
def restored(images: Images, *models: nn.Module) -> Iterator[None]:
    """Give buffers, modes and the global random state back as they were, whatever the networks do in between."""
    buffers = [(buffer, buffer.clone()) for model in models for buffer in model.buffers()]
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        with torch.random.fork_rng(gpus(images, *models)):
            yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
        for module, training in modes:
            module.training = training


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Count the images that pass through the network, also through views that share its first layer with weights."""
    leaves = (m for m in model.modules() if not [*m.children()] and [*m.parameters()])
    first, seen = next(leaves, model), [0]

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[0] += len(inputs[0])

    hook = first.register_forward_pre_hook(count)
    try:
        yield seen
    finally:
        hook.remove()
