"""Checks of the attacks: do they find what there is to find?"""

from itertools import pairwise

import torch

from robustviz.diagnostics.evidence import RESTARTS, Evidence
from robustviz.diagnostics.findings import Finding, graded, share_of
from robustviz.diagnostics.model_checks import ATHALYE, CARLINI, CROCE, PINTOR, TRAMER
from robustviz.tensors import batch_dependent, norms


def threat_model(evidence: Evidence) -> Finding:
    """Ask whether the threat makes sense and every attacked image obeys it: in the ball, in [0, 1], a number.

    Source: Carlini et al., arXiv 1902.06705 (state the threat model; check that attacks stay within it).
    """
    threat = evidence.threat
    check = "threat is kept"
    made = {name: outcome.images for name, outcome in evidence.outcomes.items()}
    lengths = {name: norms(images - evidence.images, threat.norm).max().item() for name, images in made.items()}
    strays = [name for name, length in lengths.items() if not length <= threat.epsilon + 1e-5]
    strays += [name for name, images in made.items() if not (images.min() >= 0 and images.max() <= 1)]
    number, stated = max(lengths.values()), f"The threat is {threat.norm} with epsilon {threat.epsilon:.4g} on [0, 1]"
    if strays:
        reason = f"{stated}, but images of {', '.join(dict.fromkeys(strays))} leave the ball or the gray scale."
        remedy = "Project them (tensors.project), or let attacks.bounded put back what lies outside."
        return Finding(check, "fail", number, "largest distance", reason, CARLINI, remedy)
    if not 0 < threat.epsilon < evidence.gray:
        wrong = "leaves nothing to attack" if threat.epsilon == 0 else "lets every image become plain gray"
        reason = f"{stated}, which {wrong}."
        remedy = "Give epsilon in units of the gray scale from 0 to 1, such as 8/255."
        return Finding(check, "fail", number, "largest distance", reason, CARLINI, remedy)
    reason = f"{stated}, and every image of {len(lengths)} attacks obeys it."
    return Finding(check, "pass", number, "largest distance", reason, CARLINI)


def iteration_helps(evidence: Evidence) -> Finding:
    """Ask whether PGD is at least as strong as a single step; where it is not, its gradient leads astray.

    Source: Athalye et al., arXiv 1802.00420 (one-step attacks perform better than iterative ones).
    """
    one, many = share_of(evidence.fgsm.right), share_of(evidence.walk.right[0])
    verdict = graded(many - one, evidence.least, max(0.02, 2 * evidence.least))
    reason = f"One step (FGSM) leaves {one:.1%} right, {evidence.steps} steps leave {many:.1%}"
    remedy = ""
    if verdict == "pass":
        reason += ", as it should be: small steps follow a curved surface better."
    else:
        reason += ": the small steps are led astray, which is a sign of a masked gradient."
        remedy = "Try smaller and larger steps and other losses; look at the gradient."
    return Finding("many steps beat one", verdict, many - one, "points", reason, ATHALYE, remedy)


def more_steps(evidence: Evidence) -> Finding:
    """Ask whether the attack has converged: twice the steps should change accuracy by at most half a point.

    With few images two of them are forgiven, here and for restarts.

    Source: Carlini et al., arXiv 1902.06705 (verify that attacks have converged).
    """
    before, after = share_of(evidence.walk.right[0]), share_of(evidence.longer.right)
    change = abs(before - after)
    verdict = graded(change, max(0.005, 2 * evidence.least), 0.05)
    reason = f"{evidence.steps} steps leave {before:.1%} right, {2 * evidence.steps} leave {after:.1%}"
    reason += ": the attack has converged." if verdict == "pass" else ": the attack has not converged."
    remedy = "" if verdict == "pass" else "Use more steps until the accuracy no longer changes, and report that number."
    return Finding("twice the steps", verdict, change, "points", reason, CARLINI, remedy)


def restarts(evidence: Evidence) -> Finding:
    """Ask what the last of several random starts still gains; a good attack needs few.

    Source: Carlini et al., arXiv 1902.06705 (try random restarts).
    """
    right = evidence.walk.right
    before, after = share_of(right[:-1].all(0)), share_of(right.all(0))
    gain = before - after
    verdict = graded(gain, max(0.01, 2 * evidence.least), 0.05)
    reason = f"{RESTARTS - 1} random starts leave {before:.1%} right, {RESTARTS} leave {after:.1%}"
    reason += ": one more start hardly matters." if verdict == "pass" else ": every start still finds new images."
    remedy = "" if verdict == "pass" else "Use more restarts, or a loss whose surface is less rough."
    return Finding("one more restart", verdict, gain, "points", reason, CARLINI, remedy)


def larger_epsilon(evidence: Evidence) -> Finding:
    """Ask whether accuracy falls with the radius, and to nothing where every image may become plain gray.

    A network cannot tell gray from gray. An attack that leaves it right there has not looked.

    Source: Athalye et al., arXiv 1802.00420 (unbounded attacks do not reach 100 % success; a larger bound does not
    help); Carlini et al., arXiv 1902.06705.
    """
    radii, shares = list(evidence.wider), list(evidence.wider.values())
    rise = max(after - before for before, after in pairwise(shares))
    chance = max(evidence.labels.bincount().max().item() / len(evidence.labels), 1 / evidence.logits.shape[1])
    left = shares[-1]
    curve = ", ".join(f"{share:.0%} at {radius:.3g}" for radius, share in zip(radii, shares, strict=True))
    verdicts = graded(rise, max(0.01, evidence.least), 0.05), graded(left, max(0.01, evidence.least), chance)
    verdict = next(v for v in ("fail", "doubtful", "pass") if v in verdicts)
    reason, remedy = f"Accuracy by radius: {curve}.", ""
    if verdict == "pass":
        reason += " It falls all the way to nothing."
    else:
        remedy = "The attack is at fault, not the network: look at gradient, loss and step size."
        reason += f" At radius {radii[-1]:.3g} every image may become plain gray, yet {left:.0%} are still correct"
        reason += "." if verdicts[0] == "pass" else f"; and a larger radius raises accuracy by up to {rise:.0%}."
    return Finding("larger epsilon", verdict, left, "share", reason, ATHALYE, remedy)


def other_losses(evidence: Evidence) -> Finding:
    """Ask how much lower the worst case over several losses, and over attacks made for the defense, lies.

    Source: Croce & Hein, arXiv 2003.01690; Tramer et al., arXiv 2002.08347 (an evaluation adapts to the defense).
    """
    found = {f"PGD on {name}": outcome for name, outcome in evidence.losses.items()} | evidence.given
    every = {name: outcome.right for name, outcome in found.items()}
    first = share_of(evidence.losses["cross-entropy"].right)
    worst = share_of(torch.stack([*every.values()]).all(0))
    strongest = min(every, key=lambda name: share_of(every[name]))
    verdict = graded(first - worst, 0.05, 0.1)
    reason = (
        f"PGD on cross-entropy leaves {first:.1%} right; of {len(every)} attacks the strongest ({strongest}) leaves "
        f"{share_of(every[strongest]):.1%}, and all together leave {worst:.1%}"
    )
    remedy = ""
    if verdict == "pass":
        reason += ": the usual loss is a fair judge here."
    else:
        reason += ": the usual loss overrates the network."
        remedy = "Report the worst case over all of them, image by image."
    source = TRAMER if evidence.given else CROCE
    return Finding("other losses and attacks", verdict, first - worst, "points", reason, source, remedy)


def black_box(evidence: Evidence) -> Finding:
    """Ask whether an attack that sees only the outputs finds what one that sees the gradient misses.

    It knows less, so it should find less. If it finds more, the gradient hides something.

    Source: Athalye et al., arXiv 1802.00420 (black-box attacks are better than white-box; random sampling finds
    adversarial examples); Carlini et al., arXiv 1902.06705.
    """
    check = "black box finds less"
    if batch_dependent(evidence.model):
        reason = (
            "The answers depend on the whole batch, so that a search by trial can only try whole batches and finds "
            "next to nothing; its failure would say nothing."
        )
        remedy = "Ask a view of the network that answers images one at a time (attacks.alone_head)."
        return Finding(check, "not run", None, "points", reason, ATHALYE, remedy)
    square, noise = (evidence.black[name].right for name in ("Square", "noise"))
    white, black = share_of(evidence.white), share_of(noise)
    new = evidence.white & ~noise
    verdict = graded(white - black, max(0.002, evidence.least), max(0.002, evidence.least))
    if verdict == "pass":
        verdict = graded(share_of(new), max(0.02, 2 * evidence.least), 1.0)
    drawn = share_of(square & ~noise)
    reason = (
        f"Attacks along the gradient leave {white:.1%} right, Square with {evidence.black_queries} queries and as many "
        f"draws of noise leave {black:.1%} (noise alone gained {100 * drawn:.1f} points); they fool {int(new.sum())} "
        "images that the gradient did not"
    )
    if verdict == "pass":
        return Finding(check, verdict, white - black, "points", f"{reason}.", ATHALYE)
    if verdict == "fail":
        reason += ": an attack that sees less finds more, so the gradient hides something."
    else:
        reason += ": each finds what the other misses, so neither alone is the worst case."
    remedy = "Attack with another gradient (BPDA, a smoother loss); report the worst case with the black box."
    return Finding(check, verdict, white - black, "points", reason, ATHALYE, remedy)


def transferred(evidence: Evidence) -> Finding:
    """Ask whether images made on an undefended network fool less than images made on the network itself.

    Source: Carlini et al., arXiv 1902.06705 (transfer attacks should be weaker); Athalye et al., arXiv 1802.00420.
    """
    check = "transfer finds less"
    if evidence.undefended is None:
        return _needs_undefended(check, "points")
    white = share_of(evidence.white)
    moved = share_of(evidence.moved.right)
    verdict = graded(white - moved, evidence.least, evidence.least)
    reason = f"Attacks on the network itself leave {white:.1%} right, images made on the undefended one {moved:.1%}"
    if verdict == "pass":
        reason += ", so looking into the network helps, as it should."
        return Finding(check, verdict, white - moved, "points", reason, CARLINI)
    reason += ": a stranger's images fool it better than its own, so its gradient hides something."
    remedy = "Attack the network without the part that hides the gradient, and score on the whole."
    return Finding(check, verdict, white - moved, "points", reason, CARLINI, remedy)


def along_the_path(evidence: Evidence) -> Finding:
    """Ask whether the attack passed wrong decisions on its path and returned a correct one.

    Source: Pintor et al., arXiv 2106.09947 (indicator: the attack does not return what it found).
    """
    share = share_of(evidence.walk.lost)
    verdict = graded(share, max(0.01, evidence.least), 0.05)
    reason = f"For {share:.1%} of the images PGD passed a wrong decision on its path and ended at a correct one"
    remedy = ""
    if verdict == "pass":
        reason += ": what it finds, it returns."
    else:
        reason += ": the decision flips back and forth, and the last point is not the best one."
        remedy = "Keep any wrong decision on the path (early_exit, attacks.apgd); smaller steps at the end."
    return Finding("nothing lost on the path", verdict, share, "share", reason, PINTOR, remedy)


def undefended_breaks(evidence: Evidence) -> Finding:
    """Ask whether the same attack breaks the undefended network, and this one with a part of its defense taken out.

    An attack that fails on an undefended network is too weak to say anything about a defended one. The parts taken out
    are those that the records of the defenses can take out of a `Classifier`, and its purifier.

    Source: Carlini et al., arXiv 1902.06705; Tramer et al., arXiv 2002.08347.
    """
    check = "undefended network breaks"
    if evidence.undefended is None:
        return _needs_undefended(check, "share")
    left = share_of(evidence.ask(evidence.elsewhere, evidence.undefended).argmax(1) == evidence.labels)
    own = share_of(evidence.walk.right[0])
    verdict = graded(left, 0.2, 0.5)
    reason = f"The same attack leaves the undefended network {left:.1%} right, this one {own:.1%}."
    for name, share in evidence.switched_off.items():
        reason += f" This one {name} keeps {share:.1%}."
    remedy = "" if verdict == "pass" else "Use a stronger attack: this one can hardly break a network without defense."
    return Finding(check, verdict, left, "share", reason, CARLINI, remedy)


def _needs_undefended(check: str, unit: str) -> Finding:
    reason = "No undefended network was given to compare with."
    remedy = "Give one trained on the same data without the defense (undefended=, --undefended)."
    return Finding(check, "not run", None, unit, reason, CARLINI, remedy)
