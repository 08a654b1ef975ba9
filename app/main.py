"""The explorer: its pages, and what is common to them. Started by `forensics app`."""

from __future__ import annotations

import streamlit as st

from app import data, frame
from data_index.errors import ForensicsError

# Drawn here: icons that Streamlit knows by name are fetched from a server where they stand for a page.
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="3" fill="#0072B2"/>'
    '<path d="M2 11h3l2-7 2 8 1.500-3H14" fill="none" stroke="#fff" stroke-width="1.6"/></svg>'
)
# Constant, never from data. A laptop's screen is low, and Streamlit leaves 6 rem of it empty.
STYLE = """<style>
.stMainBlockContainer {padding: 2.6rem 2.5rem 3rem}
.stSidebar .stCode {font-size: 0.8rem}
.stSidebar hr {margin: 0.8rem 0}
</style>"""

st.set_page_config(page_title="Checkpoint Forensics", page_icon=ICON, layout="wide")
st.html(STYLE)

RUNS = st.Page("views/runs.py", title="Runs", icon=":material/folder_open:", url_path="runs", default=True)
RUN = st.Page("views/run.py", title="Run", icon=":material/show_chart:", url_path="run")
RELEASED = st.Page("views/released.py", title="Released runs", icon=":material/public:", url_path="released")
STEP = st.Page("views/step.py", title="Step", icon=":material/article:", url_path="step")
SEARCH = st.Page("views/search.py", title="Search", icon=":material/search:", url_path="search")
SPIKES = st.Page("views/spikes.py", title="Spikes", icon=":material/bolt:", url_path="spikes")
FORKS = st.Page("views/forks.py", title="Forks", icon=":material/alt_route:", url_path="forks")
TOKENS = st.Page("views/tokens.py", title="Tokens", icon=":material/abc:", url_path="tokens")
TRAJECTORIES = st.Page(
    "views/trajectories.py", title="Trajectories", icon=":material/timeline:", url_path="trajectories"
)
SQL = st.Page("views/query.py", title="SQL", icon=":material/database:", url_path="sql")
# What of the selection each page's link says.
PAGES = {
    RUNS: ("run",),
    RUN: ("run", "step"),
    STEP: ("run", "step"),
    SEARCH: ("run", "kind", "what"),
    SPIKES: ("run", "peak"),
    FORKS: ("run", "view", "compare", "start", "num_steps", "edits", "set", "fresh"),
    TOKENS: ("run",),
    TRAJECTORIES: ("run",),
    SQL: ("query",),
    RELEASED: ("released",),
}

page = st.navigation(list(PAGES), position="hidden")
try:
    data.workspace()
except ForensicsError as error:
    frame.failed(str(error), "This workspace cannot be opened.")
    st.stop()
with st.sidebar:
    st.caption("Workspace" + (", shared read-only" if data.shared() else ""))
    st.code(str(data.workspace().folder), language=None, wrap_lines=True)
    # Not Streamlit's own list of pages: its links forget what is selected, and the browser's way back is lost.
    for there, names in PAGES.items():
        chosen = {name: value for name in names if (value := frame.selected(name)) is not None}
        st.page_link(there, query_params=chosen)
    st.divider()
page.run()
