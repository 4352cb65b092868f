"""The head keeps every promise that noisy-model-learning asks of heads."""

from nml_standardised_head import StandardisedProbe

from plugins.testing import parametrize_head_checks


@parametrize_head_checks(StandardisedProbe)
def test_head_keeps_its_promises(check):
    check()
