"""Jobs of a report: done once, tried again, limited, and left out with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.gpu_report.journal import JOB_SECONDS, Site
from bench.row import read_rows
from tests.bench.gpu_report.notes import FOREVER, SITE, Notes


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "rows.jsonl")


def test_what_was_found_is_kept_and_not_measured_again(notes: Notes, tmp_path: Path) -> None:
    notes.attempt_all(notes.job("a"))
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.facts == {"figure": 1, "table": [1]} and row.why_not is None
    assert (row.commit, row.where, row.versions) == SITE
    assert notes.said == ["lsun: a", "lsun: a: figure 1"]
    resumed = Notes(tmp_path / "rows.jsonl")
    resumed.attempt_all(resumed.job("a"), resumed.job("b"))
    assert [what for what, _ in resumed.went] == ["b"]
    assert resumed.said[0] == "lsun: a: measured before"


@pytest.mark.parametrize(
    "other",
    [SITE._replace(where="H200"), SITE._replace(commit="0" * 40), SITE._replace(versions={})],
)
def test_another_gpu_commit_or_version_is_measured_again(
    notes: Notes, tmp_path: Path, other: Site
) -> None:
    notes.attempt_all(notes.job("a"))
    elsewhere = Notes(tmp_path / "rows.jsonl", other)
    elsewhere.attempt_all(elsewhere.job("a"))
    assert elsewhere.went and len(read_rows(tmp_path / "rows.jsonl")) == 2


def test_what_failed_is_tried_again_in_the_next_session_only(notes: Notes, tmp_path: Path) -> None:
    failing = notes.job("a", why_not="no memory")
    notes.attempt_all(failing, failing)
    assert len(notes.went) == 1 and notes.reasons() == {"a": "no memory"}
    again = Notes(tmp_path / "rows.jsonl", session="4")
    again.attempt_all(again.job("a"))
    assert len(again.went) == 1 and again.reasons() == {"a": None}
    assert len(again.rows) == 1


def test_a_job_takes_half_of_the_time_or_what_it_needs(notes: Notes) -> None:
    notes.attempt_all(notes.job("a", 30), notes.job("b", 60), notes.job("c", 101), left=100)
    notes.attempt_all(notes.job("d"), left=FOREVER)
    assert notes.went == [("a", 50), ("b", 60), ("d", JOB_SECONDS)]
    assert notes.reasons()["c"] == "100 s left, 101 needed"


def test_what_cannot_do_without_another_is_not_begun(notes: Notes) -> None:
    build = notes.job("build", why_not="this GPU is too old")
    notes.attempt_all(build, notes.job("bench", after="build"), notes.job("ort", after="export"))
    assert [what for what, _ in notes.went] == ["build", "ort"]
    assert notes.reasons()["bench"] == "build: this GPU is too old"
