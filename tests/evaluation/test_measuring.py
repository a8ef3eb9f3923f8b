from fvit.evaluation.measures import TOKENS
from fvit.evaluation.measuring import certified_sets
from tests.evaluation.cases import certificate


def test_the_most_firmly_certified_tokens_come_first_and_ties_fall_at_random() -> None:
    """Many tokens that no copy chose have one radius: the first of them would all lie in the upper rows."""
    asked, out = certificate(map_radii=(0.3, -0.5, -0.4, -0.5)), TOKENS[1]
    found = {int(certified_sets(asked.model_copy(update={"seed": seed}))[out][0]) for seed in range(30)}
    assert found == {1, 3}
