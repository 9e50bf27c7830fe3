"""Checks of the network itself: is it the function that the attacks take it for?"""

import torch

from robustviz.diagnostics.evidence import PASS_DRAWS, PASSES, SAME_ANSWER, Evidence
from robustviz.diagnostics.findings import FEW, MORE_IMAGES, Finding, Verdict, graded
from robustviz.evaluation import wilson

CARLINI = "Carlini et al., On evaluating adversarial robustness, arXiv 1902.06705"
ATHALYE = "Athalye, Carlini & Wagner, Obfuscated gradients give a false sense of security, arXiv 1802.00420"
TRAMER = "Tramer et al., On adaptive attacks to adversarial example defenses, arXiv 2002.08347"
CROCE = "Croce & Hein, Reliable evaluation of adversarial robustness, arXiv 2003.01690"
PINTOR = "Pintor et al., Indicators of attack failure, arXiv 2106.09947"

LARGE_GAP, LOST_GAP = 30.0, 100.0
"""Differences of logits: above the first cross-entropy is nearly flat, above the second float32 has nothing left."""


def clean_accuracy(evidence: Evidence) -> Finding:
    """Ask whether the network classifies clean images correctly, in evaluation mode, and stays as it is in use.

    A forward pass that switches a layer to train mode, or moves the averages of batch norm, makes every further answer
    that of another network.

    Source: Carlini et al., arXiv 1902.06705 (report clean accuracy; check the released code for such mistakes).
    """
    right, count = evidence.clean, len(evidence.labels)
    share, classes = right.double().mean().item(), evidence.logits.shape[1]
    low, high = wilson(share, count)
    verdict: Verdict = "pass"
    remedy = ""
    reason = f"It classifies {share:.1%} of {count} clean images correctly (95 % interval {low:.1%} to {high:.1%})"
    if evidence.logits.isnan().any():
        verdict, reason = "fail", "Its logits contain NaN, so that its decisions mean nothing."
        remedy = "Find where they arise; a training that diverged is the usual cause."
    elif evidence.changes:
        names, verdict = _some(evidence.changes), "fail"
        reason += f", but each use changes it: in evaluation mode a forward pass changed {names}."
        remedy = "A forward pass must not call train() nor write to buffers."
    elif low <= 1 / classes and count >= FEW:
        verdict, reason = "fail", f"{reason}, hardly more than by guessing among {classes} classes."
        remedy = "Check labels, normalization and the range of the images."
    elif evidence.training:
        verdict = "doubtful"
        reason += f", measured in evaluation mode; but it was handed over in train mode ({_some(evidence.training)})."
        remedy = (
            "Call model.eval() before you measure: in train mode answers depend on the batch and change the network."
        )
    elif high - low > 0.2 or count < FEW:
        verdict, reason, remedy = "doubtful", f"{reason}; so few images leave too much open.", MORE_IMAGES
    else:
        reason += ", and a forward pass leaves modes and buffers as they were."
    return Finding("clean accuracy", verdict, share, "share", reason, CARLINI, remedy)


def repeatable(evidence: Evidence) -> Finding:
    """Ask whether the same image gets the same answer again, and also in the company of other images.

    An attack that follows one draw of a random network aims at a target that is gone. It must follow the mean over
    draws (EOT). Answers that depend on the batch must be attacked and scored in whole batches.

    Source: Athalye et al., arXiv 1802.00420 (stochastic gradients).
    """
    check, spread = "repeatable answers", evidence.spread
    verdict: Verdict
    if evidence.random:
        decisions = evidence.passes.argmax(2)
        moving = (decisions != decisions[0]).any(0).double().mean().item()
        single, averaged = (r.double().mean().item() for r in (evidence.walk.right[0], evidence.averaged.right))
        reason = (
            f"{PASSES} passes over the same images differ by {spread:.2g} of the largest logit and change the decision "
            f"on {moving:.1%} of them. Under fresh draws, PGD that followed one draw leaves {single:.1%} right, "
            f"PGD that followed the mean of {PASS_DRAWS} draws leaves {averaged:.1%}."
        )
        remedy = "Attack the mean over draws (attacks.eot), score under fresh draws, and report the spread."
        verdict = "fail" if single - averaged > max(0.02, 2 * evidence.least) else "doubtful"
        return Finding(check, verdict, spread, "of the largest logit", reason, ATHALYE, remedy)
    some = max(len(evidence.images) // 2, 1)
    alone = evidence.difference(evidence.ask(evidence.images[:some]), evidence.logits[:some])
    if alone <= 10 * SAME_ANSWER:
        reason = f"{PASSES} passes over the same images agree, and an image is answered alike in another batch."
        return Finding(check, "pass", spread, "of the largest logit", reason, ATHALYE)
    declared = any(getattr(module, "batch_dependent", False) for module in evidence.model.modules())
    reason = (
        f"The answer for an image depends on the other images of its batch: in a batch of half the size the logits "
        f"move by {alone:.2g} of the largest."
    )
    remedy = (
        "Report the batch size, attack and score in whole batches, and also attack one image among clean ones."
        if declared
        else "Look for batch norm that uses the statistics of the batch; else set batch_dependent = True on the module."
    )
    verdict = "doubtful" if declared else "fail"
    return Finding(check, verdict, alone, "of the largest logit", reason, ATHALYE, remedy)


def logit_scale(evidence: Evidence) -> Finding:
    """Ask whether the outputs are logits, of a size at which cross-entropy still has a gradient.

    Probabilities pass through a second softmax in the loss, which flattens it. Very large logits make the softmax
    exactly 0 or 1 in floating point, and the gradient of cross-entropy vanishes; the margin does not suffer from it.

    Source: Croce & Hein, arXiv 2003.01690; Carlini & Wagner, arXiv 1608.04644.
    """
    logits = evidence.logits.double()
    top = logits.topk(2, dim=1).values
    gap = (top[:, 0] - top[:, 1]).median().item()
    check, unit = "outputs are logits", "median gap"
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < 1e-3).all()):
        reason = (
            "Every row of outputs is positive and adds up to 1: these are probabilities, not logits. Cross-entropy "
            "applies a second softmax to them, and its gradient almost disappears."
        )
        return Finding(check, "fail", gap, unit, reason, CROCE, "Return the logits, before the softmax.")
    verdict = graded(gap, LARGE_GAP, LOST_GAP)
    reason = f"On half of the images the largest logit is at least {gap:.3g} above the second"
    if verdict == "pass":
        return Finding(check, verdict, gap, unit, f"{reason}, where cross-entropy still has a gradient.", CROCE)
    reason += ": the softmax is 0 or 1 as far as floating point can tell, and the gradient of cross-entropy vanishes."
    return Finding(check, verdict, gap, unit, reason, CROCE, "Attack the margin or DLR, or divide the logits.")


def gradient_present(evidence: Evidence) -> Finding:
    """Ask for how many correctly classified images the gradient of a usual loss is exactly zero or not a number.

    Source: Athalye et al., arXiv 1802.00420 (shattered gradients); Carlini et al., arXiv 1902.06705.
    """
    right = evidence.clean
    shares = {name: int((dead & right).sum()) / max(int(right.sum()), 1) for name, dead in evidence.dead.items()}
    worst = max(shares.values())
    verdict = graded(worst, max(0.01, evidence.least), 0.1)
    listed = ", ".join(f"{share:.0%} ({name})" for name, share in shares.items())
    reason, remedy = f"The gradient is exactly zero or not a number for {listed} of the images", ""
    if verdict == "pass":
        reason += ", so an attack has something to follow."
    else:
        reason += ", so an attack that follows it does not move them."
        remedy = "Use a loss that still has a gradient, let the gradient pass another way (BPDA), or use no gradient."
    return Finding("gradient is there", verdict, worst, "share", reason, ATHALYE, remedy)


def gradient_correct(evidence: Evidence) -> Finding:
    """Ask whether the gradient that autograd gives is that of the network: compare it with central differences.

    Both give the slope of the margin along random directions. Where the network does not change at all in a small
    neighborhood, the differences are taken over a tenth of the gray scale: a network of steps has no slope that helps.

    Source: Athalye et al., arXiv 1802.00420 (gradients that are wrong); Carlini et al., arXiv 1902.06705.
    """
    by_gradient, by_difference = evidence.slopes(1e-3)
    if not by_difference.any():
        by_gradient, by_difference = evidence.slopes(0.1)  # a step that no rounding of pixels hides
    larger = torch.maximum(by_gradient.norm(dim=1), by_difference.norm(dim=1)).clamp_min(1e-12)
    error = ((by_gradient - by_difference).norm(dim=1) / larger).median().item()
    verdict = graded(error, 0.1, 0.5)
    reason = f"Slopes by autograd and by central differences differ by {error:.1%} on half of the images or more"
    remedy = ""
    if verdict == "pass":
        reason = f"Slopes by autograd and by central differences agree: half of the images are within {error:.1%}."
    elif not by_gradient.any():
        reason += ": the outputs do change when the pixels move, but the gradient says that they do not."
        remedy = (
            "Let the gradient pass the step as if it were not there (attacks.identity_backward), or use no gradient."
        )
    else:
        reason += ": an attack that follows the gradient does not climb what it wants to climb."
        remedy = "A layer has a gradient that is not its own, or jumps; attack with its exact or a smoother one."
    return Finding("gradient is right", verdict, error, "median relative error", reason, ATHALYE, remedy)


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
