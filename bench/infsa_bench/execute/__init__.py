"""Where and how cases run: a worker process per device, the modes of execution, what one iteration does."""
