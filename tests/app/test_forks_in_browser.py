"""A fork is composed, started, watched and compared in a real browser, by clicking and typing only."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from data_index.workspace import Workspace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests is not installed

from tests.app.browser import chromium, served, visiting


def test_a_fork_is_composed_started_watched_and_compared(tiny: Workspace) -> None:
    chromium()
    with served(tiny) as url, visiting(url) as visitor:
        page = visitor.page
        visitor.open("/")
        visitor.click("Forks", "link")
        visitor.click("Compose a fork")
        page.get_by_label("Steps to take, at most 10").fill("8")
        page.get_by_label("Steps to take, at most 10").press("Enter")
        visitor.settle()
        page.get_by_label("Instances").last.fill("50")
        page.get_by_label("At step, or A:B").fill("11")
        visitor.click("Add", "button")
        visitor.click("Preview and cost", "button")
        page.wait_for_selector("text=What it would be")
        assert "drop 1 rows in 1 steps (11..11)" in visitor.text()
        composed = visitor.link()
        visitor.click("Start", "button")
        page.wait_for_selector("text=running for")
        page.wait_for_selector("text=This fork is there already.")  # nobody clicks: the page looks again itself
        visitor.settle()
        visitor.click("Compare it with its parent")
        visitor.wait_for_chart()
        (fork,) = tiny.fork_ids()
        assert f"compare={fork}" in visitor.link() and "no nulls, no claim" in visitor.text()
        visitor.open(composed)
        assert page.get_by_label("Edit 1").input_value() == "drop instance:50 @11"
    assert re.search(r"edits=drop\+instance%3A50", composed)
