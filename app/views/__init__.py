"""The pages of the explorer, one file each, run by Streamlit from top to bottom; each answers one question."""
