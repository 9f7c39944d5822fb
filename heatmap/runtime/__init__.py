"""The machine a program runs on: files, processes, devices and clocks; nothing of landmarks."""
