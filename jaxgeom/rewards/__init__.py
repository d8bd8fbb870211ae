"""Verifiers: a response in, a reward out: of 0 or 1 by the row's own answer or tests, of any size by a user's."""

from .code import code_reward as code_reward
from .code import extract_code as extract_code
from .code_tests import CodeTests as CodeTests
from .code_tests import holds_tests as holds_tests
from .code_tests import read_tests as read_tests
from .combined import Judge as Judge
from .combined import Judged as Judged
from .combined import Rewards as Rewards
from .math_answers import math_reward as math_reward
from .math_answers import normalize_answer as normalize_answer
from .math_answers import same_truth as same_truth
from .math_answers import verify_batch as verify_batch
from .math_extraction import extract_answer as extract_answer
from .own import GivenRow as GivenRow
from .own import OwnReward as OwnReward
from .own import own_reward as own_reward
from .truths import GroundTruth as GroundTruth
from .truths import allowed_answers as allowed_answers
from .truths import read_truth as read_truth
from .verifier import Truth as Truth
from .verifier import Verifier as Verifier
from .verifier import logged as logged
from .verifier import restored as restored
from .verifier import stored as stored
from .workers import close_checkers as close_checkers
