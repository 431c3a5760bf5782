"""Streams of tasks learned one after another: methods to compare, how they are graded, and the report."""
