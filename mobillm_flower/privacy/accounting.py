"""What a release guarantees: σ and ε of the Gaussian mechanism, one (ε, δ) for a sample, composition over releases.

Everything here is local and per release: two samples are neighbours when one is replaced by the other (replace-one),
and the guarantee holds against the server itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from scipy.special import log_ndtr

from mobillm_flower.errors import ArgumentError
from mobillm_flower.privacy.discrete_gaussian import central_rho
from mobillm_flower.privacy.labelled_cap import LabelledCap
from mobillm_flower.privacy.randomized_response import RandomizedResponse

ACTIVATIONS = "activations"
LABELS = "labels"
JOINT = "activations and labels"

_ROUND_UP = 1 + 1e-10
"""Roots are found to about 1e-12; what is stated is on the safe side of them."""


@dataclass(frozen=True)
class Guarantee:
    """An (ε, δ) local differential privacy guarantee, or the reason why none can be named.

    Parameters
    ----------
    epsilon : float or None
        Total ε; None where there is none.
    delta : float
        Total δ of the protected parts.
    reason : str
        Why no ε can be named, in plain words; empty where one is.
    parts : mapping of str to (float, float)
        ε and δ of each protected part: `activations`, `labels`, or `activations and labels` where one ε pays for both.
        A part that is missing is sent unprotected.
    """

    epsilon: float | None
    delta: float
    reason: str = ""
    parts: Mapping[str, tuple[float, float]] = field(default_factory=dict)


UNPROTECTED = Guarantee(None, 0.0, "nothing is protected")


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """Return the least σ with which adding N(0, σ² I) is (ε, δ)-DP, exactly.

    The mechanism is (ε, δ)-DP if and only if Φ(Δ/2σ − εσ/Δ) − e^ε Φ(−Δ/2σ − εσ/Δ) ≤ δ: Balle and Wang 2018
    (arXiv 1805.06083), theorem 8. The classical σ = Δ √(2 ln(1.25/δ)) / ε is larger, and wrong for ε > 1.

    Parameters
    ----------
    epsilon : float
        Above 0 and finite.
    delta : float
        In (0, 1).
    sensitivity : float
        Δ, the largest L2 distance of two neighbours' values: 2 C for replace-one of a vector clipped to norm C.

    Returns
    -------
    float
        σ, in the units of the sensitivity.

    Raises
    ------
    ArgumentError
        A parameter is out of range.
    """
    _check_epsilon(epsilon)
    _check_delta(delta)
    _check_above_zero("sensitivity", sensitivity)
    target = math.log(delta)
    return sensitivity / _crossing(lambda mu: _log_delta(epsilon, mu) - target) * _ROUND_UP


def gaussian_epsilon(sigma: float, delta: float, sensitivity: float) -> float:
    """Return the least ε with which adding N(0, σ² I) is (ε, δ)-DP, exactly; the inverse of `gaussian_sigma`.

    Parameters
    ----------
    sigma : float
        Standard deviation of the noise in every coordinate, above 0.
    delta : float
        In (0, 1).
    sensitivity : float
        Δ, as for `gaussian_sigma`.

    Returns
    -------
    float
        ε, 0 where δ alone covers the difference.

    Raises
    ------
    ArgumentError
        A parameter is out of range.
    """
    _check_above_zero("sigma", sigma)
    _check_delta(delta)
    _check_above_zero("sensitivity", sensitivity)
    mu, target = sensitivity / sigma, math.log(delta)
    if _log_delta(0.0, mu) <= target:
        return 0.0
    return _crossing(lambda epsilon: target - _log_delta(epsilon, mu)) * _ROUND_UP


def sums_sigma(epsilon: float, delta: float, *, device_rows: int = 0) -> float:
    """Return σ of the discrete Gaussian noise on sums of samples whose z and target have norms of at most 1.

    Replacing one sample (z, t) by (z', t') moves (Σzzᵀ, Σztᵀ) in the Frobenius norm, with a = zᵀz' and b = tᵀt', by at
    most √(2 − 2a² + 2 − 2ab) ≤ √(4 − 2a² + 2|a|) ≤ √4.5, reached at |a| = ½ and b = −sign(a). n stays as it is. Adding
    or removing one moves it by at most √2. A device whose statistic has a norm of at most √2·m moves it by at most
    2·√2·m when it is replaced. Sums of whole numbers under a discrete Gaussian of standard deviation σ·unit are
    (Δ²/2σ²)-zCDP (Canonne, Kamath and Steinke 2020, 2004.00010, theorem 14), and so are shares of the noise that add up
    to it, up to a term that is below 10^-20 from σ = 10 units on (Kairouz, Liu and Steinke 2021, 2102.06387).

    Parameters
    ----------
    epsilon, delta : float
        What is promised.
    device_rows : int
        m where a device is protected; 0: a sample is.
    """
    _check_epsilon(epsilon)
    _check_delta(delta)
    sensitivity = 2 * math.sqrt(2) * device_rows if device_rows else math.sqrt(4.5)
    return sensitivity / math.sqrt(2 * central_rho(epsilon, delta)) * _ROUND_UP


def guarantee(
    *,
    joint_epsilon: float,
    activation_sigma: float,
    clip_norm: float,
    delta: float,
    label_epsilon: float,
    base_is_constant: bool,
    classes: int,
) -> Guarantee:
    """Return what one release of one sample guarantees.

    `LabelledCap` covers activations and label by one pure ε. Otherwise the parts add up: the Gaussian mechanism on the
    clipped activations, sensitivity 2 C, and randomized response on the label.

    No ε is named where a part that is sent has no mechanism, or where the difference Δy = onehot(ỹ) − p_b carries a
    base prediction p_b that the device computed from the clean text.

    Parameters
    ----------
    joint_epsilon : float
        ε of `LabelledCap`; 0 where it is off.
    activation_sigma : float
        σ of the Gaussian noise on activations; 0 where there is none.
    clip_norm : float
        C, L2 norm to which a sample's activations are clipped jointly; 0 where they are not.
    delta : float
        δ of the Gaussian mechanism, in (0, 1); not used without it.
    label_epsilon : float
        ε of randomized response on labels; 0 where it is off.
    base_is_constant : bool
        Whether the sent target holds nothing of the text beside the label: p_b = 1/K, p_b computed by the server from
        the noised release, or the label itself.
    classes : int
        K; 0 where the target is not a class.

    Returns
    -------
    Guarantee
        With ε, or with the reasons why none can be named.

    Raises
    ------
    ArgumentError
        A value is out of range, or two mechanisms are asked for the same part.

    Examples
    --------
    >>> guarantee(
    ...     joint_epsilon=0, activation_sigma=2.2, clip_norm=1.0, delta=1e-5, label_epsilon=1.0,
    ...     base_is_constant=False, classes=2,
    ... ).reason
    'the prediction difference carries a base prediction that is a function of the text'
    """
    _check_mechanisms(joint_epsilon, activation_sigma, clip_norm, label_epsilon)
    parts: dict[str, tuple[float, float]] = {}
    reasons: list[str] = []
    if joint_epsilon:
        if classes < 1:
            reasons.append("the target is not a class, and the joint mechanism covers classes only")
        part = JOINT if classes >= 1 else ACTIVATIONS
        parts[part] = (LabelledCap(joint_epsilon, max(classes, 1)).epsilon, 0.0)
    else:
        if not activation_sigma:
            reasons.append("activations are not noised")
        elif not clip_norm:
            reasons.append("activations are noised but not clipped, so that their sensitivity has no bound")
        else:
            parts[ACTIVATIONS] = (gaussian_epsilon(activation_sigma, delta, 2 * clip_norm), delta)
        if classes < 1:
            reasons.append("the target is sent unprotected, and randomized response covers classes only")
        elif not label_epsilon:
            reasons.append("labels are sent unprotected")
        else:
            parts[LABELS] = (RandomizedResponse(label_epsilon, classes).epsilon, 0.0)
    if not base_is_constant:
        reasons.append("the prediction difference carries a base prediction that is a function of the text")
    return _total(parts, reasons)


def compose(guarantees: Iterable[Guarantee]) -> Guarantee:
    """Return what several releases guarantee together: several of one sample, or several samples of one person.

    Basic composition: ε and δ add up (Dwork and Roth 2014, theorem 3.16). It is an upper bound; many Gaussian releases
    compose to less.

    Parameters
    ----------
    guarantees : iterable of Guarantee
        One for each release; none at all guarantee ε = 0.

    Returns
    -------
    Guarantee
        No ε where one of them has none; a part is then named only if every release protects it.
    """
    several = list(guarantees)
    reasons = list(dict.fromkeys(one.reason for one in several if one.epsilon is None))
    names = dict.fromkeys(name for one in several for name in one.parts)
    if reasons:
        names = dict.fromkeys(name for name in names if all(name in one.parts for one in several))
    parts = {
        name: (
            math.fsum(one.parts[name][0] for one in several if name in one.parts),
            math.fsum(one.parts[name][1] for one in several if name in one.parts),
        )
        for name in names
    }
    return _total(parts, reasons)


def _total(parts: Mapping[str, tuple[float, float]], reasons: Iterable[str]) -> Guarantee:
    reason = "; ".join(reasons)
    epsilon = None if reason else math.fsum(epsilon for epsilon, _ in parts.values())
    return Guarantee(epsilon, math.fsum(delta for _, delta in parts.values()), reason, parts)


def _log_delta(epsilon: float, mu: float) -> float:
    """Log of the least δ at ε, for μ = Δ/σ: log[Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ)]."""
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    ratio = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)) - first
    return first + math.log(-math.expm1(ratio)) if ratio < 0 else -math.inf


def _crossing(rising: Callable[[float], float]) -> float:
    """Return where a rising function of a positive number crosses zero."""
    low = high = 1.0
    while rising(high) < 0:
        high *= 2
    while rising(low) > 0:
        low /= 2
    from scipy.optimize import brentq  # a third of a second, in every process of a device

    return float(brentq(rising, low, high, xtol=low * 1e-13, rtol=1e-13)) if low < high else low


def _check_mechanisms(joint_epsilon: float, activation_sigma: float, clip_norm: float, label_epsilon: float) -> None:
    for name, value in (
        ("joint_epsilon", joint_epsilon),
        ("activation_sigma", activation_sigma),
        ("clip_norm", clip_norm),
        ("label_epsilon", label_epsilon),
    ):
        if not 0 <= value < math.inf:
            raise ArgumentError(name, value, "must be 0 or above, and finite: 0 switches it off")
    if joint_epsilon and (activation_sigma or label_epsilon):
        raise ArgumentError(
            "joint_epsilon",
            joint_epsilon,
            f"covers activations and labels: leave activation_sigma={activation_sigma!r} and "
            f"label_epsilon={label_epsilon!r} at 0, or use those two alone",
        )


def _check_epsilon(epsilon: float) -> None:
    if not 0 < epsilon < math.inf:
        raise ArgumentError("epsilon", epsilon, "must be above 0 and finite: use 1 to 16")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ArgumentError("delta", delta, "must be above 0 and below 1: use 1e-5 or less")


def _check_above_zero(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ArgumentError(name, value, "must be above 0 and finite: give a positive number")
