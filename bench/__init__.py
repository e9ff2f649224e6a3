"""Measuring: time, cost and quality. The only source of numbers."""
