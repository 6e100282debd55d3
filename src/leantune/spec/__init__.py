"""What plugins and configs declare, without torch: methods, tasks, models, stacks, hashes, and
cells, which are single runs with every setting filled in from the defaults."""
