"""A backbone with what was trained beside or inside it: load, save, predict."""
