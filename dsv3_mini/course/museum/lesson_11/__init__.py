"""Exhibits of lesson 11: four mistakes of the training loop, one a module."""

from dsv3_mini.course.museum.lesson_11.coupled_decay import COUPLED_DECAY
from dsv3_mini.course.museum.lesson_11.each_tensor import EACH_TENSOR
from dsv3_mini.course.museum.lesson_11.mean_of_means import MEAN_OF_MEANS
from dsv3_mini.course.museum.lesson_11.weights_only import WEIGHTS_ONLY

EXHIBITS = (COUPLED_DECAY, MEAN_OF_MEANS, EACH_TENSOR, WEIGHTS_ONLY)
