"""`forensics app`: how it starts, ends and fails, and what the explorer asks besides the verbs."""

from __future__ import annotations

import csv
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pyarrow
import pytest

from data_index.errors import AddressInUse, InvalidRange, StepOutOfRange
from data_index.kinds import table_of_rows
from data_index.workspace import Workspace, learn
from forensics.explorer_server import (
    ALL_ADDRESSES,
    FIRST_PORT,
    THIS_MACHINE,
    Address,
    chosen_address,
    open_when_ready,
    settings,
)
from forensics.overview import issue_matrix, known_issues, overview
from forensics.step_text import step_text, tiled
from forensics.tables import shown_cell, shown_columns, table_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests is not installed

from tests.forensics.test_cli import forensics


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something else listens on."""
    with socket.socket() as other:
        other.bind((THIS_MACHINE, 0))
        other.listen()
        yield other.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((THIS_MACHINE, 0))
        return int(probe.getsockname()[1])


# --- starting and ending ---------------------------------------------------------------------------------------------


def answers(url: str, process: subprocess.Popen[str]) -> str:
    """What a page says once the server is there; fails where it ends instead."""
    for _ in range(600):
        assert process.poll() is None, process.communicate()
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} never answered")


def handshake(port: int, host: str, origin: str) -> int:
    """What the server says to a browser that wants to talk to the pages."""
    lines = (
        *("GET /_stcore/stream HTTP/1.1", f"Host: {host}", f"Origin: http://{origin}", "Upgrade: websocket"),
        *("Connection: Upgrade", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13", "", ""),
    )
    with socket.create_connection((THIS_MACHINE, port), timeout=10) as asking:
        asking.sendall("\r\n".join(lines).encode())
        return int(asking.recv(100).split()[1])


@pytest.mark.parametrize("ends_with", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_from_any_folder_with_an_empty_home_and_ends_cleanly(
    tiny_shared: Workspace, tmp_path: Path, ends_with: signal.Signals
) -> None:
    """Without .streamlit and without an answer to Streamlit's questions; another `app` beside it is not taken."""
    (tmp_path / "app.py").write_text("raise SystemExit('not the one that was asked for')\n")
    port = free_port()
    command = [Path(sys.executable).with_name("forensics"), "app", "--workspace", tiny_shared.folder]
    process = subprocess.Popen(
        [*map(str, command), "--port", str(port), "--no-browser"],
        cwd=tmp_path,
        env=os.environ | {"HOME": str(tmp_path / "home"), "PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert answers(f"http://{THIS_MACHINE}:{port}/_stcore/health", process) == "ok"
        for page in ("/", "/run?run=tiny", "/step"):
            html = answers(f"http://{THIS_MACHINE}:{port}{page}", process)
            assert "<html" in html and html.count("BACKEND_BASE_URL: location.origin") == 1
        here = f"{THIS_MACHINE}:{port}"
        assert handshake(port, here, here) == 101
        # As a page of another site would ask, its name made to lead here or not.
        assert handshake(port, f"evil.example:{port}", f"evil.example:{port}") == 403
        assert handshake(port, here, "evil.example") == 403
        process.send_signal(ends_with)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()

    assert process.returncode == 0, err
    assert f"http://{THIS_MACHINE}:{port}" in err and "Traceback" not in err and "@" not in out
    assert not (tmp_path / ".streamlit").exists()


def test_a_port_in_use_is_said(tiny_shared: Workspace, taken: int) -> None:
    done = forensics(tiny_shared, "app", "--port", str(taken), "--no-browser")

    assert (done.returncode, done.stdout) == (1, "")
    assert f"port {taken} is in use" in done.stderr and "--port" in done.stderr and "Traceback" not in done.stderr


def test_a_missing_workspace_is_said(tmp_path: Path) -> None:
    done = forensics(Workspace(tmp_path / "none"), "app", "--no-browser")

    assert done.returncode == 1 and "there is no workspace" in done.stderr and "forensics demo" in done.stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_port_that_is_none_is_refused(port: int) -> None:
    with pytest.raises(InvalidRange, match="1 to 65535"):
        chosen_address(port, shared=False)


def test_without_a_port_the_first_free_one_is_taken(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    monkeypatch.setattr("forensics.explorer_server.FIRST_PORT", taken)
    assert taken < chosen_address(None, shared=False).port < taken + 50
    monkeypatch.setattr("forensics.explorer_server.NUM_PORTS", 1)
    with pytest.raises(AddressInUse, match=f"ports {taken} to {taken} are in use"):
        chosen_address(None, shared=False)


def test_only_share_listens_to_other_machines() -> None:
    private, shared = Address(port=FIRST_PORT, shared=False), Address(port=FIRST_PORT, shared=True)

    assert settings(private)["server.address"] == THIS_MACHINE
    assert settings(shared)["server.address"] == ALL_ADDRESSES
    assert settings(shared)["client.showErrorDetails"] == "none"  # no paths of this machine in tracebacks


def test_every_setting_is_one_that_streamlit_has() -> None:
    """An unknown one is passed over in silence."""
    from streamlit import config

    known = set(config.get_config_options(force_reparse=True))
    asked = {name for name in settings(Address(port=FIRST_PORT, shared=False))}

    assert asked <= known, asked - known


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_the_browser_is_opened_once_something_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    with HTTPServer((THIS_MACHINE, 0), Health) as server:
        url = f"http://{THIS_MACHINE}:{server.server_port}"
        asking = threading.Thread(target=open_when_ready, args=(url, threading.Event()))
        asking.start()
        server.handle_request()
        asking.join(timeout=30)
    assert opened == [url]


def test_no_browser_is_opened_for_what_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    ended = threading.Event()
    ended.set()
    open_when_ready(f"http://{THIS_MACHINE}:{free_port()}", ended)

    assert opened == []


@pytest.mark.parametrize("share", [False, True])
def test_sharing_is_said_and_told_to_the_pages(
    tiny_shared: Workspace, monkeypatch: pytest.MonkeyPatch, share: bool
) -> None:
    served: list[tuple[Address, bool]] = []
    monkeypatch.setattr("forensics.explorer_server.serve", lambda at, *, browser: served.append((at, browser)))
    monkeypatch.setenv("FORENSICS_WORKSPACE", "")
    monkeypatch.setenv("FORENSICS_SHARED", "")
    done = forensics(tiny_shared, "app", *(["--share"] if share else []))

    ((address, browser),) = served
    assert done.returncode == 0 and address.shared is share and browser
    assert ("reads the whole workspace" in done.stderr) is share
    assert (os.environ["FORENSICS_SHARED"], os.environ["FORENSICS_WORKSPACE"]) == (
        "1" if share else "",
        str(tiny_shared.folder),
    )


# --- what it asks ----------------------------------------------------------------------------------------------------


def test_a_page_of_rows_is_that_of_the_batch(tiny_shared: Workspace) -> None:
    from data_index.text import decode
    from forensics.lookup import batch

    rows = batch("tiny", 8, tokens=True, workspace=tiny_shared).to_pylist()
    run = tiny_shared.run("tiny")
    found = step_text("tiny", 8, first_row=3, num_rows=4, workspace=tiny_shared)

    assert found.num_rows == 8 and found.in_words and [row.number for row in found.rows] == [3, 4, 5, 6]
    for row, expected in zip(found.rows, rows[3:7], strict=True):
        assert (row.instance, row.file, row.offset) == (expected["instance"], expected["file"], expected["offset"])
        assert [p.document_id for p in row.pieces if p.document_id is not None] == expected["document_ids"]
        assert [row.pieces[0].start, row.pieces[-1].stop] == [0, 64]
        whole = "".join(piece.text for piece in row.pieces)
        assert whole.isascii() and whole == decode(run, expected["token_ids"]).replace("\r\n", "\n")


def test_pages_of_rows_end_with_the_batch(tiny_shared: Workspace) -> None:
    assert len(step_text("tiny", 8, first_row=6, workspace=tiny_shared).rows) == 2
    with pytest.raises(InvalidRange, match=r"has rows 0\.\.7"):
        step_text("tiny", 8, first_row=8, workspace=tiny_shared)
    with pytest.raises(StepOutOfRange):
        step_text("tiny", 21, workspace=tiny_shared)


def test_what_an_edit_hides_is_told_of_its_own_row(tiny: Workspace) -> None:
    run = tiny.run("tiny")
    start = run.segment_of_step(8).positions_of_step(8).start
    mask = {"step": 8, "attempt": 1, "position": start + 5, "instance": 0, "start": 2, "stop": 9, "reason": "edit"}
    learn(tiny.home("tiny"), "masks", table_of_rows("masks", [mask], "test"))
    found = step_text("tiny", 8, first_row=4, num_rows=3, workspace=tiny)

    assert [sum(piece.num_hidden for piece in row.pieces) for row in found.rows] == [0, 7, 0]


def test_looking_without_remembering_writes_nothing(tiny: Workspace) -> None:
    """What others may look at must not be changed by them."""
    learn(tiny.home("tiny"), "block_hashes", table_of_rows("block_hashes", [], "test"))
    before = (tiny.home("tiny") / "current.json").read_bytes()
    step_text("tiny", 8, remember=False, workspace=tiny)
    assert (tiny.home("tiny") / "current.json").read_bytes() == before
    step_text("tiny", 8, workspace=tiny)
    assert (tiny.home("tiny") / "current.json").read_bytes() != before


def test_a_row_is_tiled_by_its_documents_and_what_lies_between() -> None:
    assert tiled([], 4) == [(0, 4, None)]
    assert tiled([(3, 5, 7), (0, 2, 6)], 6) == [(0, 2, 6), (2, 3, None), (3, 5, 7), (5, 6, None)]
    assert tiled([(0, 4, 1), (2, 6, 2), (3, 4, 3)], 6) == [(0, 4, 1), (4, 6, 2)]


def test_the_overview_counts_checkpoints_once_and_tells_issues(tiny: Workspace, tiny_copy: Path) -> None:
    import shutil

    shutil.rmtree(tiny_copy / "checkpoints" / "step15")
    audit = {"artifact": "checkpoint 15", "step": 15, "check": "there", "result": "failed", "detail": "it is gone"}
    audit |= {"num_bytes": 1, "checked_at": "2026-01-01"}
    learn(tiny.home("tiny"), "audit", table_of_rows("audit", [audit, audit | {"result": "ok"}], "test"))
    (row,) = overview(tiny)

    assert (row["run"], row["checkpoints"], row["available"], row["optimizer"]) == ("tiny", 4, 4, 4)
    assert (row["first_step"], row["last_step"], row["order"], row["problem"]) == (1, 20, "exact", "")
    assert known_issues(tiny) == [
        {"run": "tiny", "step": 15, "what": "checkpoint 15", "kind": "there", "issue": "failed, it is gone"}
    ]


def test_issues_are_counted_by_run_and_kind() -> None:
    issues = [{"run": run, "kind": kind} for run, kind in ("bA", "aB", "bA", "bC")]

    assert issue_matrix(issues) == [
        {"run": "b", "A": 2, "B": None, "C": 1},
        {"run": "a", "A": None, "B": 1, "C": None},
    ]
    assert issue_matrix([]) == []


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tiny: Workspace, tiny_copy: Path) -> None:
    from data_index.registration import add

    add(tiny_copy, name="broken", workspace=tiny)
    (tiny.home("broken") / "run.toml").write_text("no = 1\n")
    broken, sound = overview(tiny)

    assert broken["problem"] and sound["run"] == "tiny" and not sound["problem"]
    assert [row["run"] for row in known_issues(tiny)] == ["broken"]


def test_a_table_as_a_file_is_the_same_table() -> None:
    import pyarrow.parquet

    table = pyarrow.table({"a": [1, None], "b": ["x,\n", "y"], "c": [[1, 2], None]})

    assert pyarrow.parquet.read_table(io.BytesIO(table_file(table, ".parquet"))).equals(table)
    rows = list(csv.DictReader(io.StringIO(table_file(table, ".csv").decode())))
    assert [row["b"] for row in rows] == ["x,\n", "y"] and rows[0]["c"] == "[1, 2]"


def test_cells_are_numbers_and_text() -> None:
    """A browser's numbers are exact up to 2**53; two columns of one name must not hide each other."""
    table = pyarrow.Table.from_arrays(
        [pyarrow.array([2**53, 2**53 - 1]), pyarrow.array([["\x1b"], None]), pyarrow.array([b"\xff", None])],
        names=["x", "x", "y"],
    )

    assert shown_columns(table, 10) == {
        "x": [str(2**53), 2**53 - 1],
        "x_2": ['["\\u001b"]', None],
        "y": ["b'\\xff'", None],
    }
    assert shown_columns(table, 1)["y"] == ["b'\\xff'"]
    assert shown_cell(True) is True and shown_cell(float("inf")) == float("inf")
