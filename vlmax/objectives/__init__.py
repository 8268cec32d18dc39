"""Objectives: losses as pure functions of arrays."""
