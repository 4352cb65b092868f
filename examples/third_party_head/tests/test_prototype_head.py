"""Hold the head to the contract with the project's own kit, as any third party would."""

from plugins.testing import parametrize_head_checks
from prototype_head import Prototype


@parametrize_head_checks(Prototype)
def test_prototype_keeps_the_contract(check):
    check()
