"""Math rewards: what is equal, and that nothing a model writes can break or stall the verifier."""

import contextlib
import math
import os
import random
import threading
import time

import pytest
import sympy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxgeom.rewards import close_checkers, extract_answer, math_exact, math_reward, normalize_answer, verify_batch
from jaxgeom.rewards import math_checker as checker_module
from jaxgeom.rewards.math_exact import equal
from jaxgeom.rewards.math_judgement import AlgebraNeededError, is_right
from jaxgeom.rewards.workers import Worker
from tests.rewards import answer_traps
from tests.rewards.answer_pairs import RESPONSES, RIGHT, WRONG

ALGEBRA = [(r"\sqrt{8}", r"2\sqrt{2}", 1.0), (r"x^2 + 2x + 1", r"(x+1)^2", 1.0), (r"\sqrt{8}", "3", 0.0)]


@pytest.mark.parametrize(
    ("answer", "truth", "reward"), [(*p, 1.0) for p in RIGHT] + [(*p, 0.0) for p in WRONG] + ALGEBRA
)
def test_pairs_are_judged_as_a_grader_would(answer, truth, reward):
    assert math_reward(rf"thus \boxed{{{answer}}}.", truth) == reward


@pytest.mark.parametrize("kind", ["WORDS", "LETTERS", "COMMAS", "DATES_AND_BASES", "VALUES"])
def test_what_looks_alike_is_told_apart(kind):
    found, expected = {}, {}
    for truth, (wrong, right) in getattr(answer_traps, kind).items():
        for answers, verdict in ((wrong, False), (right, True)):
            for answer in filter(None, answers.split("|")):
                found[answer, truth] = is_right(answer, (truth,), equal)
                expected[answer, truth] = verdict
    assert {pair: verdict for pair, verdict in found.items() if verdict is not expected[pair]} == {}


def test_a_binomial_is_computed_where_it_has_few_bits_and_never_otherwise():
    """Against `math.comb`; two equal ones that are too large are not shown to be equal, and nothing is computed."""
    generator = random.Random(0)
    for _ in range(40):
        n = generator.choice((20, 3000, 10**9))
        k = generator.randrange(9) if n > 3000 or generator.random() < 0.5 else n - generator.randrange(9)
        assert equal(rf"\binom{{{n}}}{{{k}}}", str(math.comb(n, k))), (n, k)
        exact = math.log2(math.comb(n, k))
        assert exact <= math_exact._binomial_bits(sympy.Integer(n), sympy.Integer(k)) <= 4 * exact + 100, (n, k)
    large = [(r"10^8", r"10^7", r"9\cdot 10^7"), ("1000000", "100000", "900000"), (r"\binom{50}{25}", "200000", "n")]
    for n, k, other in large:
        assert not equal(rf"\binom{{{n}}}{{{k}}}", rf"\binom {{{n}}} {{{other}}}")
    assert equal(r"\binom{n}{2}", r"\frac{n(n-1)}{2}") and not equal(r"\binom{n}{10^7}", r"\binom{n}{10^7+1}")


@pytest.mark.parametrize(("text", "truth", "reward"), RESPONSES)
def test_responses_are_judged_as_a_grader_would(text, truth, reward):
    assert math_reward(text, truth) == reward


@pytest.mark.parametrize(
    ("answer", "truth", "reward"),
    [
        ("5", "5", 1.0),
        ("-5", "-5.00", 1.0),
        ("1,234,567", "1234567", 1.0),
        (".5", "0.5", 1.0),
        (r"\dfrac{2}{4}", "0.5", 1.0),
        ("2 1/2", "2.5", 1.0),
        ("1e-7", r"10^{-7}", 1.0),
        ("1011_2", "11", 1.0),
        (r"\left(1,\,x\right)", "(1, x)", 1.0),
        ("(B)", "B", 1.0),
        ("Monday", r"\text{monday}", 1.0),
        ("5", 5, 1.0),
        ("0.25", 0.25, 1.0),
        ("5", "so it is\n#### 5", 1.0),
        ("0.3", "0.4", 0.0),
        ("0.3333333333", "1/3", 0.0),
        ("1e-7", "2e-7", 0.0),
    ],
)
def test_plain_answers_are_judged_without_a_process(answer, truth, reward, monkeypatch):
    monkeypatch.setattr(checker_module.pool, "lent", lambda: pytest.fail("a process was asked"))
    assert math_reward(rf"thus \boxed{{{answer}}}", truth) == reward


@given(st.fractions(), st.fractions(), st.integers(1, 60))
def test_two_numbers_are_equal_only_where_they_are(a, b, digits):
    def written(value):
        return str(value.numerator) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"

    assert math_reward(rf"\boxed{{{written(a)}}}", written(a)) == 1.0
    assert math_reward(rf"\boxed{{{written(a)}}}", written(b)) == float(a == b)
    assert math_reward(rf"\boxed{{{written(a + type(a)(1, 10**digits))}}}", written(a)) == 0.0


@pytest.mark.parametrize("base", ["2", "e", r"\pi", r"\sqrt{2}"])
def test_powers_far_below_any_tolerance_differ(base):
    for exponent in (-20, -98, -300):
        assert math_reward(rf"\boxed{{{base}^{{{exponent}}}}}", f"{base}^{{{exponent - 1}}}") == 0.0
        assert math_reward(rf"\boxed{{{base}^{{{exponent}}}}}", rf"\frac{{1}}{{{base}^{{{-exponent}}}}}") == 1.0


def test_no_answer_is_worth_nothing_and_no_truth_is_refused():
    for text in ("", " ", "5", r"\boxed{}", "Answer:", "####"):
        assert math_reward(text, "5") == 0.0
    for truth in ("", [], ["5", ""], float("nan")):
        with pytest.raises(ValueError, match="ground_truth"):
            math_reward(r"\boxed{5}", truth)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=30), st.text(min_size=1, max_size=10).filter(str.strip))
@example("{" * 500, "x")
@example("\\" * 99, "1/0")
@example("9" * 5000, "1")
@example("\ud800\x00\n", "5")
@example(r"\frac{1}{0}", "1")
@example("1/0", "0.5")
@example("١", "1")
def test_garbage_never_raises(answer, truth):
    for text in (rf"\boxed{{{answer}}}", f"Answer: {answer}", answer):
        assert math_reward(text, truth, timeout=2.0) in (0.0, 1.0)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from([r"\boxed{", r"\frac", "{", "}", "(", "]", "1", "x", "=", "<", ",", "^", "_", r"\text{", "kg"])
    )
)
def test_pieces_of_answers_never_raise(pieces):
    assert math_reward(r"\boxed{" + "".join(pieces), "(1,2)", timeout=2.0) in (0.0, 1.0)


def test_normalizing_keeps_the_spaces_that_mean_something():
    assert normalize_answer("1 1/2") == "1 1/2" != normalize_answer("11/2")
    assert normalize_answer(r"$\left( x + 1 \right)$.") == "(x+1)"
    assert normalize_answer("–５") == "-5"


def test_works_in_threads_and_in_batches():
    pairs = [(*p, 1.0) for p in RIGHT[:30]] + [(*p, 0.0) for p in WRONG[:30]] + ALGEBRA
    random.Random(0).shuffle(pairs)
    texts, truths, rewards = (
        [rf"\boxed{{{a}}}" for a, _, _ in pairs],
        [t for _, t, _ in pairs],
        [r for _, _, r in pairs],
    )
    found = []
    thread = threading.Thread(target=lambda: found.append(verify_batch(texts, truths)))
    thread.start()
    thread.join()
    assert found == [rewards]
    assert verify_batch([], []) == []
    with pytest.raises(ValueError, match="2 texts but 1"):
        verify_batch(["a", "b"], ["a"])


def test_a_killed_process_is_replaced():
    assert math_reward(r"\boxed{\sqrt{18}}", r"3\sqrt{2}") == 1.0
    victim = checker_module.pool.idle[-1].process
    victim.kill()
    victim.wait()
    assert math_reward(r"\boxed{\sqrt{32}}", r"4\sqrt{2}") == 1.0
    assert victim not in [worker.process for worker in checker_module.pool.idle]


@pytest.mark.parametrize(
    ("answer", "truths"),
    [
        ("10^{999999999}", ["10^{999999998}"]),
        ("(0, 9^{9^{9^{9}}})", ["(0, 9^{9^{9^{8}}})"]),
        (r"\binom{1000000000}{500000000}", ["5", "6", "7", "8"]),
        (r"\int_0^1 e^{x^2}\sin(x^3)\log(x+1) dx", ["5", "6", "7", "8"]),
        (r"\sum_{k=1}^{100000000} \frac{1}{k}", ["5"]),
    ],
)
def test_one_answer_takes_a_bounded_time_with_all_its_truths(answer, truths):
    def processor_seconds():
        times = os.times()
        return times.children_user + times.children_system

    checker = Worker("math_worker", 2**31)
    before = processor_seconds()
    assert not checker.ask([answer, truths, 0.5], 60.0)
    checker.close()  # reaps the process, and with it its processor time: its start (about 1 s), and the answer
    assert processor_seconds() - before < 0.5 + 1.0 + 3.0  # the limit, the hard end, the start


MANY = (
    r"\boxed{", "7", r"\frac", " ", "$", "{", "}", "\n", "####", "answer is ", "a\u0301", "\\", "Answer:\n", "答案",
    "<think>", "</think>", "because ", "\r\n",
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{" * 8000,
        r"\boxed{" * 140_000,
        r"\boxed{" * 8000 + "}" * 8000,
        r"\boxed{1}," * 90_000,
        r"\boxed 5" * 110_000,
        "answer is " * 99_000,
        "answer" + " " * 900_000,
        r"\boxed{" + "(" * 900 + ")" * 900 + "}",
        r"\boxed{" + "sqrt(" * 390 + "}",
        r"\boxed{" + "1," * 900 + "}",
        "(a) " * 499,
        *(piece * (2**22 // len(piece)) for piece in MANY),
    ],
    ids=range(11 + len(MANY)),
)
def test_finding_and_reading_take_linear_time(text):
    begun = time.process_time()
    extract_answer(text)
    math_reward(text, "5," + "6," * 800 + "7")
    assert time.process_time() - begun < 3.0  # 0.3 s where this was written; 47 s and more where it was quadratic


@pytest.mark.parametrize("piece", [*MANY, "sqrt(", "(a) ", "√", r"\, ", r"\text{", "1{,}000", "π", "|", r"\left"])
def test_what_is_judged_takes_linear_time(piece):
    """Of what no limit on lengths keeps away: the spelling, and the longest answers that are judged at all."""
    begun = time.process_time()
    normalize_answer(piece * (60_000 // len(piece)))
    longest = piece * (1990 // len(piece))
    for answer in (longest, longest + "1", "1" + longest):
        with contextlib.suppress(AlgebraNeededError):  # which has its own limit, in a process of its own
            is_right(answer, [longest + "5"])
    assert time.process_time() - begun < 2.0  # 0.1 s where this was written; 5 s and more where it was quadratic


def test_a_truth_of_many_answers_is_read_once():
    truth = "so it is " * 10_000 + r"\boxed{5}"
    begun = time.process_time()
    assert verify_batch([r"\boxed{5}", r"\boxed{6}"] * 500, [truth] * 1000) == [1.0, 0.0] * 500
    assert time.process_time() - begun < 2.0  # 0.1 s where this was written


def test_closing_ends_the_processes_and_new_ones_start():
    assert math_reward(r"\boxed{2\sqrt{3}}", r"\sqrt{12}") == 1.0
    processes = [checker.process for checker in checker_module.pool.idle]
    close_checkers()
    assert processes and all(process.poll() is not None for process in processes)
    assert math_reward(r"\boxed{3\sqrt{3}}", r"\sqrt{27}") == 1.0
