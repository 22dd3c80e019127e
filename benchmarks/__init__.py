"""Benchmarks: measured by hand or before a release, never as a test."""
