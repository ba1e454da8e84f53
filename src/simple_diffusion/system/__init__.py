"""The machine: devices, threads, processes, files, signals."""
