"""The app of tasks that come one after another."""
