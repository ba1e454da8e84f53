"""Devices, threads, processes, files and signals."""
