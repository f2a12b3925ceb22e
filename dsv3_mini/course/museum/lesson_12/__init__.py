"""Bug museum of lesson 12: a draft judged one place too early, and rejected drafts that stay in the cache."""

from dsv3_mini.course.museum.lesson_12.missing_crop import MISSING_CROP
from dsv3_mini.course.museum.lesson_12.too_early import TOO_EARLY

EXHIBITS = (TOO_EARLY, MISSING_CROP)
