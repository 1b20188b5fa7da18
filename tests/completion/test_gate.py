"""The gate, the mixture and the search: fitted to what was seen, kept beside the model, and what they decide."""

import json
import random

import numpy as np
import pytest

from mlxgpt import files, weights
from mlxgpt.completion import calibration, gate, mixture
from mlxgpt.completion.cursors import pick_cursors
from mlxgpt.completion.gate import Evidence, Gate, Point
from mlxgpt.completion.index import Index
from mlxgpt.completion.mixture import CAUTIOUS, Mixture, Observation
from mlxgpt.completion.ngram import Prediction
from mlxgpt.completion.search import best_first, others
from mlxgpt.completion.settings import NAME, Settings
from mlxgpt.completion.suggest import Suggester
from mlxgpt.errors import Error


def evidence(p: float, margin: float = 0.0, agreement: float = 0.0) -> Evidence:
    return Evidence(float(np.log(p)), float(np.log(p)), margin, agreement, 3, 10, False)


def test_without_calibration_the_confidence_is_the_lines_own_probability():
    for p in (0.01, 0.3, 0.999):
        assert Gate().confidence(evidence(p)) == pytest.approx(p)
    assert Gate().confidence(evidence(1e-30)) == pytest.approx(1e-6)
    assert Gate().threshold(0.2) == pytest.approx(0.8)


def test_a_gate_learns_how_far_probabilities_can_be_believed():
    """Lines that agree with the n-grams are right twice as often here as they say, the others never."""
    draw = random.Random(0)
    cases = []
    for _ in range(1500):
        p, agreed = draw.uniform(0.05, 0.5), draw.random() < 0.5
        cases.append((evidence(p, agreement=float(agreed)), agreed and draw.random() < 2 * p))
    fitted = gate.fit(cases)
    for p in (0.1, 0.3, 0.45):
        assert fitted.confidence(evidence(p, agreement=1.0)) == pytest.approx(2 * p, abs=0.12)
        assert fitted.confidence(evidence(p)) < 0.05
    assert [point.threshold for point in fitted.curve] == [i / 20 for i in range(20)]
    wrong = [right for e, right in cases if fitted.confidence(e) >= fitted.threshold(0.2)].count(False)
    shown = sum(fitted.confidence(e) >= fitted.threshold(0.2) for e, _ in cases)
    assert 0 < wrong <= 0.2 * shown
    assert gate.fit([]) == Gate()


def test_a_few_cases_of_one_kind_do_not_carry_it_away():
    fitted = gate.fit([(evidence(0.5), True)] * 5)
    assert 0.5 < fitted.confidence(evidence(0.5)) < 0.99
    assert fitted.confidence(evidence(0.01)) < 0.5


def test_a_rate_that_is_never_kept_to_shows_nothing():
    curve = [Point(0.0, 1.0, 0.9), Point(0.5, 0.5, 0.4), Point(0.9, 0.1, 0.3)]
    assert Gate(curve=curve).threshold(0.4) == 0.5
    assert Gate(curve=curve).threshold(0.1) > 1


def test_the_mixture_learns_whom_to_believe():
    """N-grams are right where they found a long context, the model elsewhere."""
    draw = random.Random(1)
    seen = []
    for _ in range(600):
        length = draw.choice([1, 20])
        right = length == 20
        at = Prediction([1], [0.9], length, 1.0)
        seen.append(Observation(0.05 if right else 0.6, 0.9 if right else 0.02, mixture.features(at)))
    fitted = mixture.fit(seen)
    assert fitted.share(Prediction([1], [0.9], 20, 1.0)) > 0.8
    assert fitted.share(Prediction([1], [0.9], 1, 1.0)) < 0.2
    assert mixture.fit([]) == Mixture()


def test_a_blend_is_a_distribution_between_the_two():
    model = np.array([0.7, 0.2, 0.1, 0.0])
    at = Prediction([3, 1, -2], [0.6, 0.3, 0.1], 5, 2.0)
    share = Mixture().share(at)
    assert 0 < share < 1
    assert Mixture().blend(model, at) == pytest.approx((1 - share) * model + share * np.array([0.0, 0.3, 0.0, 0.6]))
    assert Mixture().blend(model, Prediction([], [], 0, 0.0)) == pytest.approx(model)


def test_settings_come_back_from_a_folder(tmp_path):
    assert Settings.load(tmp_path) == Settings()
    settings = Settings(Mixture((1.0, 2.0, 3.0, 4.0)), {"both": Gate(tuple(range(8)), [Point(0.5, 0.25, 0.125)])})
    settings.save(tmp_path)
    again = Settings.load(tmp_path)
    assert again.mixture == settings.mixture
    assert again.gate("both").weights == tuple(map(float, range(8)))
    assert again.gate("both").curve == [Point(0.5, 0.25, 0.125)]
    assert again.gate("model") == Gate()


@pytest.mark.parametrize(
    "table",
    [
        {}, [], {"format": 9, "mixture": [1, 2, 3, 4], "gates": {}}, {"format": 1, "mixture": [1], "gates": {}},
        {"format": 1, "mixture": [1, 2, 3, 4], "gates": {"both": {"weights": {}}}}, {"format": 1, "mixture": 7},
    ],
)  # fmt: skip
def test_damaged_settings_are_refused(tmp_path, table):
    (tmp_path / NAME).write_text(json.dumps(table))
    with pytest.raises(Error, match=r"completion.json is damaged .*train again"):
        Settings.load(tmp_path)


def test_a_run_is_calibrated_when_it_ends(trained):
    settings = Settings.load(trained)
    assert settings.gates.keys() == {"both", "model"}
    assert settings.mixture.weights != CAUTIOUS
    assert files.read_json(trained / NAME)["gates"]["both"]["curve"][0][1] == 1.0


def test_calibration_makes_held_out_confidence_true(trained, code):
    """Over held-out cursors, the mean confidence is about the share that is right."""
    model, tokenizer = weights.load_with_tokenizer(trained)
    documents = [(p.name, p.read_bytes()) for p in sorted(code.iterdir())]
    index = Index(tokenizer)
    index.build(documents[:5])
    settings = calibration.calibrate(model, tokenizer, index, documents[5:8], 6)
    suggester = Suggester(model, tokenizer, index, "both", settings)
    cases = calibration.judge(suggester, pick_cursors(documents[5:8], 60, 5), 4)
    confidence = np.mean([settings.gate("both").confidence(e) for e, _ in cases])
    assert confidence == pytest.approx(np.mean([right for _, right in cases]), abs=0.2)


def test_the_likeliest_path_is_found_where_the_greedy_one_is_not():
    tree = {(): [(1, -0.5), (2, -0.9)], (1,): [(0, -3.0)], (2,): [(0, -0.1)]}
    asked = []

    def expand(path):
        asked.append(path)
        return tree[path]

    def ends(path):
        return path[-1] == 0

    found = best_first(expand, ends, 9, 10, 0.0)
    assert (found.path, found.ended) == ((2, 0), True)
    assert found.logprob == pytest.approx(-1.0)
    assert found.margin == pytest.approx(2.5)  # before (1, 0) at -3.5
    assert best_first(expand, ends, 9, 1, 0.0).path == (1, 0)  # out of expansions: the greedy one
    assert best_first(expand, ends, 9, 10, 5.0).path == (1, 0)
    assert best_first(expand, ends, 1, 10, 0.0).ended is False
    asked.clear()
    assert best_first(expand, ends, 0, 10, 0.0).path == ()
    assert asked == []
    assert best_first(lambda path: [], ends, 9, 10, 0.0).path == ()


def test_other_paths_part_from_the_likeliest_and_come_in_turn():
    tree = {(): [(1, -0.5), (2, -0.9), (3, -2.0)], (1,): [(0, -3.0)], (2,): [(0, -0.1)], (3,): [(0, -0.2), (4, -5.0)]}
    for expansions in (10, 1):  # with 1 the first is finished greedily, and is among those that are open

        def ends(path):
            return path[-1] == 0

        found = best_first(tree.__getitem__, ends, 9, expansions, 0.0)
        rest = list(others(tree.__getitem__, ends, 9, found))
        assert {found.path, *(other.path for other in rest)} == {(1, 0), (2, 0), (3, 0)}
        assert len(rest) == 2
        assert all(other.ended and other.margin == pytest.approx(other.logprob - found.logprob) for other in rest)
    assert list(others(lambda path: [], ends, 9, best_first(lambda path: [], ends, 9, 10, 0.0))) == []
