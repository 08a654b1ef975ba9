"""The Streamlit explorer: it chooses and shows, it never computes. It has no page yet."""
