"""What plugins and configs declare: methods, tasks, models, stacks, hashes and cells. Imports no
torch."""
