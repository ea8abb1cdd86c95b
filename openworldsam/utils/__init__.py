"""Shared helpers: files, processes, devices, locks, progress."""
