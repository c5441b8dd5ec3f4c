"""What runs on the device: runtimes behind one protocol, timing, and the worker process; never torch."""
