"""Nested moments, variance components, intervals and allocation: arithmetic on vectors, no models."""
