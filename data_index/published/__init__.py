"""Runs that lie on servers, gathered so that a trainer's reader can read them like a folder."""
