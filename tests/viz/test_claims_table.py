"""The claims table: filters that agree with Python, text that stays text, and a table for places without a kernel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from dsv3_mini.course.claims import VERDICTS, Claim, load_claims
from dsv3_mini.errors import InputError
from dsv3_mini.viz.claims_table import MARKS, PLAIN_WIDTH, ClaimsTable, as_html, as_text

if TYPE_CHECKING:
    from playwright.sync_api import Page

TRAITS = ("verdict", "element", "text", "visible", "count")
HOSTILE = '<script>alert(1)</script> <img src=x onerror="alert(2)"> "quotes" & \u202eturned'


def hostile(verdict: str = "wrong") -> Claim:
    return Claim(id=f"<b>{verdict}", element=HOSTILE, claim=HOSTILE, verdict=verdict, why=HOSTILE, place=HOSTILE)


class Tags(HTMLParser):
    """The tags and the text of a page, as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_all_claims_are_shown_at_first() -> None:
    table = ClaimsTable()
    assert table.count == "43 of 43 claims"
    assert table.visible == [claim.id for claim in load_claims()]
    assert len(table.rows) == 43


def test_filters_are_traits_that_a_cell_or_the_page_can_set() -> None:
    table = ClaimsTable()
    table.verdict = "wrong"
    assert table.count.startswith("12 of 43 claims (wrong: contradicted")
    table.element = "section 06"
    assert table.visible == ["S06a", "S06c"]
    table.text = "LENSES"
    assert table.visible == ["S06a"]
    assert [claim.id for claim in table.selected()] == ["S06a"]
    table.verdict = table.element = table.text = ""
    assert table.count == "43 of 43 claims"


def test_filters_can_be_given_at_the_start() -> None:
    assert ClaimsTable(verdict="wrong", element="section 06", text="lenses").visible == ["S06a"]


def test_nothing_found_is_said() -> None:
    table = ClaimsTable(text="zebra")
    assert (table.count, table.visible) == ("0 of 43 claims", [])
    assert as_text(table.selected()) == "no claims"


def test_a_filter_that_no_claim_can_have_is_an_input_error() -> None:
    with pytest.raises(InputError, match="verdict = 'right' must be one of faithful"):
        ClaimsTable(verdict="right")
    with pytest.raises(InputError, match="element = 'section 99' must be one of header"):
        ClaimsTable(element="section 99")


def test_a_filter_from_the_page_that_makes_no_sense_finds_nothing() -> None:
    table = ClaimsTable()
    table.verdict = "<script>"
    assert table.count == "0 of 43 claims"


def test_each_verdict_has_a_mark_of_its_own() -> None:
    assert list(MARKS) == list(VERDICTS)
    assert len(set(MARKS.values())) == len(MARKS)
    assert {row["mark"] for row in ClaimsTable().rows} == set(MARKS.values())


def test_the_bundle_holds_the_widget_and_a_table_without_it() -> None:
    bundle = ClaimsTable(verdict="wrong")._repr_mimebundle_()
    assert bundle is not None
    data, _ = bundle
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}
    assert data["text/html"].count("<tr>") == 1 + 12  # only what the filters leave, as in the widget
    assert len(data["text/plain"].splitlines()) == 1 + 12
    json.dumps(data)


def test_the_html_table_names_its_rows_and_columns() -> None:
    page = as_html(load_claims())
    assert page.count('<th scope="row">') == 43
    assert page.count('<th scope="col">') == 5
    assert "43 claims: 7 faithful, 14 simplified, 12 wrong, 10 outside</caption>" in page
    assert page.count("✗ wrong") == 12


def test_the_plain_text_is_one_line_a_claim_and_fits_a_screen() -> None:
    lines = as_text(load_claims()).splitlines()
    assert len(lines) == 44
    assert max(map(len, lines)) <= PLAIN_WIDTH + 20
    assert any(re.match(r"✗ wrong       S04a  DeepSeekMoE integrates .* \(§2\.1, Figure 2\)$", line) for line in lines)


def test_markup_in_a_claim_stays_text_in_the_html() -> None:
    parsed = Tags(as_html([hostile()]))
    assert set(parsed.tags) <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "em"}
    assert HOSTILE in parsed.text


# A page with nothing but the module and a model that records what is asked of it.
BARE_PAGE = """<!DOCTYPE html><html lang="en"><title>claims</title><main id="here"></main><script type="module">
const source = %(module)s, state = %(state)s, heard = [];
window.asked = {};
window.keys = [];
document.addEventListener("keydown", (event) => window.keys.push(event.key));
const model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; window.asked[name] = value; },
  save_changes: () => {},
  on: (names, callback) => heard.push(callback),
  off: (names, callback) => heard.splice(heard.indexOf(callback), 1),
};
window.tell = (changes) => { Object.assign(state, changes); heard.forEach((callback) => callback()); };
const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
window.stop = module.default.render({ model, el: document.getElementById("here") });
window.heard = heard;
</script></html>"""


@pytest.fixture(scope="module")
def bare_page(chromium: str) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    table = ClaimsTable([hostile(), *load_claims()])
    state = {name: getattr(table, name) for name in (*TRAITS, "rows", "verdicts", "elements")}
    script = {"module": _literal(str(ClaimsTable._esm)), "state": _literal(state)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page()
            page.on("dialog", lambda dialog: pytest.fail(f"a claim ran: {dialog.message}"))
            page.set_content(BARE_PAGE % script)
            page.get_by_test_id("claims").wait_for()
            yield page
        finally:
            browser.close()


def _literal(value: object) -> str:
    """A value as JavaScript inside of a script element."""
    return json.dumps(value).replace("<", "\\u003c")


@pytest.mark.browser
def test_page_shows_markup_as_text(bare_page: Page) -> None:
    assert bare_page.locator("#here :is(script, img, b)").count() == 0
    shown = bare_page.locator("#here tbody tr").first.text_content()
    assert shown is not None and shown.count(HOSTILE) == 4  # element, claim, reason, place
    assert bare_page.get_by_label("Where on the page").locator("option").nth(1).text_content() == HOSTILE


@pytest.mark.browser
def test_page_asks_by_its_labelled_controls_and_shows_the_rows_it_is_told(bare_page: Page) -> None:
    bare_page.get_by_label("Verdict").select_option("wrong")
    bare_page.get_by_label("Where on the page").select_option("section 06")
    bare_page.get_by_label("Words").fill("lenses")
    assert bare_page.evaluate("window.asked") == {"verdict": "wrong", "element": "section 06", "text": "lenses"}
    bare_page.evaluate("window.tell({visible: ['S06a', 'S06c'], count: '2 of 44 claims'})")
    rows = bare_page.locator("#here tbody tr:visible")
    assert [row.get_attribute("data-id") for row in rows.all()] == ["S06a", "S06c"]
    assert bare_page.get_by_role("status").text_content() == "2 of 44 claims"
    assert bare_page.locator("#here tbody tr:visible td:nth-of-type(3)").all_inner_texts() == ["✗ wrong", "✗ wrong"]


@pytest.mark.browser
def test_page_follows_a_filter_that_a_cell_sets(bare_page: Page) -> None:
    bare_page.get_by_label("Words").focus()
    bare_page.evaluate("window.tell({text: 'cache', verdict: 'faithful'})")
    assert bare_page.get_by_label("Words").input_value() == "cache"
    assert bare_page.get_by_label("Verdict").input_value() == "faithful"


@pytest.mark.browser
def test_plain_keys_stay_in_the_table(bare_page: Page) -> None:
    bare_page.get_by_label("Verdict").focus()
    bare_page.keyboard.press("x")
    bare_page.keyboard.press("Control+s")
    assert "x" not in bare_page.evaluate("window.keys")
    assert "s" in bare_page.evaluate("window.keys")


def test_the_module_in_the_browser_never_inserts_markup() -> None:
    source = str(ClaimsTable._esm)
    assert "textContent" in source
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?:|import\s", source)


def test_the_colours_are_those_of_the_theme() -> None:
    css = re.sub(r"/\*.*?\*/", "", str(ClaimsTable._css), flags=re.DOTALL)
    assert "--jp-content-font-color1" in css and "--jp-layout-color1" in css
    assert not re.findall(r"#[0-9a-f]{3,6}", re.sub(r"var\([^)]*\)", "", css)), "a colour without a theme variable"
