"""What is read off a running case: time, memory, and the state of the machine."""
