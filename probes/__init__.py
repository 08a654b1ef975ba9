"""Measure one model, change nothing. Every statistic is implemented here once, as a function of tensors."""
