"""The GRPO examples: gradients of the tiny model, that it learns, and the rules of the round."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from grpo.learn import LENGTH, SYMBOLS, Recipe, accuracy, answer, main, questions, rewards, train
from grpo.tiny import Tiny
from test_smollm2_model import small_model

SMALL = Recipe(steps=3, prompts=4, group=4, width=16, heads=2, layers=2)


def test_gradients_of_the_tiny_model_by_central_differences():
    rng = np.random.default_rng(0)
    model = Tiny(5, 6, width=8, heads=2, layers=2, seed=1)
    model.parameters = {name: p.astype(np.float64) for name, p in model.parameters.items()}
    ids, d = rng.integers(0, 5, (3, 6)), rng.standard_normal((3, 6, 5))
    _, tape = model(ids)
    gradients = model.backward(d, tape)
    for name, p in model.parameters.items():
        for _ in range(4):
            at = tuple(rng.integers(0, p.shape))
            before, values = p[at], []
            for step in (1e-6, -1e-6):
                p[at] = before + step
                values.append((model(ids)[0] * d).sum())
            p[at] = before
            assert_allclose(
                gradients[name][at], (values[0] - values[1]) / 2e-6, rtol=1e-4, atol=1e-6, err_msg=name
            )


def test_the_same_seed_gives_the_same_bits():
    (one, first), (two, second) = (train(SMALL, range(SMALL.steps)) for _ in range(2))
    assert dataclasses.asdict(first) == dataclasses.asdict(second)
    for name, p in one.parameters.items():
        assert p.tobytes() == two.parameters[name].tobytes()
    other, _ = train(dataclasses.replace(SMALL, seed=1), range(SMALL.steps))
    assert any(p.tobytes() != other.parameters[name].tobytes() for name, p in one.parameters.items())


def test_the_reward_rises():
    recipe = Recipe(steps=30, prompts=16, width=32)
    model, curve = train(recipe, range(recipe.steps))
    assert curve.exact[0] < 0.05
    assert np.mean(curve.reward[-3:]) > np.mean(curve.reward[:3]) + 0.2
    assert curve.entropy[-1] < curve.entropy[0]
    assert 0 <= accuracy(model, n=50) <= 1


def test_answers_and_rewards():
    question = questions(np.random.default_rng(0), 5)
    assert question.shape == (5, LENGTH)
    model = Tiny(SYMBOLS + 1, 2 * LENGTH + 1, width=8, heads=2, layers=1, seed=0)
    given, logp = answer(model, question, np.random.default_rng(1))
    assert given.shape == logp.shape == (5, LENGTH)
    assert (logp < 0).all()
    assert_array_equal(rewards(question, question[:, ::-1]), 1)
    assert_array_equal(answer(model, question, None)[0], answer(model, question, None)[0])


def test_the_command_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    target = tmp_path / "curve.png"
    assert main(["--steps", "2", "--plot", str(target), "--json", str(tmp_path / "curve.json")]) == 0
    assert target.stat().st_size > 1000
    assert "greedy answers" in capsys.readouterr().out


def test_rules_of_the_round():
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    from grpo.round import Question, arithmetic, scores

    made = arithmetic(30, 0)
    assert made == arithmetic(30, 0)
    for question in made:
        assert eval(question.text.removeprefix("What is ").removesuffix("?")) == question.answer
    question = Question("What is 2 + 3?", 5)
    assert scores("2 + 3 is five. Answer: 5", question) == [1, 1, 1]
    assert scores("That is 5", question) == [1, 0, 1]
    assert scores("Answer: 6", question) == [0, 1, 1]
    assert scores("пять", question) == [0, 0, 0]


class Letters:
    """A tokenizer whose tokens are numbers in words."""

    end = 0

    def chat(self, text):
        return [1 + len(text) % 40, 2, 3]

    def encode(self, text):
        return [1 + ord(c) % 40 for c in text[:4]]

    def decode(self, ids):
        return " ".join(map(str, ids))


def test_a_round_on_a_small_model(capsys):
    pytest.importorskip("gguf")
    pytest.importorskip("tokenizers")
    from grpo import round as grpo_round

    model = small_model()
    reader = grpo_round.Reader(model, Letters(), 6)
    cache = model.new_cache(9)
    model([4, 5, 6], cache)
    one, other = grpo_round.fork(model, cache), grpo_round.fork(model, cache)
    assert_array_equal(model([7], one), model([7], cache))
    model([8], other)
    assert one.length == other.length == cache.length == 4
    assert_array_equal(model([9], one), model([9], cache))  # the other's token is in neither

    greedy = reader.greedy("a")
    total, best = reader.beams("a", beam_width=1, num_return_sequences=1)[0]
    assert best[: len(greedy)] == greedy
    wide = reader.beams("a", beam_width=3, num_return_sequences=2)
    assert len(wide) == 2
    assert wide[0][0] >= wide[1][0]
    assert total < 0
    for ids, logps in reader.group("a", 2, seed=0):
        assert len(ids) == len(logps) <= 6
    asked = grpo_round.arithmetic(2, 0)
    figures = grpo_round.one_round(reader, asked, 3, seed=0)
    assert np.shape(figures["rewards"]) == (6, 3)
    assert figures["ratio"] == pytest.approx(1, abs=1e-4)
    grpo_round.side_by_side(reader, asked[0], 0)
    direct, behind = grpo_round.thought(reader, asked)
    assert (direct < 0).all()
    assert (behind < 0).all()
    assert "beam" in capsys.readouterr().out
