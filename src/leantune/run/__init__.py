"""One cell (a model, a task, a stack of methods, a seed) in a process of its own: its phases, its
record, the trials of its settings and the times of its steps."""
