"""Which tokens each step of a run read, and what is published of the run. Never imports torch."""
