"""Files, processes, devices and clocks; independent of landmarks."""
