"""Side-tuning and the baselines on sets of tasks, and fleets on a clock."""
