"""A learner's first minute: the first lesson opens in a browser, and its kernel is this environment."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

import dsv3_mini
from dsv3_mini.lab import FIRST_LESSON

from .notebook_page import NotebookPage

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from .conftest import LabServer

pytestmark = pytest.mark.browser


def test_first_lesson_opens_with_a_kernel_of_this_environment(lab_server: LabServer, page: Page) -> None:
    lesson = NotebookPage(page, lab_server.url)
    lesson.open(FIRST_LESSON)
    code = "import dsv3_mini, json, sys; print(json.dumps([sys.prefix, dsv3_mini.__version__]))"
    assert lesson.python(code) == [sys.prefix, dsv3_mini.__version__]
    assert page.locator(".jp-Notebook .jp-Cell").count() > 1
    assert page.locator(".jp-Dialog").count() == 0, "Lab greets a learner with a question"
    assert lesson.requests > 0
    assert lesson.outside == []
