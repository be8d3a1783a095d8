"""Training jobs: their rows and options, their queue, the process that trains, and the gate."""
