"""Exercises of lesson 07, balance: imbalance, the bias update, node-limited gates, the loss of a sequence."""

from dsv3_mini.course.exercises.lesson_07.imbalance import IMBALANCE
from dsv3_mini.course.exercises.lesson_07.node_limited_gates import NODE_LIMITED_GATES
from dsv3_mini.course.exercises.lesson_07.sequence_loss import SEQUENCE_LOSS
from dsv3_mini.course.exercises.lesson_07.updated_bias import UPDATED_BIAS

EXERCISES = (IMBALANCE, UPDATED_BIAS, NODE_LIMITED_GATES, SEQUENCE_LOSS)
