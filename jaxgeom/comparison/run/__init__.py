"""Measuring many matrices: side by side on the cores, resumed after an interruption, shared by several processes."""
