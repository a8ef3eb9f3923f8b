from fvit.evaluation.measures import TOKENS
from fvit.evaluation.measuring import certified_sets
from tests.evaluation.cases import certificate


def test_as_many_tokens_are_removed_of_each_kind_the_firmest_first() -> None:
    asked = certificate(map_radii=(0.1, 0.3, -0.5, 0.0, -0.2, -0.4, 0.2, -0.1))
    found = {name: chosen.tolist() for name, chosen in certified_sets(asked).items()}
    assert found[TOKENS[0]] == [1, 6, 0]
    assert found[TOKENS[1]] == [2, 5, 4]
    assert found[TOKENS[3]] == [2, 5, 4, 7]
    assert [len(found[TOKENS[place]]) for place in (2, 4)] == [3, 4]
    assert set(found[TOKENS[2]]) < set(range(8))
    fewer_out = certificate(map_radii=(0.1, 0.3, -0.5, 0.2))
    found = {name: chosen.tolist() for name, chosen in certified_sets(fewer_out).items()}
    assert (found[TOKENS[0]], found[TOKENS[1]], found[TOKENS[3]]) == ([1], [2], [2])
    assert set(certified_sets(certificate(map_radii=(0.1, 0.0, 0.0, 0.2)))) == set()


def test_the_most_firmly_certified_tokens_come_first_and_ties_fall_at_random() -> None:
    """Many tokens that no copy chose have one radius: the first of them would all lie in the upper rows."""
    asked, out = certificate(map_radii=(0.3, -0.5, -0.4, -0.5)), TOKENS[1]
    found = {int(certified_sets(asked.model_copy(update={"seed": seed}))[out][0]) for seed in range(30)}
    assert found == {1, 3}
