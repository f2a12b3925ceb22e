"""Exhibits of lesson 07: five mistakes of balance and of the choice of experts, one a module."""

from dsv3_mini.course.museum.lesson_07.best_of_a_group import BEST_OF_A_GROUP
from dsv3_mini.course.museum.lesson_07.bias_in_weights import BIAS_IN_WEIGHTS
from dsv3_mini.course.museum.lesson_07.detached_loss import DETACHED_LOSS
from dsv3_mini.course.museum.lesson_07.wrong_sign import WRONG_SIGN
from dsv3_mini.course.museum.lesson_07.zero_wins import ZERO_WINS

EXHIBITS = (WRONG_SIGN, ZERO_WINS, BIAS_IN_WEIGHTS, BEST_OF_A_GROUP, DETACHED_LOSS)
