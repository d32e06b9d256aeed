"""Varangian: a Byzantine-robust parameter server for PyTorch."""

__version__ = "0.1.0"
