"""The Streamlit explorer: it chooses and shows, it never computes. `main` is its first file, `views` its pages."""
