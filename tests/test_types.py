import math

import pytest

from robustviz.types import LINF_8, Threat


@pytest.mark.parametrize("epsilon", [-1.0, -1e-9, math.nan, math.inf])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_threat_refuses_radius(norm, epsilon):
    with pytest.raises(ValueError, match=r"epsilon must be finite and >= 0 on the \[0, 1\] pixel scale, got"):
        Threat(norm, epsilon)


def test_threat_refuses_norm(unchecked):
    with pytest.raises(ValueError, match="norm must be one of linf, l2, got 'l1'"):
        Threat("l1", 0.1)


def test_threat_is_a_value():
    assert Threat("linf", 8 / 255) == LINF_8
    assert len({Threat("linf", 8 / 255), LINF_8, Threat("l2", 8 / 255)}) == 2
    assert Threat("l2", 0.0).epsilon == 0
    with pytest.raises(AttributeError):
        LINF_8.epsilon = 0.1
